"""Every matrix that a checkpoint has a place for: its tensors, and the parts of fused ones."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from wdecomp.checkpoint import (
    Checkpoint,
    Matrix,
    QuantizedTensor,
    Ranges,
    Weight,
    core_shape,
)
from wdecomp.dtypes import STORED_AS
from wdecomp.layouts import Layout, layout
from wdecomp.names import Place, is_embedding, is_head, place, stores_input_first


@dataclass(frozen=True)
class Slot:
    """One matrix or vector of a checkpoint.

    label: which part of its tensor, "" for all of it.
    matrix: it, as it is compared.
    module: the same with all outputs of the tensor: what an adapter of the module changes.
    outputs: which of those are the matrix's; None for all.
    split_names: names under which another checkpoint may have the part alone.
    why: how it was split or oriented.
    """

    name: str
    label: str
    place: Place
    matrix: Matrix
    module: Matrix
    outputs: Ranges | None = None
    split_names: tuple[str, ...] = ()
    why: str = ""

    @property
    def parameter(self) -> str:
        """The name that tables have for it."""
        return f"{self.name}[{self.label}]" if self.label else self.name


def slots(name: str, weight: Weight, config: Mapping[str, Any]) -> list[Slot]:
    """The matrices of one stored tensor: one, or one for each part.

    Args:
        name: the parameter name that decides on place, layout and orientation.
        weight: what is stored.
        config: the model's config.json, {} if there is none.
    """
    found = layout(name, weight.shape, config)
    matrix, why = oriented(name, weight, config, found)
    at = place(name)
    if not found.parts:
        return [Slot(name, "", at, matrix, matrix, why="; ".join(filter(None, (why, found.note))))]
    return [
        Slot(
            name,
            part.label,
            replace(at, module=part.module),
            replace(matrix, plane=part.plane, picked=part.outputs),
            replace(matrix, plane=part.plane),
            part.outputs,
            part.split_names,
            found.note,
        )
        for part in found.parts
    ]


def oriented(
    name: str, weight: Weight, config: Mapping[str, Any], known: Layout
) -> tuple[Matrix, str]:
    """A weight as (output, input), and what says so."""
    view = known.view
    if isinstance(weight, QuantizedTensor) and weight.input_first is not None:
        return Matrix(weight, weight.input_first, view=view), f"{weight.dtype} packing"
    if known.input_first is not None:
        return Matrix(weight, known.input_first, view=view), "stack of experts"
    shape = core_shape(weight.shape)
    if len(shape) != 2:
        why = "convolution: (output, input × kernel)" if len(shape) > 2 else ""
        return Matrix(weight, False, view=view), why
    if shape != weight.shape or is_embedding(name):
        return Matrix(weight, True, view=view), "embedding: its output is its dim"
    model_type = config.get("model_type")
    model_type = model_type if isinstance(model_type, str) else None
    if stores_input_first(name, model_type, (shape[0], shape[1])):
        return Matrix(weight, True, view=view), f"Conv1D of {model_type or 'GPT-2 by its names'}"
    return Matrix(weight, False, view=view), "head" if is_head(name) else "linear"


def no_weight(side: str, weight: Weight) -> str | None:
    """Why a tensor is no weight that has columns, if it is none."""
    if not isinstance(weight, QuantizedTensor) and weight.dtype not in STORED_AS:
        return f"{side} is stored as {weight.dtype}, which is no weight that can be read"
    if not weight.shape or 0 in weight.shape:
        return f"{side} has shape {weight.shape}: no column"
    return None


def unknown_stack(slot: Slot) -> str | None:
    """Why a stack of experts cannot be split into matrices, if it is one that cannot."""
    if slot.label or len(slot.matrix.tensor.shape) != 3 or "experts" not in slot.name.split("."):
        return None
    return slot.why.rpartition("; ")[2] or "a stack of experts of a kind that is not known"


def part_slots(checkpoint: Checkpoint) -> Iterator[Slot]:
    """The parts of all fused and stacked tensors."""
    for name, weight in checkpoint.tensors.items():
        if len(weight.shape) in (2, 3) and no_weight("base", weight) is None:
            yield from (s for s in slots(name, weight, checkpoint.config_of(name)) if s.label)
