"""Files that others read: complete and durable, or not there."""

from pathlib import Path

from wdecomp.table.files import commit


def commit_bytes(file: Path, content: bytes) -> None:
    """Creates or replaces a file.

    Raises:
        ResultsError: it cannot be written.
    """

    def write(path: Path) -> None:
        path.write_bytes(content)

    commit(file, write)
