"""A whole merged checkpoint put in its place: all of it, or nothing.

Everything is written into a hidden folder beside the output, flushed to the disk, and renamed at
the end. Whoever sees the output's name sees all of it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wdecomp.checkpoint import Checkpoint, check_unchanged, is_there, open_checkpoint
from wdecomp.errors import CheckpointError, some
from wdecomp.inputs import named_path, new_path
from wdecomp.merging.beside import write_beside
from wdecomp.merging.files import write_tensors
from wdecomp.merging.plan import plan_merge
from wdecomp.merging.records import DTYPES, Merged, Plan, Rounding
from wdecomp.progress import byte_progress
from wdecomp.table.files import sync


def merge(
    base: str | Path,
    adapter: str | Path,
    out: str | Path,
    *,
    dtype: str = "base",
    allow_pickle: bool = False,
    progress: bool = False,
) -> Merged:
    """W0 + ΔW of every weight that an adapter changes, beside all other weights of its base.

    The result has the base's files, tensor names, orientation, config and tokenizer. What is read
    and held at a time is a block, and of an adapter the factors of one matrix.

    Args:
        base: folder or safetensors file of the model that the adapter was trained on.
        adapter: folder or file of the adapter, of any dialect that `compare` reads.
        out: the folder to make; one that is there must be empty.
        dtype: of the weights that the adapter changes: "base" (as the base has each), "float32",
            "bfloat16" or "float16". All others are copied as they are; with another dtype than
            "base", quantised ones are decoded to it.
        allow_pickle: open pickled files too, as tensors alone; needs torch.
        progress: show bytes, rate and time left on stderr.

    Raises:
        WdecompError: a path or a pair is not what it must be, or the output cannot be written;
            nothing is left of it then.
    """
    if dtype not in DTYPES:
        raise ValueError(f"{dtype!r} is no dtype, expected one of {', '.join(DTYPES)}.")
    target = new_path(str(out))
    _require_free(target)
    opened, tuned = _opened(base, allow_pickle), _opened(adapter, allow_pickle)
    plan = plan_merge(opened, tuned, DTYPES[dtype])
    with _new_folder(target, plan.nbytes) as draft:
        rounding = _write_weights(plan, draft, progress)
        write_beside(opened, plan, draft)
        check_unchanged([*opened.shards, *tuned.shards])
        _flush_all(draft)
    items = [item for each in plan.files.values() for item in each]
    changed = sum(bool(item.pairs) for item in items)
    return Merged(target, plan.method, len(plan.files), plan.nbytes, changed, rounding, plan.notes)


def _opened(path: str | Path, allow_pickle: bool) -> Checkpoint:
    named = named_path(str(path))
    if not is_there(named):
        raise CheckpointError(f"{named}: there is no such file or folder.")
    return open_checkpoint(named, allow_pickle)


def _write_weights(plan: Plan, draft: Path, progress: bool) -> Rounding:
    rounding = Rounding()
    with byte_progress(plan.nbytes, "writing", progress) as on_bytes:
        for file, items in plan.files.items():
            rounding += write_tensors(draft / file, items, on_bytes)
    return rounding


def _require_free(out: Path) -> None:
    """Refuses a name that is taken."""
    try:
        if out.is_symlink() and not out.exists():
            raise CheckpointError(f"{out}: is a link to nothing, expected a folder to make.")
        for folder in (out, *out.parents):
            if folder.exists() and not folder.is_dir():
                raise CheckpointError(f"{folder}: is a file, expected a folder.")
        if not out.exists():
            return
        names = sorted(child.name for child in out.iterdir())
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written ({error.strerror}).") from None
    if names:
        raise CheckpointError(
            f"{out}: holds {some(names)}, expected an empty folder or none. Choose another, or "
            "remove it."
        )


@contextmanager
def _new_folder(out: Path, nbytes: int) -> Iterator[Path]:
    """A folder that is moved to `out` at the end, or is gone with the parents made for it.

    Raises:
        CheckpointError: the disk is full, read-only or failing.
    """
    made: list[Path] = []
    draft = None
    try:
        target = out.resolve()
        made = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        _require_room(out, target.parent, nbytes)
        name = f".{target.name[:100]}.partial-{os.getpid()}-{os.urandom(4).hex()}"
        draft = target.with_name(name)
        draft.mkdir()
        yield draft
        draft.rename(target)
        made = []
        sync(target.parent)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written ({error.strerror or error}).") from None
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
        _remove_empty(made)


def _require_room(out: Path, folder: Path, nbytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise CheckpointError(
            f"{out}: needs {nbytes / 1e9:,.2f} GB, and {free / 1e9:,.2f} GB are free there. "
            "Choose another disk with --out."
        )


def _remove_empty(folders: list[Path]) -> None:
    """Removes folders that were made here, the inner ones first, unless someone else uses them."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _flush_all(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        sync(path)
