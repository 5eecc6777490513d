"""How the base is held while it is trained: where, in which precision, in NF4 or not."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wdecomp.errors import TrainingError
from wdecomp.train.nf4 import nf4_rounded
from wdecomp.train.nf4_base import quantize_linears, save_nf4_base

DEVICE = re.compile(r"cpu|mps|cuda(?::(?P<number>0|[1-9][0-9]*))?")
BASE = "base-nf4"  # in the run's folder


def require_device(name: str) -> None:
    """Raises TrainingError if torch has no device of this name."""
    found = DEVICE.fullmatch(name)
    if not found:
        raise TrainingError(f"device: is {name!r}, cpu, cuda, cuda:N or mps was expected.")
    there = {"cpu": 1, "mps": int(torch.backends.mps.is_available())}
    count = there.get(name, torch.cuda.device_count())
    if int(found["number"] or 0) >= count:
        seen = f"{count} of its kind" if count else "none of its kind"
        raise TrainingError(f"device: is {name}, torch sees {seen}. Use cpu.")


def frozen_linears(model: PreTrainedModel, heads: Sequence[str]) -> list[str]:
    """Full names of what QLoRA puts into NF4: every linear layer but the output head.

    Args:
        model: as the base has it.
        heads: last names of modules that are trained whole, which stay as they are, too.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not output
        and not set(name.split(".")) & set(heads)
    ]


def put_into_nf4(model: PreTrainedModel, heads: Sequence[str]) -> None:
    """Quantises what QLoRA does, in place; see `frozen_linears`.

    Raises:
        TrainingError: there is no such layer, or one has numbers that are not finite.
    """
    names = frozen_linears(model, heads)
    if not names:
        raise TrainingError(
            f"quantize: is nf4, but {model.name_or_path} has no Linear layer beside its output "
            "head, one at least was expected. Train it without."
        )
    ends = {name.rpartition(".")[2] for name in names}
    # A head may have a layer of a name that others have: it is put back.
    others = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in names
    }
    quantize_linears(model, sorted(ends))
    for name, module in others.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)


def keep_nf4_base(model: PreTrainedModel, out: Path) -> None:
    """Writes the base under a run into the run's folder, if it is not there."""
    if not (out / BASE / "config.json").exists():
        save_nf4_base(model, out / BASE)


def nf4_rounded_state(state: dict[str, Tensor], layers: Iterable[str]) -> dict[str, Tensor]:
    """A state_dict with these layers' weights after they have been stored in NF4."""
    names = [f"{layer}.weight" for layer in layers]
    return state | {name: nf4_rounded(state[name].cpu()) for name in names}
