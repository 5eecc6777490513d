"""Updates whose formula is PEFT's own code: the base's weight in one layer of PEFT's, merged there.

For tuners of which each module's change needs nothing but its own tensors and the config. PEFT and
torch are wanted only here, and only when such an adapter is read. Of the config nothing is taken
but numbers, flags and names: the class is PEFT's own for the tuner, never one that a file names.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

import numpy as np

from wdecomp.adapter.adapter import ModuleUpdate
from wdecomp.adapter.change import Nothing, numbers
from wdecomp.adapter.config import Fields
from wdecomp.adapter.factors import Factors
from wdecomp.adapter.scalings import Stored
from wdecomp.checkpoint import Matrix, PlainTensor, read_matrix
from wdecomp.dtypes import Array, widen
from wdecomp.errors import AdapterError

# What PEFT would take from elsewhere, or apply to other modules than the one at hand.
NOT_TAKEN = (
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_type", "task_type"),
    *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform"),
    *("layers_pattern", "fan_in_fan_out", "bias", "inference_mode", "peft_version"),
)

ALONE = Lock()  # PEFT's layers draw initial values from torch's one generator, which is put back


def merged_by_peft(settings: Fields, modules: Mapping[str, Factors]) -> dict[str, ModuleUpdate]:
    """An update of every module's weight; RoAd turns the outputs, so their biases with them."""
    kind = str(settings.raw["peft_type"])
    leaves = ("weight", "bias") if kind == "ROAD" else ("weight",)
    return {
        f"{module}.{leaf}": ModuleUpdate(
            ThroughPeft(kind, module, tuple(factors.tensors.values()), settings.raw)
        )
        for module, factors in modules.items()
        for leaf in leaves
    }


@dataclass(frozen=True)
class ThroughPeft:
    """One module of such a tuner.

    module: its path, which patterns of the config are about.
    parts: its tensors.
    """

    kind: str
    module: str
    parts: tuple[PlainTensor, ...]
    config: Mapping[str, Any]
    rank: ClassVar[None] = None
    scaling: ClassVar[None] = None
    shape: ClassVar[tuple[None, None]] = (None, None)
    formula: ClassVar[str] = "as PEFT's own layer merges it"

    @property
    def tensors(self) -> tuple[PlainTensor, ...]:
        """All parts."""
        return self.parts

    def fits(self, shape: tuple[int, int]) -> bool:
        """PEFT's layer finds out when it is loaded."""
        return Nothing().fits(shape)

    def load(self, weight: Matrix) -> Stored:
        """W' − W0, all of it; of a bias likewise.

        Raises:
            AdapterError: PEFT is not installed, or cannot load the tensors into its layer.
        """
        if len(weight.tensor.shape) > 2:
            raise AdapterError(
                f"{self._where}: {self.module} is no linear layer, and {self.kind} adapters of "
                "others are not read. Merge it with PEFT and compare the result."
            )
        start = widen(read_matrix(weight)).astype(np.float32)
        try:
            with ALONE, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about patterns that are for other modules
                merged = _merged(self, start, weight)
        except ImportError:
            raise AdapterError(
                f"{self._where}: {self.kind} adapters are merged by PEFT's own code, which is not "
                "installed. pip install peft"
            ) from None
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            text = " ".join(str(error).split())[:300]
            raise AdapterError(
                f"{self._where}: {self.module}: PEFT cannot merge it into a weight of shape "
                f"{weight.shape} ({text})."
            ) from None
        return Stored(merged.astype(np.float64) - start)

    @property
    def _where(self) -> Path:
        return self.parts[0].file.parent


def _merged(update: ThroughPeft, start: Array, weight: Matrix) -> Array:
    """The tuned weight, (output, input), or bias, (1, outputs)."""
    import torch
    from peft import get_peft_model, set_peft_model_state_dict

    bias, model = torch.from_numpy(start.reshape(-1)), torch.nn.Module()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        if weight.is_vector:
            layer: Any = torch.nn.Linear(1, start.size)
            layer.weight.zero_()
            layer.bias.copy_(bias)
        else:
            layer = _layer(start, weight.input_first)
        _put(model, update.module, layer)
        adapted = get_peft_model(model, _config(update, weight.input_first))
        state = {t.name: torch.from_numpy(_signed(numbers(t))) for t in update.parts}
        loaded: Any = set_peft_model_state_dict(adapted, state)
        absent = [key for key in loaded.missing_keys if key.startswith("base_model.model") and
                  any(f".{_part(t)}" in key for t in update.parts)]  # fmt: skip
        if absent or loaded.unexpected_keys:
            raise ValueError(f"keys do not agree: {(*absent, *loaded.unexpected_keys)[0]}")
        merged = adapted.merge_and_unload().get_submodule(update.module)
    if weight.is_vector:
        return np.asarray(merged.bias.detach().numpy()).reshape(1, -1)
    found = merged.weight.detach().numpy()
    return np.asarray(found.T if weight.input_first else found)


def _layer(start: Array, input_first: bool) -> Any:
    import torch

    if not input_first:
        layer = torch.nn.Linear(start.shape[1], start.shape[0], bias=False)
        layer.weight.copy_(torch.from_numpy(start))
        return layer
    from transformers.pytorch_utils import Conv1D

    make: Any = Conv1D
    conv = make(*start.shape)
    conv.weight.copy_(torch.from_numpy(np.ascontiguousarray(start.T)))
    return conv


def _put(model: Any, path: str, layer: Any) -> None:
    import torch

    *parents, last = path.split(".")
    for word in parents:
        model.add_module(word, torch.nn.Module())
        model = model.get_submodule(word)
    model.add_module(last, layer)


def _config(update: ThroughPeft, input_first: bool) -> Any:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

    kind: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(update.kind)]
    known = {field.name for field in fields(kind) if field.init}
    taken = {k: v for k, v in update.config.items() if k in known and k not in NOT_TAKEN}
    if "fan_in_fan_out" in known:
        taken["fan_in_fan_out"] = input_first
    return kind(target_modules=[update.module], **taken)


def _part(tensor: PlainTensor) -> str:
    return tensor.name.rsplit(".", 2)[-2 if tensor.name.endswith(".weight") else -1]


def _signed(values: Array) -> Array:
    """Unsigned integers as torch has them."""
    return values.astype(np.int64) if values.dtype.kind == "u" else values
