"""The main job: base, adapter and merged checkpoint in, a verdict out."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import nan, sqrt
from pathlib import Path

from threadpoolctl import threadpool_limits

from wdecomp.adapter import Adapted
from wdecomp.checkpoint import (
    Checkpoint,
    check_unchanged,
    is_there,
    open_checkpoint,
    surviving,
)
from wdecomp.decomposition import compilation_told
from wdecomp.errors import CheckpointError, PairingError
from wdecomp.inputs import named_path
from wdecomp.progress import aside, byte_progress
from wdecomp.verifying.deciding import decide
from wdecomp.verifying.lineup import Item, Lineup, line_up
from wdecomp.verifying.measuring import Changed, Kept, measure
from wdecomp.verifying.records import Candidate, State, Tensor, Verification, relative_of
from wdecomp.verifying.verdict import findings_of, notes_of

COMPILING = "Compiling the sums: some seconds, once; they are kept."
MAPPED_BYTES = 192 << 20  # by all workers together


def verify(
    merged: str | Path,
    base: str | Path,
    adapter: str | Path,
    *,
    candidates: Iterable[str | Path] = (),
    workers: int | None = None,
    allow_pickle: bool = False,
    progress: bool = False,
) -> Verification:
    """Whether a merged checkpoint is base + adapter, and if not, what it is instead.

    Every weight is held beside W0 + ΔW, to within what rounding to its dtype allows (see
    `allowance`). What is read and held at a time is a block of each.

    Args:
        merged: folder or safetensors file of the merged checkpoint.
        base: of the model that it was merged into.
        adapter: folder or file of the adapter, of any dialect that `compare` reads.
        candidates: other bases that it may have been merged into.
        workers: threads; one for each core if None.
        allow_pickle: open pickled files too, as tensors alone; needs torch.
        progress: show bytes, rate and time left on stderr.

    Raises:
        WdecompError: a path is not what it must be, or the three are not of one model.
    """
    read = whole, tuned = [_opened(merged, allow_pickle), _opened(adapter, allow_pickle)]

    def beside(path: str | Path) -> Lineup:
        read.append(_opened(path, allow_pickle))
        return line_up(read[-1], whole, tuned)

    others = list(candidates)
    for path in others:  # not after all the rest has been read
        _opened(path, allow_pickle)
    lineup, run = beside(base), partial(_measured, workers, progress)
    tensors = run(lineup)
    found = findings_of(lineup, tensors)
    fits = [_candidate(str(path), beside, run) for path in others]
    check_unchanged([shard for each in read for shard in each.shards])
    here = Candidate(str(base), relative_of(tensors), not found)
    return Verification(
        str(merged),
        str(base),
        str(adapter),
        lineup.method,
        tensors,
        tuple(found),
        (here, *fits) if fits else (),
        (*lineup.notes, *notes_of(tensors)),
    )


def _opened(path: str | Path, allow_pickle: bool) -> Checkpoint:
    named = named_path(str(path))
    if not is_there(named):
        raise CheckpointError(f"{named}: there is no such file or folder.")
    return open_checkpoint(named, allow_pickle)


def _candidate(
    path: str,
    beside: Callable[[str], Lineup],
    run: Callable[[Lineup], tuple[Tensor, ...]],
) -> Candidate:
    try:
        lineup = beside(path)
    except PairingError as error:
        return Candidate(path, nan, False, str(error))
    tensors = run(lineup)
    return Candidate(path, relative_of(tensors), not findings_of(lineup, tensors))


def _measured(workers: int | None, progress: bool, lineup: Lineup) -> tuple[Tensor, ...]:
    """All tensors, each by one thread."""
    count, total = workers or os.cpu_count() or 1, sum(item.nbytes for item in lineup.items)
    with (
        surviving(MAPPED_BYTES // (2 * count)),
        threadpool_limits(limits=1),
        compilation_told(lambda: aside(COMPILING, progress)),
        byte_progress(total, "reading", progress) as on_bytes,
        ThreadPoolExecutor(count) as pool,
    ):
        return tuple(pool.map(lambda item: _tensor(item, measure(item, on_bytes)), lineup.items))


def _tensor(item: Item, found: Changed | Kept) -> Tensor:
    return _of_changed(item, found) if isinstance(found, Changed) else _of_kept(item, found)


def _of_changed(item: Item, found: Changed) -> Tensor:
    sums, columns = found.tensor, found.columns
    update = item.change.update if isinstance(item.change, Adapted) else None
    has_magnitude = isinstance(item.change, Adapted) and item.change.magnitude is not None
    coarse = found.precision != item.merged.dtype
    decision = decide(columns, sums, has_magnitude, item.merged.dtype if coarse else "")
    return Tensor(
        item.parameter,
        decision.state,
        item.merged.dtype,
        found.precision,
        item.size,
        error=decision.error,
        largest=sums.largest,
        over=int(sums.over),
        factor=decision.factor,
        columns=columns.count.size,
        columns_off=decision.columns_off,
        scaling=update.scaling if update else None,
        rank=update.rank if update else None,
        base=sqrt(sums.base),
        change=sqrt(sums.change),
        difference=sqrt(sums.error),
        moved=int(sums.moved),
        damaged=int(sums.damaged),
        broken=int(sums.broken),
        is_vector=item.merged.is_vector,
    )


def _of_kept(item: Item, found: Kept) -> Tensor:
    of_adapter = item.instead == "adapter"
    states: tuple[State, State] = (
        ("merged", "unexplained") if of_adapter else ("as-base", "changed")
    )
    return Tensor(
        item.parameter,
        "not-finite" if found.damaged else states[bool(found.off)],
        item.merged.dtype,
        found.precision or item.merged.dtype,
        item.size,
        over=found.off,
        base=sqrt(found.base),
        difference=sqrt(found.difference),
        moved=found.moved,
        damaged=found.damaged,
        is_vector=item.merged.is_vector,
        is_touched=of_adapter,
    )
