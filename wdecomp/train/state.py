"""What an interrupted run needs to go on: parameters, AdamW's moments, and what is done.

    out/training.state    of the last step with a checkpoint; its metadata has all else

One file, put in place whole, so that there is either the state of one step or that of another. It
is safetensors under a name that no reader of checkpoints takes for weights.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from wdecomp.errors import TrainingError
from wdecomp.train.distributed import as_part_of, full, rank
from wdecomp.train.export import published

FILE = "training.state"
MOMENTS = ("exp_avg", "exp_avg_sq")
Row = dict[str, Any]


def save_state(
    out: Path,
    settings: Any,
    rows: list[Row],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Writes the state after the steps that `rows` tell of."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[name] = full(parameter.detach())
        moments = optimizer.state.get(parameter, {})  # none where no gradient ever came
        tensors |= {f"{name}.{kind}": full(moments[kind]) for kind in MOMENTS if kind in moments}
    if rank() > 0:
        return
    tensors = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
    record = {"settings": _plain(settings), "rows": rows}
    with published(out) as draft:
        save_file(tensors, draft / FILE, {"wdecomp": json.dumps(record, sort_keys=True)})


def load_state(
    out: Path,
    settings: Any,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> list[Row]:
    """What is done already, after parameters and optimizer were set to it; [] if nothing is.

    Raises:
        TrainingError: the state is of another run, or damaged.
    """
    file = out / FILE
    if not file.exists():
        return []
    try:
        with safe_open(file, "pt") as stored:
            record = json.loads((stored.metadata() or {})["wdecomp"])
            _require_same(out, record["settings"], _plain(settings))
            rows: list[Row] = record["rows"]
            for name, parameter in parameters.items():
                parameter.data.copy_(as_part_of(stored.get_tensor(name), parameter))
                if f"{name}.{MOMENTS[0]}" in stored.keys():  # noqa: SIM118 - not a dict
                    moments = {
                        k: as_part_of(stored.get_tensor(f"{name}.{k}"), parameter) for k in MOMENTS
                    }
                    step = torch.tensor(float(len(rows)), device=parameter.device)
                    optimizer.state[parameter] = {"step": step, **moments}
    except (OSError, ValueError, LookupError, SafetensorError) as error:
        raise TrainingError(
            f"{file}: is no state of this run ({str(error).partition(chr(10))[0]}). "
            "Remove it to begin anew."
        ) from None
    return rows


def _require_same(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    unlike = [key for key in now if before.get(key) != now[key] and key != "progress"]
    if unlike:
        key = unlike[0]
        raise TrainingError(
            f"{out}: holds a run with {key} {before.get(key)!r}, this one has {now[key]!r}. "
            "Choose another folder, or remove it to begin anew."
        )


def _plain(settings: Any) -> dict[str, Any]:
    """As JSON gives it back."""
    found = {
        key: {name: asdict(each) for name, each in value.items()}
        if isinstance(value, Mapping)
        else value
        for key, value in vars(settings).items()
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain
