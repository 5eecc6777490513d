"""The files that a comparison reads: that they stay as they are, and what their bytes were."""

from collections.abc import Callable, Iterable

from wdecomp.checkpoint import ShardFile, Span, check_unchanged, crc32, is_pinned
from wdecomp.scan.plan import Plan
from wdecomp.table import Part


class Inputs:
    """The files of a plan, vouched for unit by unit."""

    def __init__(self, plan: Plan, checksums: bool) -> None:
        checkpoints = [plan.base, *(run.checkpoint for run in plan.runs)]
        self._shards = {shard.path: shard for each in checkpoints for shard in each.shards}
        self._checksums = checksums
        self._known: dict[Span, int] = {}

    def vouch(self, part: Part, seen: Iterable[Span], on_bytes: Callable[[int], None]) -> None:
        """Adds the checksums of what a unit has read, and sees to it that it was of one content.

        The bytes are read once more, from memory mostly; a change between the two readings shows
        in the time of change.

        Args:
            part: what the unit found.
            seen: what it has read.
            on_bytes: told how many bytes more have been gone through.

        Raises:
            CheckpointError: a file has changed since its header was read.
        """
        spans = sorted({self._whole(span) for span in seen})
        if self._checksums:
            part.inputs.extend(self._row(span, on_bytes) for span in spans)
        files = sorted({span.file for span in spans} & self._shards.keys())
        read = [self._shards[file] for file in files]
        check_unchanged([shard for shard in read if not is_pinned(shard)])

    def check(self) -> None:
        """That no file has changed, read or not.

        Raises:
            CheckpointError: one has.
        """
        check_unchanged(self._shards.values())

    def _whole(self, span: Span) -> Span:
        """All of the file where single tensors have no place in it that is known: a pickled one."""
        shard: ShardFile | None = self._shards.get(span.file)
        return span if span.length or shard is None else span._replace(length=shard.size)

    def _row(self, span: Span, on_bytes: Callable[[int], None]) -> dict[str, object]:
        if span not in self._known:
            self._known[span] = crc32(span, on_bytes)
        row = {"file": str(span.file), "start": span.start, "bytes": span.length}
        return row | {"tensor": span.tensor, "crc32": self._known[span]}
