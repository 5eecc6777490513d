"""From what a user wrote to a path: URLs, and names of models on the hub."""

from dataclasses import replace
from pathlib import Path

from wdecomp.errors import CheckpointError
from wdecomp.remote.ahead import forget_kept
from wdecomp.remote.path import RemotePath
from wdecomp.remote.store import opened_store
from wdecomp.remote.urls import is_url, parsed, remember_query


def remote_path(url: str) -> RemotePath:
    """The path of a URL, as it is now: of a repository, at the commit that its revision is.

    Raises:
        CheckpointError: it is no URL that is understood, or it cannot be reached.
        MissingExtraError: the packages for its protocol are not there.
    """
    place = parsed(url)
    remember_query(place)
    forget_kept()
    try:
        address = opened_store(place)
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be read ({error.strerror}).") from None
    return RemotePath(str(replace(place, address=address)))


def located(text: str) -> Path:
    """A path that was written down by its `str`: on this disk, or elsewhere.

    Raises:
        CheckpointError: it is a URL that is not understood.
    """
    return RemotePath(str(parsed(text))) if is_url(text) else Path(text)
