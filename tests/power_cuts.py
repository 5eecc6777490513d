"""Simulated power cuts while results are made.

    python tests/power_cuts.py [--cuts 1500] [--seed 0] [--without fsync-file|fsync-folder|rename]

Records what a run of three units does to its disk, lets the power fail after any of these changes
with what was not flushed lost or kept by chance, and lets the next run go on from there. Prints how
many cuts there were and what was wrong. Nothing is to be wrong, unless one of the three steps on
which the argument rests is taken out.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
from disk import Change, Disk, watched

from wdecomp.table import ColumnGroup, Part, Results, open_folder
from wdecomp.table.schema import FITS

UNITS = 3
WITHOUT = ("fsync-file", "fsync-folder", "rename")
ACKNOWLEDGED = "acknowledged"


def plan(mark: str) -> dict[str, Any]:
    """run.json of a small run; another mark is another plan."""
    return {
        "wdecomp": mark,
        "schema": 1,
        "options": {"axes": ["output"], "columns": ["output"]},
        "base": {},
        "runs": [{"run": "ft", "step": None}, {"run": "lora", "step": 7}],
        "units": [[f"layers.{i}.weight"] for i in range(UNITS)],
        "notes": [],
        "left_out": [],
    }


def part(unit: int) -> Part:
    """What a unit finds: the same whenever it is done."""
    figures = np.random.default_rng(unit).random((3, 300))
    found = Part()
    for run, step in (("ft", None), ("lora", 7)):
        where = {"run": run, "step": step, "parameter": f"layers.{unit}.weight"}
        found.modules.append(where | {"axis": "output", "delta_direction": float(figures[0, 0])})
        found.facts.append(where | {"norm_base": float(figures[1, 0])})
        found.columns.append(
            ColumnGroup(run, step, where["parameter"], "output", np.arange(300), *figures)
        )
    return found


def work(
    folder: Path,
    told: Callable[[int], None] = lambda _: None,
    mark: str = "new",
    restart: bool = False,
) -> None:
    """The run: every unit that is missing, then the tables."""
    with open_folder(folder, plan(mark), restart) as opened:
        if opened.is_done():
            opened.discard_parts()
            return
        for unit in opened.pending():
            if unit == 1:  # as threads do it; the others as workers of a cluster
                opened.draft(unit, part(unit))()
            else:
                opened.commit(unit, part(unit))
            told(unit)
        opened.finish(fits)


def fits(results: Results) -> pd.DataFrame:
    """Statistics that tell other modules apart."""
    frame = pd.DataFrame(columns=FITS.names, index=[0])
    frame["value"] = results.modules["delta_direction"].sum()
    return frame.astype({"n": "Int64", "low": float, "high": float, "value": float})


@dataclass
class Found:
    """How many cuts there were, and what was wrong after them."""

    cuts: int
    wrong: list[str]


def cut_power(folder: Path, cuts: int, seed: int, before: str | None = None) -> Found:
    """Lets the power fail so many times, each time in a run of its own.

    Args:
        folder: for scratch files.
        cuts: how often.
        seed: of what is lost.
        before: the mark of a finished run that is replaced by --restart; None for none.
    """
    with mock.patch.object(os, "fsync"):  # the disk is simulated: nobody waits for a real one
        return _cut_power(folder, cuts, random.Random(seed), before)


def _cut_power(folder: Path, cuts: int, dice: random.Random, before: str | None) -> Found:
    found = Found(0, [])
    work(folder / "whole")
    whole = contents(folder / "whole")
    reference_parts = _parts(folder)
    changes: list[Change] = []
    with watched(folder / "run", changes.append):
        if before is not None:
            work(folder / "run", mark=before)
            changes.append(Change("restart", ""))
        acknowledge = _acknowledging(changes)
        work(folder / "run", acknowledge, restart=before is not None)
    first = next((i for i, c in enumerate(changes) if c.kind == "restart"), 0)
    for i in range(cuts):
        until = dice.randint(first, len(changes))
        out = folder / f"cut-{i}"
        Disk(changes[:until], dice, in_order=bool(i % 2)).lay_out(out)
        found.cuts += 1
        wrong = _look(out, changes[:until], whole, reference_parts)
        if not wrong and i % 5 == 0:  # the power fails once more, while the next run goes on
            again: list[Change] = _as_found(out)
            sure = len(again)
            with watched(out, again.append):
                wrong += _go_on(out, before, _acknowledging(again))
            until = dice.randint(sure, len(again))
            shutil.rmtree(out)
            Disk(again[:until], dice, in_order=bool(i % 2)).lay_out(out)
            found.cuts += 1
            wrong += _look(out, again[:until], whole, reference_parts)
        wrong += _go_on(out, before) or ([] if contents(out) == whole else ["the tables differ"])
        found.wrong += [f"cut {i} after change {until}: {what}" for what in wrong]
        shutil.rmtree(out)
    return found


def _go_on(
    out: Path, before: str | None, told: Callable[[int], None] = lambda _: None
) -> list[str]:
    """The run after the cut; says so where it fails."""
    try:
        work(out, told, restart=before is not None and _old(out))
    except Exception as error:  # noqa: BLE001  whatever it is, it is what we look for
        return [f"the next run failed: {error}"]
    return []


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but its lock, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def _acknowledging(changes: list[Change]) -> Callable[[int], None]:
    return lambda unit: changes.append(Change(ACKNOWLEDGED, str(unit)))


def _parts(folder: Path) -> dict[str, bytes]:
    """What every part holds, by name, from a run that is interrupted before its tables."""
    with open_folder(folder / "parts-only", plan("new"), False) as opened:
        for unit in opened.pending():
            opened.commit(unit, part(unit))
    return contents(folder / "parts-only" / "parts")


def _look(
    out: Path, changes: list[Change], whole: dict[str, bytes], parts: dict[str, bytes]
) -> list[str]:
    """What is wrong with what a power cut has left, before anybody repairs it."""
    there = contents(out)
    wrong = []
    found = {name.removeprefix("parts/"): c for name, c in there.items() if "parts/" in name}
    for name, content in found.items():
        if ".tmp-" not in name and name in parts and content != parts[name]:
            wrong.append(f"{name} is there and is not what was written")
    done = there.get("DONE.json") == whole["DONE.json"]
    acknowledged = {int(c.name) for c in changes if c.kind == ACKNOWLEDGED}
    lost = [unit for unit in acknowledged if not any(n.startswith(f"{unit:06d}-") for n in found)]
    if done and there.get("run.json") == whole["run.json"]:
        missing = [name for name, content in whole.items() if there.get(name) != content]
        wrong += [f"DONE.json is there, {name} is not what it says" for name in missing]
    elif lost:
        wrong.append(f"{len(lost)} acknowledged units are lost")
    return wrong


def _old(out: Path) -> bool:
    """Whether the plan that is there is the one that is to be replaced."""
    record = out / "run.json"
    return record.exists() and b'"old"' in record.read_bytes()


def _as_found(out: Path) -> list[Change]:
    """Durable changes that make a folder as it is."""
    changes = []
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_dir():
            changes.append(Change("mkdir", name))
        else:
            changes += [Change("create", name), Change("write", name, content=path.read_bytes())]
            changes.append(Change("fsync", name))
    folders = [".", *(c.name for c in changes if c.kind == "mkdir")]
    return [*changes, *(Change("fsync", name) for name in folders)]


@contextmanager
def without(step: str | None) -> Iterator[None]:
    """The code without one of the steps that make a commit safe."""
    from wdecomp.table import files

    sync = files.sync
    if step is None:
        yield
    elif step == "rename":

        def in_place(aim: Path, write: Callable[[Path], None], named: Any, *_: Any) -> Path:
            files.make_folder(aim.parent)
            aside = Path(tempfile.mkdtemp()) / aim.name
            write(aside)
            target = named(aside).name
            target = aim.with_name(target)
            target.write_bytes(aside.read_bytes())
            files.sync(target)
            files.sync(target.parent)
            shutil.rmtree(aside.parent)
            return target

        with mock.patch.object(files, "_commit", in_place):
            yield
    else:
        folders = step == "fsync-folder"

        def some(path: Path) -> None:
            if path.is_dir() != folders:
                sync(path)

        with mock.patch.object(files, "sync", some):
            yield


def main() -> None:
    """As the module's own docstring says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cuts", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", choices=WITHOUT)
    options = parser.parse_args()
    total, wrong = 0, []
    for before in (None, "old"):
        with tempfile.TemporaryDirectory() as scratch, without(options.without):
            found = cut_power(Path(scratch), options.cuts // 2, options.seed, before)
        total, wrong = total + found.cuts, wrong + found.wrong
    print(f"{total} power cuts, {len(wrong)} wrong.")
    for what in wrong[:10]:
        print(f"- {what}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
