"""Parts of the work in processes of their own, of which each trusts only the results folder."""

import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import power_cuts
import pytest
from builders import low_rank, moved, tiny_llama, write_adapter, write_full
from power_cuts import contents

import wdecomp
from wdecomp import comparison
from wdecomp.cli import main
from wdecomp.errors import ResultsError
from wdecomp.table import Share, share_folder, shares

COMMAND = """
import sys, time
from wdecomp.cli import main
from wdecomp.scan import engine, plan
plan.UNIT_BYTES = 1
scan, slow, count = engine.scan_unit, float(sys.argv.pop(1)), []
def told(*arguments):
    count.append(0)
    if len(count) == 2:  # its first unit is committed: there is one thread
        print("ready", flush=True)
        time.sleep(slow)
    return scan(*arguments)
engine.scan_unit = told
main(sys.argv[1:])
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tensors = tiny_llama(2)
    write_full(tmp_path / "base", tensors)
    write_full(tmp_path / "ft", moved(tensors))
    write_adapter(tmp_path / "lora", low_rank(tensors))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wdecomp.scan.plan.UNIT_BYTES", 1)
    wdecomp.compare("base", "ft", "lora", out="whole", columns="both", checksums=True)
    return tmp_path


def _words(part: str, out: str = "out") -> list[str]:
    words = ["compare", "base", "ft", "lora", "-q", "-o", out, "--columns", "both", "--checksums"]
    return [*words, "--part", part, "-j", "1"]


@contextmanager
def _begun(*words: str, slow: float = 0.0) -> Iterator["subprocess.Popen[str]"]:
    """A command in a process of its own, which waits after its first unit for so long."""
    command, pipe = [sys.executable, "-c", COMMAND, str(slow), *words], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _until_ready(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def _run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """The command's exit code, and what it says on stdout and stderr."""
    code = 0
    try:
        main(words)
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    return code, *capsys.readouterr()


def test_three_at_once_one_of_them_killed_and_repeated_make_the_tables_of_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        _begun(*_words("2/3")) as third,
        _begun(*_words("0/3"), slow=60) as first,
        _begun(*_words("1/3")) as second,
    ):
        _until_ready(first)
        first.kill()
        for process in (third, second):
            _, err = process.communicate(timeout=60)
            assert (process.returncode, err) == (0, "")
    code, out, err = _run(capsys, "finish", "out")
    assert (code, out) == (75, "")
    assert err == (
        "wdecomp: out: 2 of 8 units of work are not done. Run again: --part 0/3, then "
        "`wdecomp finish` again.\n"
    )
    code, out, err = _run(capsys, *_words("0/3"))
    assert (code, err) == (0, "")
    assert out == (
        "Part 0/3: its 3 units of work are done, 2 of them now.\n"
        "All 8 units are done. Now: wdecomp finish out\n"
    )
    assert not (folder / "out" / "DONE.json").exists()
    for name in ("base", "ft", "lora"):
        shutil.rmtree(folder / name)  # only the folder is needed from now on
    code, said, err = _run(capsys, "finish", "out")
    assert (code, err) == (
        0,
        "Wrote out/: modules, fits and facts as Parquet, columns/, run.json.\n",
    )
    assert contents(folder / "out") == contents(folder / "whole")
    assert _run(capsys, "finish", "out") == (0, said, "out: was finished already.\n")


@pytest.mark.parametrize("order", ["012", "210", "120"])
def test_in_any_order_each_says_what_is_left(
    order: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = {"0/3", "1/3", "2/3"}
    for index in order:
        code, out, _ = _run(capsys, *_words(f"{index}/3"), "--json")
        left.remove(f"{index}/3")
        assert code == 0
        assert json.loads(out)["parts_left"] == sorted(left)
    assert json.loads(_run(capsys, "finish", "out", "--json")[1])["summary"][0]["run"] == "ft"
    assert contents(folder / "out") == contents(folder / "whole")


def test_one_process_a_part_and_none_makes_tables_meanwhile(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with _begun(*_words("0/2"), slow=60) as first:
        _until_ready(first)
        draft = folder / "out" / "parts" / f"000000-x.tmp-{first.pid}-0123abcd"
        draft.write_text("what the first is writing")
        start = time.monotonic()
        code, _, err = _run(capsys, "compare", "gone", "ft", "-o", "out", "--part", "0/2")
        assert time.monotonic() - start < 1
        assert (code, err) == (1, "wdecomp: out: another wdecomp is doing --part 0/2 there.\n")
        for words in (["finish", "out"], ["compare", "base", "ft", "-o", "out", "-q"]):
            code, _, err = _run(capsys, *words)
            assert (code, err) == (1, "wdecomp: out: another wdecomp is writing there.\n")
        assert _run(capsys, *_words("1/2"))[0] == 0
        assert draft.exists()
    assert _run(capsys, *_words("0/2"))[0] == 0
    assert _run(capsys, "finish", "out")[0] == 0
    assert contents(folder / "out") == contents(folder / "whole")


def test_a_part_of_another_plan_is_refused_by_what_differs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(capsys, *_words("0/2"))[0] == 0
    words = _words("1/2")
    before = contents(folder / "out")
    code, _, err = _run(capsys, *[str(folder / w) if w == "base" else w for w in words])
    assert code == 1
    assert err.startswith("wdecomp: out: other parts have another plan (base.path is 'base' there ")
    assert f"and '{folder / 'base'}' here" in err
    assert err.count("\n") == 1
    code, _, err = _run(capsys, *[w for w in words if w != "lora"])
    assert (code, "(runs is 2 entries there and 1 entries here" in err) == (1, True)
    assert {n: c for n, c in contents(folder / "out").items() if "lock" not in n} == {
        n: c for n, c in before.items() if "lock" not in n
    }


def test_of_several_that_come_first_one_writes_the_plan(tmp_path: Path) -> None:
    for trial in range(30):
        out, together = tmp_path / str(trial), threading.Barrier(6)
        said: list[str] = []
        held: list[str] = []

        def begin(
            index: int,
            out: Path = out,
            together: threading.Barrier = together,
            said: list[str] = said,
            held: list[str] = held,
        ) -> None:
            together.wait()
            mark = "ab"[index % 2]
            try:
                with share_folder(out, power_cuts.plan(mark), Share(index, 6)):
                    held.append(mark)
                    together.wait(timeout=10)
            except ResultsError as error:
                said.append(str(error))
                with contextlib.suppress(threading.BrokenBarrierError):
                    together.wait(timeout=10)

        threads = [threading.Thread(target=begin, args=[index]) for index in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        mark = json.loads((out / "run.json").read_bytes())["wdecomp"]
        assert held == [mark] * 3
        assert len(said) == 3
        assert all("other parts have another plan (wdecomp is " in line for line in said)
        assert sorted(path.name for path in out.iterdir()) == [".lock", "parts", "run.json"]


def test_where_the_disk_knows_no_links_the_plan_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(shares.os, "link", none)
    with share_folder(tmp_path / "out", power_cuts.plan("a"), Share(0, 2)) as opened:
        assert opened.pending() == [0, 1, 2]
    assert json.loads((tmp_path / "out" / "run.json").read_bytes())["wdecomp"] == "a"
    assert not list(tmp_path.rglob("*.tmp-*"))


def test_what_has_rotted_of_ones_own_is_done_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("0/2", "1/2"):
        assert _run(capsys, *_words(part))[0] == 0
    mine, others = sorted((folder / "out" / "parts").glob("0*.arrow"))[2:4]
    for file in (mine, others):
        file.write_bytes(file.read_bytes()[:-9])
    assert "4 units of work are done, 1 of them now" in _run(capsys, *_words("0/2"))[1]
    assert others.exists()  # whoever does that part may be writing it again
    code, _, err = _run(capsys, "finish", "out")
    assert (code, "1 of 8 units of work are not done. Run again: --part 1/2" in err) == (75, True)
    assert _run(capsys, *_words("1/2"))[0] == 0
    assert _run(capsys, "finish", "out")[0] == 0
    assert contents(folder / "out") == contents(folder / "whole")


def test_whoever_asks_sees_a_part_that_another_has_made(tmp_path: Path) -> None:
    plan = power_cuts.plan("a")
    with (
        share_folder(tmp_path, plan, Share(0, 2)) as one,
        share_folder(tmp_path, plan, Share(1, 2)) as other,
    ):
        assert not other.has(2)
        one.commit(2, power_cuts.part(2))
        assert other.has(2)
        assert other.pending() == [0, 1, 2]
        other.look()
        assert other.pending() == [0, 1]
        (part,) = (tmp_path / "parts").glob("*.arrow")
        part.write_bytes(b"rotten")
        assert not other.has(2)


def test_a_part_of_what_is_finished_has_nothing_to_do(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(folder / "whole")
    code, out, _ = _run(capsys, *_words("0/2", "whole"))
    assert (code, out.splitlines()[-1]) == (0, "All 8 units are done. Now: wdecomp finish whole")
    assert _run(capsys, "finish", "whole", "-q")[0] == 0
    assert contents(folder / "whole") == before


def test_a_run_goes_on_as_one_process_or_as_parts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(capsys, *_words("1/3"))[0] == 0
    wdecomp.compare("base", "ft", "lora", out="out", columns="both", checksums=True)
    assert contents(folder / "out") == contents(folder / "whole")
    assert _run(capsys, *_words("3/5", "again"))[0] == 0
    for part in ("1/2", "0/2"):  # shared out in another way
        assert _run(capsys, *_words(part, "again"))[0] == 0
    assert _run(capsys, "finish", "again")[0] == 0
    assert contents(folder / "again") == contents(folder / "whole")


def test_finish_refuses_what_it_cannot_finish_as_it_was_begun(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "empty").mkdir()
    code, _, err = _run(capsys, "finish", "empty")
    assert (code, err[:32]) == (1, "wdecomp: empty: holds no results")
    record = json.loads((folder / "whole" / "run.json").read_bytes())
    for changed, said in (
        ({"units": []}, "holds no comparison"),
        ({"versions": None}, "holds no comparison"),
        ({"schema": 0}, "has schema 0"),
        ({"versions": record["versions"] | {"numpy": "1.0"}}, "was compared with numpy 1.0, here"),
    ):
        out = folder / said.split()[1]
        out.mkdir(exist_ok=True)
        (out / "run.json").write_text(json.dumps(record | changed))
        code, _, err = _run(capsys, "finish", str(out))
        assert code == 1
        assert err.startswith(f"wdecomp: {out}: {said}")
        assert err.count("\n") == 1


def test_what_makes_no_sense_with_a_part_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("3/3", "0/0", "-1/3", "1", "1/3/5", "a/b"):
        code, _, err = _run(capsys, *_words(part))
        assert (code, f"'{part}' is no part, expected one of 0/N, 1/N" in err) == (2, True)
    code, _, err = _run(capsys, *_words("0/3"), "--restart")
    assert (code, "would remove what other parts have done" in err) == (2, True)
    assert not (folder / "out").exists()


def test_units_do_not_depend_on_how_they_are_shared_out() -> None:
    numbers = range(17)
    for count in (1, 3, 17, 20):
        parts = [Share(index, count).of(numbers) for index in range(count)]
        assert sorted(unit for part in parts for unit in part) == list(numbers)
    known: list[Any] = [Share(0, 3), Share(1, 3)]
    assert list(map(str, comparison.missing_shares(known, [4, 5, 7]))) == ["1/3", "2/3"]
    assert comparison.missing_shares([*known, Share(0, 2)], [4]) == []
