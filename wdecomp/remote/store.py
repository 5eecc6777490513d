"""Files in a bucket, on the hub or on a web server, as far as weights and results need them.

A `Store` is one root: a bucket, a repository at one commit, a server. It lists a folder once, reads
ranges of bytes, and tries again what may pass. Nothing of it knows what is in the files.
"""

import errno
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock
from typing import TypeVar

from wdecomp.remote.retrying import persistently
from wdecomp.remote.transport import Entry, Transport
from wdecomp.remote.transports import transport_of
from wdecomp.remote.urls import FILES, Address, Place

IN_FLIGHT = 16  # requests at a time
FEW_TRIES = 3  # for the first request of all: whoever waits may just have mistyped a path
Asked = TypeVar("Asked")
Found = TypeVar("Found")


class Store:
    """One root; any thread may use it.

    Every method raises OSError, whose `strerror` is a clause without anything secret:
    FileNotFoundError, PermissionError, FileExistsError where they say what is wrong.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._folders: dict[str, dict[str, Entry]] = {}
        self._files: dict[str, Entry | None] = {}
        self._looked: dict[str, int] = {}
        self._lock = Lock()

    @property
    def root(self) -> str:
        """As it is written down: of a repository, with the commit that its revision is."""
        return self._transport.root

    @property
    def immutable(self) -> bool:
        """Whether nothing in it can change: a repository at one commit."""
        return self._transport.immutable

    @property
    def pins(self) -> bool:
        """Whether `fetch` gives no bytes of another content than its `etag` names."""
        return self._transport.pins

    @property
    def lists(self) -> bool:
        """Whether it can say what is in a folder; a web server cannot."""
        return not self._transport.guesses

    def entries(
        self, folder: str, again: bool = False, tries: int | None = None
    ) -> dict[str, Entry]:
        """What is in a folder by its last part; empty if there is no such folder.

        Where folders cannot be listed: the files that usually are in one.

        Args:
            folder: its path from the root, "" for the root.
            again: ask again, whatever is known.
            tries: how often to ask.
        """
        if not again:
            with self._lock:
                known = self._folders.get(folder)
                parent, _, last = folder.rpartition("/")
                if folder and self.lists and last not in self._folders.get(parent, {last: None}):
                    known = {}
            if known is not None:
                return known
        listed = self._listed(folder, tries) if self.lists else self._guessed(folder, again)
        with self._lock:
            self._folders[folder] = {}
            for inner, entries in _by_folder(folder, listed).items():
                self._folders[inner] = entries
            return self._folders[folder]

    def entry(self, name: str, again: bool = False) -> Entry | None:
        """A file or folder; None if there is none.

        Args:
            name: its path from the root.
            again: ask again, whatever is known.
        """
        if not name:
            return Entry("", is_folder=True)
        if again:
            return self._look(name)
        parent, _, last = name.rpartition("/")
        with self._lock:
            known = self._folders.get(parent, {})
            if last in known or (self.lists and parent in self._folders):
                return known.get(last)
            if name in self._files:
                return self._files[name]
            looks = self._looked[parent] = self._looked.get(parent, 0) + 1
            within = parent and parent.rpartition("/")[0] in self._folders
        if self.lists and (looks > 1 or within):  # one listing, not a request for each file
            with suppress(PermissionError):  # files may be read where folders may not be listed
                return self.entries(parent).get(last)
        folder = None if name.endswith(FILES) else self._folder(name)
        found = folder or self._look(name)
        with self._lock:
            self._files[name] = found
        return found

    def fetch(
        self, name: str, start: int, stop: int, etag: str = "", stopped: Event | None = None
    ) -> bytes:
        """The bytes from `start` to before `stop`, exactly.

        Args:
            name: the file's path from the root.
            start: of the first byte.
            stop: where they end.
            etag: what the file must still have; "" for any.
            stopped: set when nobody wants them any more: nothing is then tried again.
        """
        if stop <= start:
            return b""
        found = persistently(lambda: self._transport.read(name, start, stop, etag), stopped)
        if len(found) != stop - start:
            raise OSError(errno.EIO, f"ends before byte {stop:,}")
        return found

    def put(self, name: str, source: bytes | Path, fresh: bool = False) -> None:
        """Writes one whole file, visible only when it is complete.

        Args:
            name: its path from the root.
            source: the content, or a local file that has it.
            fresh: only if there is no such file; FileExistsError if there is one, which may be
                this one: an answer that was lost is asked for again.
        """
        persistently(lambda: self._transport.write(name, source, fresh))
        self._forget(name)

    def remove(self, name: str) -> None:
        """Removes one file; one that is not there stays so."""
        persistently(lambda: self._transport.remove(name))
        self._forget(name)

    def forget(self, name: str) -> None:
        """What is known of a file or folder, and of all in it, is asked for again."""
        if self.immutable:
            return
        with self._lock:
            for known in (self._folders, self._files, self._looked):
                for other in [n for n in known if not name or f"{n}/".startswith(f"{name}/")]:
                    known.pop(other)
        self._forget(name)

    def _look(self, name: str) -> Entry | None:
        try:
            found = persistently(lambda: self._transport.entry(name))
        except FileNotFoundError:
            found = None
        with self._lock:
            self._files[name] = found
        return found

    def _folder(self, name: str) -> Entry | None:
        return Entry(name, is_folder=True) if self.entries(name) else None

    def _listed(self, folder: str, tries: int | None) -> list[Entry]:
        return persistently(lambda: self._transport.entries(folder), tries=tries)

    def _guessed(self, folder: str, again: bool) -> list[Entry]:
        """Asks for all the usual files at once."""
        names = [f"{folder}/{guess}" if folder else guess for guess in self._transport.guesses]
        found = at_once(lambda name: self.entry(name, again), names)
        return [entry for entry in found if entry is not None]

    def _forget(self, name: str) -> None:
        with self._lock:
            self._files.pop(name, None)
            while name:
                name = name.rpartition("/")[0]
                self._folders.pop(name, None)


_stores: dict[Address, Store] = {}
_opening = Lock()


def store_of(address: Address) -> Store:
    """The store of an address, the same one for all files below its root.

    Raises:
        OSError: it cannot be reached.
        MissingExtraError: the packages for its protocol are not there.
    """
    with _opening:
        if address not in _stores:
            _stores[address] = Store(transport_of(address))
        return _stores[address]


def opened_store(place: Place) -> Address:
    """The address of a place's store, as it is to be written down, with nothing known of the place.

    Raises:
        OSError: it cannot be reached.
        MissingExtraError: the packages for its protocol are not there.
    """
    if place.address.protocol != "hf":
        store_of(place.address).forget(place.name)
        return place.address
    store = Store(transport_of(place.address))  # anew: a branch goes on
    store.entries("", tries=FEW_TRIES)
    address = place.address._replace(root=store.root)
    with _opening:
        _stores.setdefault(address, store)
    return address


def at_once(do: Callable[[Asked], Found], asked: Iterable[Asked]) -> list[Found]:
    """What a function gives for each, `IN_FLIGHT` at a time."""
    with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="remote") as pool:
        return list(pool.map(do, asked))


def _by_folder(folder: str, listed: list[Entry]) -> dict[str, dict[str, Entry]]:
    """The entries of every folder that a listing goes down to."""
    found: dict[str, dict[str, Entry]] = {}
    for entry in listed:
        inner, at = entry, entry.name
        while at != folder:
            parent, _, last = at.rpartition("/")
            found.setdefault(parent, {}).setdefault(last, inner)
            inner, at = Entry(parent, is_folder=True), parent
    return found
