"""What `wdecomp.inspection` found, as text for a terminal."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

MOST_SHOWN = 20


def as_text(found: dict[str, Any], everything: bool = False) -> str:
    """Contents or a plan of comparison; the first rows of each table, or all of them."""
    most = None if everything else MOST_SHOWN
    blocks = _plan(found, most) if "runs" in found else _contents(found, most)
    return "\n".join(blocks)


def _contents(found: dict[str, Any], most: int | None) -> Iterator[str]:
    for each in found["checkpoints"]:
        step = "" if each["step"] is None else f", step {each['step']}"
        yield (
            f"{each['path']}: {each['kind']}{step}, model type {each['model_type'] or 'not known'},"
            f" {_size(each['bytes'])}, files: {each['files']}"
        )
        if each["adapter"]:
            yield from _adapter(each["adapter"], most)
        else:
            for stack, module, rank, dtype, count in each["tensors"]:
                yield f"  {count:>6} × {stack}.{module} {rank} {dtype}"
        yield from _left_out(each["left_out"], most)


def _adapter(adapter: dict[str, Any], most: int | None) -> Iterator[str]:
    base = f", trained on {adapter['base']}" if adapter["base"] else ""
    yield f"  {adapter['dialect']} adapter, method {adapter['method']}{base}"
    yield from (f"  note: {note}" for note in adapter["notes"])
    yield from _updates(adapter["updates"], most)
    yield from (f"  replaced: {name}" for name in adapter["replaced"][:most])
    yield from _left_out(adapter["left_out"], most)


def _plan(found: dict[str, Any], most: int | None) -> Iterator[str]:
    yield f"base {found['base']}"
    yield f"to read: {_size(found['bytes'])}, {found['units']} units"
    for run in found["runs"]:
        step = "" if run["step"] is None else f" step {run['step']}"
        yield f"{run['run']}{step} ({run['dialect']}, method {run['method']}) {run['path']}"
        yield from (f"  note: {note}" for note in run["notes"])
        for stack, module, stored, why, count in run["matrices"]:
            yield f"  {count:>6} × {stack}.{module}, stored {stored}{f': {why}' if why else ''}"
        yield f"  {run['vectors']:>6} × 1-D, relative change only"
        yield from _updates(run["updates"], most)
        yield from _left_out(run["left_out"], most)


def _updates(updates: list[dict[str, Any]], most: int | None) -> Iterator[str]:
    """Formulas once, then a row for each parameter: its rank, its scaling, and its key on disk."""
    for formula, count in Counter(each["formula"] for each in updates).items():
        yield f"  {count:>6} × {formula}"
    for each in updates[:most]:
        rank = "" if each["rank"] is None else f" r {each['rank']}"
        scaling = "" if each["scaling"] is None else f" s {each['scaling']:.6g}"
        yield f"    {each['parameter']}{rank}{scaling} ← {each['from']}"
    yield from _more(updates, most)


def _left_out(gone: list[list[str]], most: int | None) -> Iterator[str]:
    for side, tensor, reason in gone[:most]:
        yield f"  left out, {side}: {tensor}: {reason}"
    yield from _more(gone, most)


def _more(rows: list[Any], most: int | None) -> Iterable[str]:
    hidden = 0 if most is None else len(rows) - most
    return [f"    and {hidden} more: --all shows them"] if hidden > 0 else []


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"
