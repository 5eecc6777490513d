"""Malformed inputs: one line that names file and tensor or field, exit 1, in time, and no more."""

import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from builders import moved, tiny_llama, write_full
from malformed import CASES, base

from wdecomp.cli import main

opened: list[Path] = []  # by open(), whatever opens; filled by an audit hook, which stays for good


@pytest.fixture
def opens() -> Iterator[list[Path]]:
    """What this process opens meanwhile."""
    if not hasattr(sys, "_wdecomp_opens"):
        sys.addaudithook(_remember)
        sys._wdecomp_opens = True  # type: ignore[attr-defined]
    opened.clear()
    yield opened
    opened.clear()


def _remember(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str | bytes):
        opened.append(Path(os.fsdecode(arguments[0])))


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 200


@pytest.mark.parametrize("name", CASES)
def test_a_malformed_input_is_one_line_that_names_it(
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    opens: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make, named = CASES[name]
    whole, secret = base(tmp_path), tmp_path / "secret.safetensors"
    secret.write_bytes((whole / "model.safetensors").read_bytes())
    bad = make(tmp_path)
    monkeypatch.setattr(socket, "socket", mock.Mock(side_effect=AssertionError("a connection")))
    before = sorted(tmp_path.rglob("*"))
    start = time.perf_counter()
    opens.clear()
    with pytest.raises(SystemExit) as stopped:
        main(["compare", str(whole), str(bad), "-q", "-o", str(tmp_path / "out")])
    read = [path.absolute() for path in opens]
    assert time.perf_counter() - start < 10
    out, err = capsys.readouterr()
    assert stopped.value.code == 1
    assert out == ""
    assert err.startswith("wdecomp: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert "mistake of its own" not in err
    assert len(err) < 2000
    for word in named:
        assert re.search("|".join(map(re.escape, word.split("|"))), err), (word, err)
    assert str(tmp_path) in err or str(bad) in err
    left = [p for p in sorted(tmp_path.rglob("*")) if p not in before and p.name != ".lock"]
    assert [p for p in left if p.name != "out"] == []
    assert not list(tmp_path.rglob("ran"))
    assert Path("/etc/passwd") not in read
    assert secret not in read


def test_what_is_opened_is_seen(tmp_path: Path, opens: list[Path]) -> None:
    """Else it would prove nothing that a secret is not among it."""
    main(["inspect", str(base(tmp_path)), str(write_full(tmp_path / "ft", moved(tiny_llama(1))))])
    assert {tmp_path / name / "model.safetensors" for name in ("base", "ft")} <= set(opens)
