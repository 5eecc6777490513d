"""Objects in Google's and Azure's buckets, through gcsfs and adlfs as they are."""

import errno
from pathlib import Path
from typing import Any

import fsspec

from wdecomp.remote.transport import (
    Entry,
    OtherContentError,
    PassingError,
    RefusedError,
    forbidden,
    missing,
)


class Bucket:
    """One bucket or container. Credentials are those that its library finds in the environment."""

    guesses = ()
    immutable = False
    pins = False

    def __init__(self, protocol: str, root: str) -> None:
        kept: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        container, _, account = root.partition("@")
        if account and protocol in ("az", "abfs"):
            kept["account_name"] = account.partition(".")[0]
        self._root, self.root = container, root
        self._files: Any = fsspec.filesystem(protocol, **kept)

    def entries(self, folder: str) -> list[Entry]:
        at = self._at(folder) if folder else self._root
        try:
            listed = self._do("ls", at, detail=True, refresh=True)
        except FileNotFoundError:
            return []
        found = [self._entry(each) for each in listed]
        return [each for each in found if each.name.rpartition("/")[0] == folder]

    def entry(self, name: str) -> Entry:
        found = self._entry(self._do("info", self._at(name), refresh=True))
        if found.is_folder:
            raise missing()
        return found

    def read(self, name: str, start: int, stop: int, etag: str) -> bytes:
        found: bytes = self._do("cat_file", self._at(name), start=start, end=stop)
        if len(found) != stop - start:
            raise PassingError(f"gave {len(found):,} bytes of {stop - start:,}")
        return found

    def write(self, name: str, source: bytes | Path, fresh: bool) -> None:
        only = {"mode": "create"} if fresh else {}
        if isinstance(source, Path):
            self._do("put_file", str(source), self._at(name), **only)
        else:
            self._do("pipe_file", self._at(name), source, **only)

    def remove(self, name: str) -> None:
        try:
            self._do("rm", self._at(name))
        except FileNotFoundError:
            return

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _entry(self, said: dict[str, Any]) -> Entry:
        name = str(said["name"]).strip("/").removeprefix(self._root).strip("/")
        etag = str(said.get("etag") or said.get("md5Hash") or said.get("last_modified") or "")
        return Entry(name, int(said.get("size") or 0), etag, said.get("type") == "directory")

    def _do(self, method: str, *arguments: Any, **options: Any) -> Any:
        try:
            return getattr(self._files, method)(*arguments, **options)
        except (RefusedError, OtherContentError, PassingError):
            raise
        except FileNotFoundError:
            raise missing() from None
        except FileExistsError:
            raise FileExistsError(errno.EEXIST, "is there already") from None
        except PermissionError:
            raise forbidden("access is denied: the environment has no credentials") from None
        except Exception as error:  # noqa: BLE001  each library has its own
            raise _meaning(error) from None


def _meaning(error: Exception) -> OSError:
    """What an error of a library stands for, without its text."""
    kind = type(error).__name__
    said = [str(getattr(error, name, "")) for name in ("code", "status", "status_code")]
    status = next((int(text) for text in said if text.isdecimal()), 0)
    if status in (401, 403) or any(word in kind for word in ("Credential", "Auth", "Forbidden")):
        return forbidden(f"access is denied ({kind}): the environment has no credentials for it")
    if isinstance(error, ValueError | TypeError | NotImplementedError) and not status:
        return RefusedError(f"its library does not take this ({kind})")
    return PassingError(f"the connection failed ({kind})")
