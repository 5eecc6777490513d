"""JSON from strangers: one reading only, or an error that names the file."""

import json
import stat
from pathlib import Path
from typing import Any

from wdecomp.errors import CheckpointError

MAX_CONFIG_BYTES = 100_000_000  # the index of a 91,000-tensor model has about 10 MB


def parse(text: bytes, where: str, finite: bool = True) -> Any:
    """The value of a JSON text in UTF-8, without duplicate keys, and NaN or Infinity if `finite`.

    Raises:
        CheckpointError: the text is not that; the message starts with `where`.
    """

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise CheckpointError(f"{where}: the key {twice!r} stands there twice.")
        return seen

    def no_constant(word: str) -> Any:
        raise CheckpointError(f"{where}: {word} is not a number in JSON.")

    def no_minus_zero(digits: str) -> int:
        if digits == "-0":
            raise CheckpointError(f"{where}: -0 is not a size.")
        return int(digits)

    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=no_duplicates,
            parse_constant=no_constant if finite else float,
            parse_int=no_minus_zero,
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # refuses lone surrogates
    except (UnicodeError, ValueError) as error:
        raise CheckpointError(f"{where}: is not JSON in UTF-8 ({error}).") from None
    except RecursionError:
        raise CheckpointError(f"{where}: is nested too deeply.") from None
    return value


def read_object(file: Path, finite: bool = True) -> dict[str, Any]:
    """The JSON object in a file, its numbers as `parse` takes them.

    Raises:
        CheckpointError: the file cannot be read, is oversized, or holds something else.
    """
    value = parse(read_bytes(file), str(file), finite)
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: holds a {type(value).__name__}, expected a JSON object.")
    return value


def read_bytes(file: Path) -> bytes:
    """The content of a regular file of moderate size."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{file}: is not a regular file.")
        if status.st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(
                f"{file}: has {status.st_size:,} bytes, expected at most {MAX_CONFIG_BYTES:,}."
            )
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}).") from None
