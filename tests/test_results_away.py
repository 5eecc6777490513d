"""Results in a bucket: the same tables, nothing half written, nothing of others touched."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from uuid import uuid4

import pytest
from builders import low_rank, moved, tiny_llama, write_adapter, write_full
from click.testing import CliRunner

import wdecomp
from wdecomp.cli import commands
from wdecomp.cli import main as run_main
from wdecomp.comparison import asking, compare_share, finish
from wdecomp.errors import ResultsError, UnfinishedError
from wdecomp.remote import retrying
from wdecomp.table import Share, files, join_results, read_results
from wdecomp.table import fetched as fetching

pytest.importorskip("s3fs")
pytest.importorskip("moto")
boto3 = pytest.importorskip("boto3")

Fault = Callable[[str, str, dict[str, Any]], str | None]
NAME = "results"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "very-secret"}


@dataclass
class Bucket:
    """An S3 server on loopback, what it was asked, and what it is to answer instead.

    asked: (method, key) of every request.
    fault: by method, key and environment, "503" or the like in place of the answer.
    """

    client: Any
    folder: str
    asked: list[tuple[str, str]] = field(default_factory=list)
    fault: Fault = lambda *_: None

    @property
    def url(self) -> str:
        return f"s3://{NAME}/{self.folder}/out"

    def objects(self) -> dict[str, bytes]:
        """Everything that is there, by its name in the results folder."""
        asked = {"Bucket": NAME, "Prefix": f"{self.folder}/"}
        listed = self.client.list_objects_v2(**asked).get("Contents", [])
        keys = [each["Key"] for each in listed]
        return {key.removeprefix(f"{self.folder}/out/"): self.get(key) for key in sorted(keys)}

    def get(self, key: str) -> bytes:
        found: bytes = self.client.get_object(Bucket=NAME, Key=key)["Body"].read()
        return found

    def put(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=NAME, Key=f"{self.folder}/out/{name}", Body=content)


class _Server:
    """moto, behind a door that may answer itself."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *_: Any) -> None: ...

        self._moto = DomainDispatcherApplication(create_backend_app)
        self.bucket: Bucket | None = None
        self._lock = Lock()
        self.server = make_server("127.0.0.1", 0, self._answer, True, request_handler=Quiet)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        method, bucket = environ["REQUEST_METHOD"], self.bucket
        key = environ["PATH_INFO"].partition("/out/")[2]
        ours = "boto3" not in environ.get("HTTP_USER_AGENT", "").lower()
        if bucket is not None and ours:
            with self._lock:
                bucket.asked.append((method, key))
                said = bucket.fault(method, key, environ)
            if said is not None:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start(f"{said} Because", [("Content-Length", "0")])
                return [b""]
        return self._moto(environ, start)


@pytest.fixture(scope="module")
def server() -> Iterator[_Server]:
    started = _Server()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in KEYS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", started.url)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield started
    started.server.shutdown()


@pytest.fixture
def bucket(server: _Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """One with an empty folder."""
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.01)
    client = boto3.client("s3", endpoint_url=server.url)
    client.create_bucket(Bucket=NAME)
    server.bucket = Bucket(client, str(uuid4()))
    return server.bucket


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, and `local`, their comparison on this disk."""
    folder = tmp_path_factory.mktemp("made")
    tensors = tiny_llama(2)
    write_full(folder / "base", tensors)
    write_full(folder / "ft", moved(tensors))
    write_adapter(folder / "lora", low_rank(tensors))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wdecomp.scan.plan.UNIT_BYTES", 20_000)
        wdecomp.compare(folder / "base", folder / "ft", folder / "lora", out=folder / "local")
    return folder


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wdecomp.scan.plan.UNIT_BYTES", 20_000)


def _compare(made: Path, out: str, **options: Any) -> wdecomp.Results:
    return wdecomp.compare(made / "base", made / "ft", made / "lora", out=out, **options)


def _local(made: Path) -> dict[str, bytes]:
    folder = made / "local"
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def _said(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert not any(secret in text for secret in KEYS.values())
    assert "/tmp" not in text
    return text


def test_the_objects_are_the_files_of_a_local_folder(made: Path, bucket: Bucket) -> None:
    results = _compare(made, bucket.url)
    assert bucket.objects() == _local(made)
    assert results.place == bucket.url
    units = len(results.run["units"])
    assert units >= 3
    puts = [key for method, key in bucket.asked if method == "PUT"]
    assert len(puts) == len(set(puts)) == units + len(_local(made))
    assert puts[0] == "run.json"
    assert puts[-1] == "DONE.json"
    removed = [key for method, key in bucket.asked if method == "DELETE"]
    assert {key.partition("/")[0] for key in removed} == {"parts"}
    assert len(removed) == units
    assert bucket.asked.index(("PUT", "DONE.json")) < bucket.asked.index(("DELETE", removed[0]))


def test_what_is_read_is_what_was_compared(made: Path, bucket: Bucket) -> None:
    _compare(made, bucket.url)
    bucket.asked.clear()
    there, here = read_results(bucket.url), read_results(made / "local")
    for name in ("modules", "facts", "fits", "left_out"):
        assert getattr(there, name).equals(getattr(here, name))
    assert there.run == here.run
    assert not any(key.startswith("columns/") for _, key in bucket.asked)
    assert there.columns("lora").equals(here.columns("lora"))
    got = {key for method, key in bucket.asked if method == "GET" and "columns" in key}
    assert got == {"columns/lora/final.parquet"}
    with pytest.raises(ResultsError, match="none"):
        there.columns("lora", step=7)
    assert there.place == bucket.url


def test_a_finished_one_is_not_made_again(made: Path, bucket: Bucket) -> None:
    _compare(made, bucket.url)
    bucket.put("parts/000000-0123456789abcdef-0123456789abcdef.arrow", b"of a second writer")
    bucket.asked.clear()
    again = _compare(made, bucket.url)
    assert not [key for method, key in bucket.asked if method == "PUT"]
    assert again.modules.equals(read_results(made / "local").modules)
    assert bucket.objects() == _local(made)
    bucket.client.delete_object(Bucket=NAME, Key=f"{bucket.folder}/out/fits.parquet")
    _compare(made, bucket.url)
    assert bucket.objects() == _local(made)


def test_an_interrupted_run_goes_on_where_it_was(made: Path, bucket: Bucket) -> None:
    def after_two(method: str, key: str, _: Any) -> str | None:
        parts = {k for m, k in bucket.asked if m == "PUT" and k.startswith("parts/")}
        return "403" if method == "PUT" and len(parts) > 2 else None

    bucket.fault = after_two
    with pytest.raises(ResultsError, match="denied") as refused:
        _compare(made, bucket.url, workers=1)
    assert f"{bucket.url}/parts/" in _said(refused)
    names = [name for name in bucket.objects() if name.startswith("parts/")]
    assert len(names) == 2
    with pytest.raises(ResultsError, match="unfinished"):
        read_results(bucket.url)
    checked = CliRunner().invoke(commands, ["check", bucket.url])
    assert checked.exit_code == 0
    assert "only the 2 finished units of work were checked" in checked.output
    bucket.fault = lambda *_: None
    bucket.asked.clear()
    units = len(_compare(made, bucket.url).run["units"])
    assert bucket.objects() == _local(made)
    put = {key for method, key in bucket.asked if method == "PUT" and key.startswith("parts/")}
    assert len(put) == units - 2
    assert not put & set(names)


@pytest.mark.parametrize("cut", ["modules.parquet", "DONE.json", "DELETE"])
def test_killed_at_any_step_the_same_command_ends_with_the_same_objects(
    cut: str, made: Path, bucket: Bucket
) -> None:
    code = (
        "import os, sys, wdecomp, wdecomp.scan.plan as plan\n"
        "from wdecomp.remote.store import Store\n"
        "plan.UNIT_BYTES = 20_000\n"
        "cut, put, remove = sys.argv[1], Store.put, Store.remove\n"
        "def killed(self, name, *more, **options):\n"
        "    put(self, name, *more, **options)\n"
        "    if cut in name: os._exit(9)\n"
        "def removing(self, name):\n"
        "    if cut == 'DELETE': os._exit(9)\n"
        "    remove(self, name)\n"
        "Store.put, Store.remove = killed, removing\n"
        "base, ft, lora, out = sys.argv[2:]\n"
        "wdecomp.compare(base, ft, lora, out=out, workers=1)\n"
    )
    paths = [str(made / name) for name in ("base", "ft", "lora")]
    command = [sys.executable, "-c", code, cut, *paths, bucket.url]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert done.returncode == 9, done.stderr
    assert bucket.objects() != _local(made)
    assert ("DONE.json" in bucket.objects()) == (cut in ("DONE.json", "DELETE"))
    _compare(made, bucket.url)
    assert bucket.objects() == _local(made)


def test_a_server_that_is_busy_is_asked_again(made: Path, bucket: Bucket) -> None:
    def thrice(method: str, key: str, _: Any) -> str | None:
        return "503" if method == "PUT" and bucket.asked.count((method, key)) <= 3 else None

    bucket.fault = thrice
    _compare(made, bucket.url)
    assert bucket.objects() == _local(made)
    assert bucket.asked.count(("PUT", "modules.parquet")) == 4


def test_one_that_stays_busy_is_named_in_a_line(made: Path, bucket: Bucket) -> None:
    bucket.fault = lambda method, key, _: "503" if method == "PUT" and "mod" in key else None
    with pytest.raises(ResultsError, match="503") as refused:
        _compare(made, bucket.url)
    assert _said(refused).startswith(f"{bucket.url}/modules.parquet: cannot be written")
    bucket.fault = lambda *_: None
    _compare(made, bucket.url)
    assert bucket.objects() == _local(made)


def test_another_plan_is_refused_and_restart_replaces(made: Path, bucket: Bucket) -> None:
    _compare(made, bucket.url)
    before = bucket.objects()
    with pytest.raises(ResultsError, match=r"another run \(options differ\)") as refused:
        _compare(made, bucket.url, columns="none")
    assert _said(refused).startswith(bucket.url)
    assert bucket.objects() == before
    bucket.fault = lambda *asked: "403" if asked[:2] == ("DELETE", "DONE.json") else None
    with pytest.raises(ResultsError, match="denied"):
        _compare(made, bucket.url, columns="none", restart=True)
    assert bucket.objects() == before  # DONE.json goes before a table that it lists
    bucket.fault = lambda *_: None
    _compare(made, bucket.url, columns="none", restart=True)
    after = bucket.objects()
    assert after.keys() == {name for name in before if not name.startswith("columns/")}
    assert json.loads(after["run.json"])["options"]["columns"] == []


@pytest.mark.parametrize("conditional", [True, False])
def test_of_two_that_begin_at_once_with_other_plans_one_is_refused(
    conditional: bool, made: Path, bucket: Bucket
) -> None:
    other = json.loads((made / "local" / "run.json").read_bytes()) | {"options": {"axes": []}}

    def sneak_in(method: str, key: str, environ: dict[str, Any]) -> None:
        if key == "run.json" and method == "PUT" and conditional:
            bucket.put("run.json", files.canonical(other))  # just before ours
        if ("PUT", "run.json") in bucket.asked and method == "HEAD" and not conditional:
            bucket.put("run.json", files.canonical(other))  # over ours
        if not conditional:
            environ.pop("HTTP_IF_NONE_MATCH", None)

    bucket.fault = sneak_in
    with pytest.raises(ResultsError, match="another run"):
        _compare(made, bucket.url)
    assert json.loads(bucket.objects()["run.json"]) == other
    assert not any(name.startswith("parts/") for name in bucket.objects())


def test_what_is_not_ours_is_refused_and_stays(made: Path, bucket: Bucket) -> None:
    bucket.put("weights/model.safetensors", b"precious")
    bucket.put("notes.txt", b"mine")
    before = bucket.objects()
    for restart in (False, True):
        with pytest.raises(ResultsError, match="no result of wdecomp") as refused:
            _compare(made, bucket.url, restart=restart)
        assert "notes.txt" in _said(refused)
    bucket.put("run.json", b'{"name": "another program"}')
    with pytest.raises(ResultsError, match=r"run\.json"):
        _compare(made, bucket.url, restart=True)
    assert bucket.objects() == before | {"run.json": b'{"name": "another program"}'}
    assert not [key for method, key in bucket.asked if method in ("PUT", "DELETE")]


def test_neighbours_whose_name_begins_alike_are_not_ours(made: Path, bucket: Bucket) -> None:
    beside = f"{bucket.folder}/out-2/notes.txt"
    bucket.client.put_object(Bucket=NAME, Key=beside, Body=b"mine")
    _compare(made, bucket.url)
    _compare(made, bucket.url, columns="none", restart=True)
    assert bucket.get(beside) == b"mine"


def test_parts_by_several_processes_make_one_result(made: Path, bucket: Bucket) -> None:
    asked = asking(made / "base", made / "ft", made / "lora")
    shares = [compare_share(Share(i, 3), asked, bucket.url, workers=1) for i in (2, 0)]
    assert shares[-1].left
    plan = json.loads(bucket.objects()["run.json"])
    joined = join_results(bucket.url, plan)
    assert joined.place == bucket.url
    assert [unit for unit in range(shares[0].units) if not joined.has(unit)] == joined.pending()
    assert tuple(joined.pending()) == shares[-1].left
    with pytest.raises(ResultsError, match="another run"):
        join_results(bucket.url, plan | {"schema": 0})
    with pytest.raises(UnfinishedError, match="units of work are not done"):
        finish(bucket.url)
    last = compare_share(Share(1, 3), asked, bucket.url, workers=1)
    assert not last.left
    assert finish(bucket.url).place == bucket.url
    assert bucket.objects() == _local(made)
    assert finish(bucket.url).modules.equals(read_results(made / "local").modules)


def test_a_part_that_rotted_is_removed_and_made_again(made: Path, bucket: Bucket) -> None:
    asked = asking(made / "base", made / "ft", made / "lora")
    compare_share(Share(0, 1), asked, bucket.url, workers=1)
    name = next(name for name in bucket.objects() if name.startswith("parts/"))
    bucket.put(name, b"rotten")
    with pytest.raises(ResultsError, match="has changed since it was written") as refused:
        finish(bucket.url)
    assert f"{bucket.url}/{name}" in _said(refused)
    assert name not in bucket.objects()
    _compare(made, bucket.url)
    assert bucket.objects() == _local(made)


def test_two_that_finish_at_once_end_with_the_same_objects(made: Path, bucket: Bucket) -> None:
    asked = asking(made / "base", made / "ft", made / "lora")
    compare_share(Share(0, 1), asked, bucket.url, workers=1)
    real, ran = fetching.Away.fetch, []

    def other_first(self: Any, name: str, into: Path) -> bool:
        if name.startswith("parts/") and not ran:
            ran.append(name)
            finish(bucket.url)
        return real(self, name, into)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching.Away, "fetch", other_first)
        found = finish(bucket.url)
    assert ran
    assert found.modules.equals(read_results(made / "local").modules)
    assert bucket.objects() == _local(made)


def test_a_damaged_object_is_named(made: Path, bucket: Bucket) -> None:
    _compare(made, bucket.url)
    for name in ("modules.parquet", "DONE.json", "run.json"):
        before = bucket.objects()[name]
        content = bytearray(before)
        content[len(content) // 2] ^= 4
        bucket.put(name, bytes(content))
        with pytest.raises(ResultsError) as refused:
            read_results(bucket.url)
        assert f"{bucket.url}/{name}" in _said(refused)
        bucket.put(name, before)


def test_done_json_leads_nowhere_else(made: Path, bucket: Bucket) -> None:
    _compare(made, bucket.url)
    done = json.loads(bucket.objects()["DONE.json"])
    for name in ("../../escaped", "/etc/escaped", "columns/../../x", "columns/a\0b"):
        more = {"sha256": done["sha256"] | {name: "0" * 64}}
        bucket.put("DONE.json", json.dumps(more).encode())
        bucket.asked.clear()
        with pytest.raises(ResultsError, match="is not what was written"):
            read_results(bucket.url)
        keys = {key for method, key in bucket.asked if method == "GET"}
        assert keys <= {"run.json", "DONE.json"}


def test_a_full_disk_here_is_named_and_not_the_bucket(
    made: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.sync

    def full(path: Path) -> None:
        if "parts" in str(path):
            raise OSError(28, "No space left on device")
        real(path)

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(ResultsError, match="No space left on device") as refused:
        _compare(made, bucket.url)
    assert str(refused.value).startswith(tempfile.gettempdir())


def test_commands_read_results_at_a_url(made: Path, bucket: Bucket, tmp_path: Path) -> None:
    _compare(made, bucket.url)
    run = CliRunner().invoke
    report, picture = tmp_path / "report.html", tmp_path / "a.svg"
    assert run(commands, ["report", bucket.url, "-o", str(report)]).exit_code == 0
    assert "Made from out by wdecomp" in report.read_text()
    drawn = run(commands, ["plot", bucket.url, "--figure", "heatmap", "-o", str(picture)])
    assert drawn.exit_code == 0, drawn.output
    for command in (["export", "--table", "columns"], ["audit"], ["export", "--table", "fits"]):
        there, here = (
            run(commands, [command[0], place, *command[1:]]).output
            for place in (bucket.url, str(made / "local"))
        )
        assert there == here
    finished = run(commands, ["finish", bucket.url])
    assert f"{bucket.url}: was finished already" in finished.output


def test_check_names_the_object_that_rotted(made: Path, bucket: Bucket) -> None:
    _compare(made, bucket.url)
    good = CliRunner().invoke(commands, ["check", bucket.url, "--inputs"])
    assert good.exit_code == 0
    assert f"{bucket.url}: {len(_local(made)) - 1} files of its results" in good.output
    content = bytearray(bucket.objects()["columns/ft/final.parquet"])
    content[50] ^= 4
    bucket.put("columns/ft/final.parquet", bytes(content))
    bad = CliRunner().invoke(commands, ["check", bucket.url, "-q"])
    assert bad.exit_code == 3
    assert f"{bucket.url}/columns/ft/final.parquet: is not what was written" in bad.output
    assert "/tmp" not in bad.output


def test_view_shows_a_copy(made: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("streamlit")
    _compare(made, bucket.url)
    ran: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: ran.append(command))
    assert CliRunner().invoke(commands, ["view", bucket.url, "--no-open"]).exit_code == 0
    copy = Path(ran[0][-1])
    assert {str(f.relative_to(copy)) for f in copy.rglob("*") if f.is_file()} == set(_local(made))
    assert copy.name == "out"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://no-such-bucket/out", "no such file"),
        ("hf://org/name/out", "cannot be written"),
        ("https://127.0.0.1:1/out", "cannot be written"),
        ("ftp://host/out", "not understood"),
        ("simplecache::s3://bucket/out", "not understood"),
    ],
)
def test_places_that_cannot_be_are_one_line(
    url: str, said: str, made: Path, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", *(str(made / name) for name in ("base", "ft")), "--out", url]
    with pytest.raises(SystemExit) as ended:
        run_main(arguments)
    assert ended.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_without_credentials_there_is_one_line(made: Path, server: _Server) -> None:
    hidden = {"AWS_CONFIG_FILE": "/nowhere", "AWS_SHARED_CREDENTIALS_FILE": "/nowhere"}
    hidden |= {"AWS_EC2_METADATA_DISABLED": "true"}
    environment = {k: v for k, v in os.environ.items() if k not in KEYS} | hidden
    paths = [str(made / "base"), str(made / "ft")]
    command = [sys.executable, "-m", "wdecomp", "compare", *paths, "-o", "s3://some-bucket/out"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "credentials" in done.stderr
