"""Decomposition of tensors in memory: the same sums and formulas as the streaming scan."""

import sys
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wdecomp.decomposition.columns import ColumnDelta, any_shrunken, column_delta_from
from wdecomp.decomposition.sums import SharedSums, Sums
from wdecomp.dtypes import Array, Floats, widen

Axis = Literal["output", "input"]
AXES: tuple[Axis, Axis] = ("output", "input")


@dataclass(frozen=True)
class Decomposition:
    """A weight as magnitude and direction: W = m · V/‖V‖, DoRA Eq. (2).

    magnitude: (n_columns,), ‖column‖ in the units of the weight.
    direction: (outputs, inputs), every column of unit length; a zero column stays zero.
    """

    magnitude: Floats
    direction: Floats


def decompose(weight: Any, axis: Axis = "output") -> Decomposition:
    """Magnitude and direction of a weight, DoRA Eq. (2): W = m · V/‖V‖_c = ‖W‖_c · W/‖W‖_c.

    Args:
        weight: (outputs, inputs), a numpy array or a torch tensor of any floating-point type.
        axis: "output" takes the weights of one output feature as a column (as the DoRA code,
            PEFT and torchtune do), "input" those of one input feature.

    Raises:
        ValueError: the weight is not a matrix of floating-point numbers, or no such axis.

    Example:
        >>> decompose(np.array([[3.0, 4.0], [0.0, 2.0]])).magnitude.tolist()
        [5.0, 2.0]
    """
    matrix = widen(_stored(weight)).astype(np.float64)
    along = 1 if _checked(axis) == "output" else 0
    magnitude = np.linalg.norm(matrix, axis=along, keepdims=True)
    direction = np.divide(matrix, magnitude, out=np.zeros_like(matrix), where=magnitude > 0)
    return Decomposition(magnitude.reshape(-1), direction)


def column_delta(base: Any, tuned: Any, axis: Axis = "output") -> ColumnDelta:
    """How far every column of a weight moved in magnitude and in direction.

        delta_magnitude = ‖w‖ − ‖w0‖      in the units of the weight; ΔM is the mean of its size
        delta_direction = 1 − cos(w, w0)  in [0, 2]; ΔD is its mean

    DoRA section 3.2, Eqs. (3) and (4), before the mean over columns. Both keep their digits when
    the columns are nearly parallel, as they are after any fine-tuning.

    Args:
        base: (outputs, inputs), a numpy array or a torch tensor of any floating-point type.
        tuned: likewise, of the same shape.
        axis: "output" (default) or "input"; see `decompose`.

    Raises:
        ValueError: the shapes differ, something is not a matrix of floating-point numbers, or
            there is no such axis.

    Example:
        >>> delta = column_delta(np.array([[3.0, 4.0], [1.0, 0.0]]),
        ...                      np.array([[6.0, 8.0], [0.0, 1.0]]))
        >>> delta.delta_magnitude.tolist(), delta.delta_direction.tolist()
        ([5.0, 0.0], [0.0, 1.0])
    """
    w0, w = _stored(base), _stored(tuned)
    if w0.shape != w.shape:
        raise ValueError(f"base is {w0.shape}, tuned is {w.shape}, expected the same shape.")
    sums = _summed(w0, w, share=1.0)
    picked = getattr(sums, _checked(axis))
    direct = getattr(_summed(w0, w, share=0.0), axis) if any_shrunken(picked) else None
    return column_delta_from(picked, direct)


def _summed(base: Array, second: Array, share: float) -> Sums:
    outputs, inputs = base.shape
    sums = SharedSums((outputs, inputs), 1)
    sums.add(base, [second], [share], slice(0, outputs), slice(0, inputs))
    return sums.total()[0]


def _checked(axis: str) -> str:
    if axis not in AXES:
        raise ValueError(f"axis is {axis!r}, expected 'output' or 'input'.")
    return axis


def _stored(weight: Any) -> Array:
    """The numbers as the kernel takes them; a torch tensor is recognised without importing torch.

    numpy knows no bfloat16, so torch's goes over as its bits.
    """
    if hasattr(weight, "detach"):
        weight = weight.detach().cpu().contiguous()
        if str(weight.dtype) == "torch.bfloat16":
            return _matrix(weight.view(sys.modules["torch"].int16).numpy().view(np.uint16))
        weight = weight.numpy()
    array = np.ascontiguousarray(weight)
    if array.dtype == np.float16:
        return _matrix(array.view(np.int16))
    if array.dtype not in (np.float32, np.float64):
        raise ValueError(f"the weight is {array.dtype}, expected floating-point numbers.")
    return _matrix(array)


def _matrix(array: Array) -> Array:
    if array.ndim != 2:
        raise ValueError(f"the weight has shape {array.shape}, expected (outputs, inputs).")
    return array
