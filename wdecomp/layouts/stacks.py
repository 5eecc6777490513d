"""Stacks of experts: one tensor, one matrix an expert."""

from wdecomp.layouts.config import Numbers
from wdecomp.layouts.parts import Layout, Part, Pieces
from wdecomp.layouts.schemes import Comb, halves, turns
from wdecomp.layouts.spelled import of_expert
from wdecomp.layouts.table import INPUT_FIRST, TURNS

FROM_STREAM = frozenset({"gate_up", "gate", "up", "q"})  # their input is the residual stream
EXPERTS = ("moe_num_experts", "num_experts", "num_local_experts")


def stack(parameter: str, shape: tuple[int, int, int], kind: str, numbers: Numbers) -> Layout:
    """The matrices of (expert, rows, columns), each of one kind."""
    input_first = _input_first(shape, kind, numbers)
    if input_first is None:
        return Layout(note="a stack of experts: neither the config nor the shape tells which "
                           "of its dimensions is the input")  # fmt: skip
    outputs, inputs = (shape[2], shape[1]) if input_first else (shape[1], shape[2])
    axes = "(input, output)" if input_first else "(output, input)"
    note = f"{shape[0]} experts, each {axes}"
    halved: dict[str, Pieces | None] = {kind: None}
    if kind == "gate_up":
        in_turns = not TURNS.isdisjoint(numbers.model_types)
        comb = (turns if in_turns else halves("gate", "up"))(outputs, inputs, numbers)
        if isinstance(comb, Comb):
            halved = {**comb.outputs}
        note = f"{note}: {comb}"
    parts = [
        _part(parameter, expert, kind, label, halved[label], numbers)
        for expert in range(shape[0])
        for label in halved
    ]
    return Layout(tuple(parts), input_first, note)


def expert_rows(parameter: str, shape: tuple[int, ...], kind: str, numbers: Numbers) -> Layout:
    """DBRX: the experts' rows below one another, (expert · ffn, hidden)."""
    experts = numbers.number(EXPERTS)
    if experts is None or shape[0] % experts:
        return Layout(note=f"the config gives no number of experts that divides {shape[0]} rows")
    rows = shape[0] // experts
    if kind == "down":
        view = experts, rows, shape[1]
        parts = tuple(
            Part(str(e), kind, e, None, of_expert(parameter, e, kind, numbers))
            for e in range(experts)
        )
        return Layout(parts, True, f"{experts} experts, each {rows} rows (input, output)", view)
    comb = Comb(1, tuple((str(e), rows) for e in range(experts)))
    parts = tuple(
        Part(label, kind, None, outputs, of_expert(parameter, int(label), kind, numbers))
        for label, outputs in comb.outputs.items()
    )
    return Layout(parts, False, f"{experts} experts, each {rows} rows (output, input)")


def _part(
    parameter: str, expert: int, kind: str, half: str, outputs: Pieces | None, numbers: Numbers
) -> Part:
    label = str(expert) if half == kind else f"{expert}.{half}"
    return Part(label, half, expert, outputs, of_expert(parameter, expert, half, numbers))


def _input_first(shape: tuple[int, int, int], kind: str, numbers: Numbers) -> bool | None:
    """Whether rows are inputs: the dimension that has the model's width tells, else the family."""
    rows, columns = (width == numbers.hidden for width in shape[1:])
    if rows != columns:
        return rows if kind in FROM_STREAM else columns
    if not numbers.model_types:
        return None
    return not INPUT_FIRST.isdisjoint(numbers.model_types)
