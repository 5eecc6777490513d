"""What a stored tensor splits into."""

from dataclasses import dataclass

Pieces = tuple[range, ...]


@dataclass(frozen=True)
class Part:
    """One matrix of a stored tensor that holds several.

    Attributes:
        label: "q"; "3" for an expert's matrix, "3.gate" for a half of it.
        module: the module kind for the tables: q, k, v, add_q, gate, up, down, o.
        plane: which matrix of a stack, (plane, rows, columns); None if the tensor is 2-D.
        outputs: which of the stored output features it has, in ascending pieces; None for all.
        split_names: full names under which a checkpoint that stores this part alone has it,
            likeliest first.
    """

    label: str
    module: str
    plane: int | None
    outputs: Pieces | None
    split_names: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """How a stored tensor splits.

    Attributes:
        parts: empty for one matrix that is not split.
        input_first: whether it is stored (…, input, output); None where the name alone decides
            (`wdecomp.names.stores_input_first`).
        note: for humans: how it splits, or why it does not; "" for what has one matrix anyway.
        view: the shape to see the tensor in before its parts are taken; None for its own.
    """

    parts: tuple[Part, ...] = ()
    input_first: bool | None = None
    note: str = ""
    view: tuple[int, int, int] | None = None
