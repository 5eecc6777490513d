"""Whether the files that results were made from are still what they were."""

from collections.abc import Callable, Iterator
from typing import Any

from wdecomp.checkpoint import Span, crc32, read_header, sample_sha256
from wdecomp.errors import CheckpointError, ResultsError, WdecompError
from wdecomp.remote import RemotePath, located, remote_path
from wdecomp.table.checking import Findings

SAMPLED = (
    "The checksums of what was read were not kept: of each file, its size, its header and 64 "
    "pieces of 4 KiB were compared; of one that is elsewhere, its ETag in their place. With "
    "--checksums, compare keeps them."
)


def check_inputs(
    record: dict[str, Any], rows: list[dict[str, Any]], on_bytes: Callable[[int], None]
) -> Findings:
    """Every file of weights beside what run.json and inputs.parquet say of it.

    Args:
        record: run.json.
        rows: of inputs.parquet; none if no checksums were kept.
        on_bytes: told how many bytes more have been read.

    Raises:
        ResultsError: the record does not say which files there were.
    """
    found = Findings()
    whole: set[str] = set()
    for shard in _shards(record):
        wrong = _about(shard)
        if wrong:
            found.wrong.append(f"{shard['file']}: {wrong}")
        else:
            whole.add(str(shard["file"]))
        found.files += 1
    for row in rows:
        if row["file"] not in whole:
            continue
        span = Span(located(row["file"]), row["start"], row["bytes"], row["tensor"])
        try:
            same = crc32(span, on_bytes) == row["crc32"]
        except CheckpointError as error:
            found.wrong.append(str(error))
            continue
        found.nbytes += span.length
        if not same:
            what = f"tensor {span.tensor!r} has" if span.tensor else "it has"
            found.wrong.append(f"{span.file}: {what} other bytes than those that were compared.")
    if not rows:
        found.notes.append(SAMPLED)
    return found


def _shards(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The files of the base and of every run, each once."""
    seen = set()
    try:
        for source in (record["base"], *record["runs"]):
            for shard in source.get("shards", ()):
                if shard["file"] not in seen:
                    seen.add(shard["file"])
                    yield {"sample_sha256": None, **shard}
    except (LookupError, TypeError, AttributeError):
        raise ResultsError("run.json does not say which files were compared.") from None


def _about(shard: dict[str, Any]) -> str | None:
    """What is other than it was, of a file as a whole."""
    try:
        file = located(shard["file"])
        if isinstance(file, RemotePath):
            file = remote_path(str(file))  # as it is now
        if not file.is_file():
            return "is gone, or is not found from this folder."
        size = file.stat().st_size
        if size != shard["bytes"]:
            return f"has {size:,} bytes, it had {shard['bytes']:,}."
        if file.suffix == ".safetensors":
            header = read_header(file).shard.header_sha256
            if header != shard["header_sha256"]:
                return "has another header than it had."
        if shard["sample_sha256"] not in (None, sample_sha256(file, size)):
            return "has other bytes than it had."
    except OSError as error:
        return f"cannot be read ({error.strerror})."
    except WdecompError as error:
        return str(error).removeprefix(f"{shard['file']}: ")
    return None
