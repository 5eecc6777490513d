"""Every change that a results folder makes to its disk, seen one by one before it happens.

Whoever looks on may record them, refuse them with an error, or end the process there. `Disk` is
what a power cut would leave of those that were recorded.
"""

import io
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from unittest import mock

CHANGES = ("create", "write", "fsync", "rename", "mkdir", "unlink", "rmdir")


@dataclass(frozen=True)
class Change:
    """One change: what, of which name below the folder, and its new name or the bytes written."""

    kind: str
    name: str
    to: str = ""
    content: bytes = b""
    descriptor: int = -1


class _File(io.FileIO):
    def __init__(self, path: Path, mode: str, see: Callable[[Change], None], name: str) -> None:
        see(Change("create", name))
        super().__init__(path, mode)
        self._see, self._named = see, name

    def write(self, content: Any) -> int:
        self._see(Change("write", self._named, "", bytes(content), self.fileno()))
        return super().write(content)


@contextmanager
def watched(folder: Path, see: Callable[[Change], None]) -> Iterator[None]:
    """Calls `see` before every change below a folder, whichever thread makes it."""
    top = folder.resolve()
    before = {name: getattr(os, name) for name in ("replace", "fsync", "mkdir", "unlink", "rmdir")}
    open_before = Path.open

    def name_of(path: Any, dir_fd: int | None = None) -> str | None:
        if dir_fd is not None:
            path = Path(f"/proc/self/fd/{dir_fd}").readlink() / path
        absolute = Path(path).absolute()
        return str(absolute.relative_to(top)) if absolute.is_relative_to(top) else None

    def open_(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        name = name_of(path)
        if name is None or mode not in ("wb", "xb"):
            return open_before(path, mode, *rest, **options)
        return io.BufferedWriter(_File(path, mode, see, name))

    def named(kind: str, call: Callable[..., None]) -> Callable[..., None]:
        def wrapped(path: Any, *rest: Any, dir_fd: int | None = None) -> None:
            name = name_of(path, dir_fd)
            if name is not None:
                see(Change(kind, name))
            call(path, *rest, dir_fd=dir_fd)

        return wrapped

    def replace(source: Any, target: Any) -> None:
        old, new = name_of(source), name_of(target)
        if old is not None and new is not None:
            see(Change("rename", old, new))
        before["replace"](source, target)

    def fsync(descriptor: int) -> None:
        name = name_of(Path(f"/proc/self/fd/{descriptor}").readlink())
        if name is not None:
            see(Change("fsync", name))
        before["fsync"](descriptor)

    with (
        mock.patch.object(Path, "open", open_),
        mock.patch.object(os, "replace", replace),
        mock.patch.object(os, "fsync", fsync),
        mock.patch.object(os, "mkdir", named("mkdir", before["mkdir"])),
        mock.patch.object(os, "unlink", named("unlink", before["unlink"])),
        mock.patch.object(os, "rmdir", named("rmdir", before["rmdir"])),
    ):
        yield


class Disk:
    """What is durable of some changes after a power cut, and by chance what was not yet.

    A write is sure once its file is flushed, a name once its folder is. Of all else any may be
    lost: with `in_order`, names as a journal keeps them, the first ones; else any of them.
    """

    def __init__(self, changes: list[Change], dice: random.Random, in_order: bool) -> None:
        self._dice = dice
        self._names: dict[str, int | None] = {".": None}  # a file's number; None for a folder
        self._writes: dict[int, list[bytes]] = {}
        self._flushed: dict[int, int] = {}  # how many of the writes
        self._live: dict[str, int] = {}  # a file's number by name, before the cut
        self._unsure: list[tuple[str, list[tuple[str, int | None, bool]]]] = []
        self._in_order = in_order
        for change in changes:
            self._apply(change)
        self._cut()

    def _apply(self, change: Change) -> None:
        name, folder = change.name, str(PurePosixPath(change.name).parent)
        if change.kind == "create":
            self._live[name] = number = len(self._writes)
            self._writes[number] = []
            self._unsure.append((folder, [(name, number, True)]))
        elif change.kind == "write":
            self._writes[self._live[name]].append(change.content)
        elif change.kind == "mkdir":
            self._unsure.append((folder, [(name, None, True)]))
        elif change.kind in ("unlink", "rmdir"):
            self._live.pop(name, None)
            self._unsure.append((folder, [(name, None, False)]))
        elif change.kind == "rename":
            self._live[change.to] = number = self._live.pop(name)
            self._unsure.append((folder, [(change.to, number, True), (name, None, False)]))
        elif change.kind == "fsync" and name in self._live:
            number = self._live[name]
            self._flushed[number] = len(self._writes[number])
        elif change.kind == "fsync":
            self._flush_folder(name)

    def _flush_folder(self, folder: str) -> None:
        sure = [each for each in self._unsure if self._in_order or each[0] == folder]
        self._unsure = [each for each in self._unsure if each not in sure]
        for _, entries in sure:
            self._enter(entries)

    def _enter(self, entries: list[tuple[str, int | None, bool]]) -> None:
        for name, number, there in entries:
            if there:
                self._names[name] = number
            else:
                self._names.pop(name, None)

    def _cut(self) -> None:
        first = self._dice.randint(0, len(self._unsure))
        for i, (_, entries) in enumerate(self._unsure):
            if i < first if self._in_order else self._dice.random() < 0.5:
                self._enter(entries)

    def lay_out(self, folder: Path) -> None:
        """Makes the folder as it is found after the cut."""
        folder.mkdir()
        for name, number in sorted(self._names.items()):
            path = folder / name
            if not path.parent.is_dir():  # lost, with all that was in it
                continue
            if number is None:
                path.mkdir(exist_ok=True)
            else:
                path.write_bytes(self._content(number))

    def _content(self, number: int) -> bytes:
        writes, sure = self._writes[number], self._flushed.get(number, 0)
        content = b"".join(writes[:sure])
        for late in writes[sure:]:
            fate = self._dice.choice(("there", "zeros", "torn", "lost"))
            if fate == "there":
                content += late
            elif fate == "zeros":  # the length reached the disk, the bytes did not
                content += bytes(len(late))
            elif fate == "torn":
                return content + late[: self._dice.randrange(len(late) + 1)]
            else:
                return content
        return content
