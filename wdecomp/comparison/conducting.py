"""The main job: base and tuned checkpoints in, tables out."""

import atexit
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from wdecomp.comparison.asked import Axes, Columns, asking, prepare
from wdecomp.comparison.running import make_tables, run_here, run_there
from wdecomp.decomposition import require_device
from wdecomp.scan import Cluster, require_dask
from wdecomp.table import Results, open_results, refuse_place

PATIENCE = 300.0  # seconds without a worker of a cluster


def compare(
    base: str | Path | None,
    *tuned: str | Path,
    out: str | Path | None = None,
    axis: Axes = "both",
    columns: Columns = "output",
    modules: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    workers: int | None = None,
    base_dequantized: str | Path | None = None,
    restart: bool = False,
    progress: bool = False,
    allow_pickle: bool = False,
    device: str = "cpu",
    spectral: bool = False,
    checksums: bool = False,
    scheduler: str | None = None,
    worker_timeout: float = PATIENCE,
) -> Results:
    """The tables of ΔM and ΔD of every tuned checkpoint against its base.

        ΔM = mean |m − m0|        ΔD = mean (1 − cos(w, w0))      over the columns of a matrix

    DoRA section 3.2, Eqs. (3) and (4). Everything is read from disk in blocks; memory does not
    grow with the model.

    Args:
        base: folder or safetensors file of the base model; None takes it from the config of an
            adapter among `tuned`.
        tuned: folders or files, each `PATH`, `NAME=PATH` or `NAME:METHOD=PATH`; full checkpoints,
            PEFT LoRA or DoRA adapters, or folders of `checkpoint-N/`.
        out: the results folder; a temporary one that lives as long as the process if None.
        axis: which axes have rows in the tables.
        columns: for which axes every single column is kept.
        modules: module kinds to compare ("q", "v", "down", …); all if None.
        layers: layers to compare; all if None.
        workers: threads; one for each core if None.
        base_dequantized: the quantised base on which the adapters were trained (QLoRA, QDoRA), to
            be dequantised. They are then compared with it; what quantisation did to `base` is a
            run `quantization`, and what both did together `NAME+quantization`.
        restart: replace the results of another run in `out`.
        progress: show bytes, rate and time left on stderr.
        allow_pickle: open pickled files (`.bin`, `.pt`, …) too, as tensors alone; needs torch.
        device: "cpu", or "numpy" (the same, slowly, without compiled sums), or "cuda" or
            "cuda:N" for sums on a GPU; that needs torch.
        spectral: make `spectra`, too: what the singular values of each change say, and where it
            lies beside its base. One whole pair of matrices is held at a time, in float32; it
            takes much longer than all else.
        checksums: make `inputs`, too: the CRC-32 of every byte that is read, by which
            `wdecomp check --inputs` finds what has changed since.
        scheduler: tcp:// or tls:// address of a Dask scheduler whose workers do the work in place
            of threads here. They see the same paths, and `out`; see docs/clusters.md.
        worker_timeout: seconds without any of its workers after which it ends, to be continued.

    Raises:
        WdecompError: a path, a file, a pair of checkpoints or the folder is not what it must be.
        UnfinishedError: the cluster went away; the same call continues.
    """
    cluster = None if scheduler is None else Cluster(scheduler, worker_timeout)
    if cluster is None:
        require_device(device)
    elif workers is not None or out is None:
        raise ValueError("A scheduler has its own workers, and they need a folder that all share.")
    else:
        require_dask(cluster)
    place = _temporary_folder() if out is None else out
    refuse_place(place)  # before headers are read, which may take a while
    asked = asking(
        base,
        *tuned,
        axis=axis,
        columns=columns,
        modules=modules,
        layers=layers,
        base_dequantized=base_dequantized,
        allow_pickle=allow_pickle,
        device=device,
        spectral=spectral,
        checksums=checksums,
    )
    ready = prepare(asked, workers)
    with open_results(place, ready.record, restart) as folder:
        if folder.is_done():
            folder.discard_parts()
            return folder.results()
        if cluster is None:
            run_here(ready, folder, folder.pending(), workers, progress)
        else:
            run_there(ready, asked, folder, cluster, progress)
        return make_tables(folder)


def _temporary_folder() -> Path:
    """A folder that is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="wdecomp-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
