"""What is elsewhere is compared as if it were here: the same tables, whatever server gives it."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest
import torch
from builders import moved, tiny_llama, write_full
from safetensors.torch import load_file
from servers.folders import TOKEN, Servers, served, small_folders
from servers.hub import Hub, commit
from servers.web import Handler

import wdecomp
from wdecomp.cli import main
from wdecomp.errors import CheckpointError
from wdecomp.inputs import parse_tuned
from wdecomp.table import Results

KINDS = ("http", "s3", "hf")
NAMES = ("org/base", "org/ft", "org/lora")


servers = served(small_folders)


@pytest.fixture(autouse=True)
def calm(servers: Servers) -> None:
    servers.calm()


@pytest.fixture(scope="module")
def here(servers: Servers) -> Results:
    """The comparison of the folders on this disk."""
    return _compared(*(str(servers.root / name) for name in NAMES))


def _compared(*paths: str, **options: Any) -> Results:
    return wdecomp.compare(*paths, columns="both", **options)


def _assert_same(found: Results, expected: Results) -> None:
    for name in ("modules", "facts", "fits"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(expected, name))
    one, other = (
        {str(f.parent.name): f.read_bytes() for f in _columns(r)} for r in (found, expected)
    )
    assert one
    assert one == other


def _columns(results: Results) -> list[Path]:
    return sorted((results.path / "columns").rglob("*.parquet"))


@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_those_of_the_same_files_here(
    servers: Servers, here: Results, kind: str
) -> None:
    found = _compared(*(servers.url(kind, name) for name in NAMES), workers=2)
    _assert_same(found, here)


def test_kinds_can_be_mixed_with_what_is_here(servers: Servers, here: Results) -> None:
    base, tuned = servers.url("hf", "org/base"), servers.url("s3", "org/ft")
    _assert_same(_compared(base, tuned, str(servers.root / "org/lora")), here)


def test_labels_steps_and_files_of_urls(servers: Servers) -> None:
    url = servers.url("s3", "org/run")
    (run,) = parse_tuned(url)
    assert (run.name, [step for step, _ in run.steps]) == ("run", [10, 20])
    (named,) = parse_tuned(f"mine:lora={url}/checkpoint-10")
    assert (named.name, named.method, named.steps[0][0]) == ("mine", "lora", 10)
    (alone,) = parse_tuned(f"{url}/checkpoint-20/")
    assert alone.name == "run"
    (file,) = parse_tuned(servers.url("http", "org/ft/model.safetensors"))
    assert file.name == "model"


def test_a_repository_is_pinned_to_its_commit_and_named_without_it(servers: Servers) -> None:
    at = commit(servers.root / "org/ft")
    found = _compared(servers.url("hf", "org/base"), f"{servers.url('hf', 'org/ft')}@main")
    (run,) = found.run["runs"]
    assert run["run"] == "ft"
    assert run["path"] == f"hf://org/ft@{at}"
    assert run["shards"][0]["file"] == f"hf://org/ft@{at}/model.safetensors"
    assert run["shards"][0]["sample_sha256"]  # what the hub knows the content by


def test_a_name_on_the_hub_needs_no_url(
    servers: Servers, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main(["compare", "-q", "org/base", "org/ft", "-o", str(tmp_path / "out")])
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[0] for line in said if "hub" in line] == ["org/base:", "org/ft:"]
    assert Results(tmp_path / "out").run["base"]["path"].startswith("hf://org/base@")


def test_a_folder_here_goes_before_the_hub(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(servers.root)
    found = _compared("org/base", "org/ft")
    assert found.run["base"]["path"] == "org/base"
    with pytest.raises(CheckpointError, match=r"org/none: there is no such file or folder\.$"):
        _compared("org/base", "org/none")  # beside others that are here: mistyped
    assert servers.hub.tally.asked == []


def test_what_is_neither_here_nor_there_is_one_line(servers: Servers) -> None:
    with pytest.raises(
        CheckpointError, match="no such file or folder here, and on the hub: "
    ) as no:
        _compared("org/base", "org/none")
    assert "\n" not in str(no.value)


def test_the_base_that_a_config_names_is_looked_for_on_the_hub(
    servers: Servers, here: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = wdecomp.compare(None, servers.url("s3", "org/lora"))
    assert found.run["base"]["path"].startswith("hf://org/base@")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    servers.calm()
    with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE is set.*Name the base first"):
        wdecomp.compare(None, servers.url("s3", "org/lora"))
    assert servers.hub.tally.asked == []


def test_the_base_is_compared_with_a_repository_at_its_revision(servers: Servers) -> None:
    at = commit(servers.root / "org/base")
    url = f"{servers.url('hf', 'org/base')}@{at}"
    assert parse_tuned(url)[0].steps[0][1].name == f"base@{at}"
    with pytest.raises(CheckpointError, match="there is no such file"):
        parse_tuned(f"{servers.url('hf', 'org/base')}@other")


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_merge_and_verify(
    servers: Servers, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, lora = servers.url(kind, "org/base"), servers.url(kind, "org/lora")
    main(["inspect", base, lora])
    assert "lora" in capsys.readouterr().out
    main(["merge", "-q", base, lora, "-o", str(tmp_path / kind), "--dtype", "float32"])
    local = str(servers.root / "org/base"), str(servers.root / "org/lora")
    main(["merge", "-q", *local, "-o", str(tmp_path / "here"), "--dtype", "float32"])
    for file in sorted((tmp_path / "here").iterdir()):
        assert (tmp_path / kind / file.name).read_bytes() == file.read_bytes(), file.name
    capsys.readouterr()
    main(["verify", "-q", str(tmp_path / kind), "--base", base, "--adapter", lora])  # exits if not
    assert "is" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_check_looks_at_inputs_elsewhere(
    servers: Servers, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    tensors = tiny_llama(1)
    write_full(servers.root / f"changing/{kind}", tensors)
    servers.upload()
    base = str(write_full(tmp_path / "base", moved(tensors)))
    _compared(base, servers.url(kind, f"changing/{kind}"), out=out, checksums=True)
    main(["check", "-q", "--inputs", str(out)])
    assert "are what they were" in capsys.readouterr().out
    file = servers.root / f"changing/{kind}/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    servers.upload()
    with pytest.raises(SystemExit) as stopped:
        main(["check", "-q", "--inputs", str(out)])
    assert stopped.value.code == 3
    said = capsys.readouterr().out
    expected = "is gone" if kind == "hf" else "has other bytes than"
    assert expected in said or "cannot be read" in said


def test_nothing_secret_is_written_or_said(
    servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = "?X-Amz-Signature=s3cret-query"
    url = servers.url("http", "org/ft/model.safetensors") + query
    main(["compare", servers.url("hf", "org/base"), url, "-o", str(tmp_path / "out")])
    text = (tmp_path / "out" / "run.json").read_text()
    assert json.loads(text)["runs"][0]["path"] == url.removesuffix(query)
    said = "".join(capsys.readouterr())
    for secret in (TOKEN, "very-secret-key", "s3cret"):
        assert secret not in text + said


def test_a_query_goes_to_all_that_is_in_its_folder_and_to_nothing_else(servers: Servers) -> None:
    lines: list[str] = []
    answer = Handler.answer

    def noted(self: Handler, method: str) -> None:
        lines.append(self.path)
        answer(self, method)

    with mock.patch.object(Handler, "answer", noted):
        _compared(f"{servers.url('http', 'org/base')}?sig=a%2Bb", servers.url("http", "org/ft"))
    assert any("/org/base/" in line for line in lines)
    for line in lines:
        assert line.endswith("?sig=a%2Bb") == ("/org/base" in line), line


def test_the_token_goes_to_the_hub_and_nowhere_else(servers: Servers) -> None:
    servers.hub.private = TOKEN
    _compared(*(servers.url("hf", name) for name in ("org/base", "org/ft")))
    assert servers.hub.content.tally.asked
    for asked in servers.hub.content.tally.asked:
        assert "Authorization" not in asked.headers
    assert all(a.headers.get("Authorization") == f"Bearer {TOKEN}" for a in servers.hub.tally.asked)


def test_a_web_server_may_send_elsewhere(servers: Servers, here: Results) -> None:
    """As the hub's own web addresses do, to signed ones; the token does not go there."""
    at = commit(servers.root / "org/ft")
    url = f"ft={servers.hub.url}/org/ft/resolve/{at}/model.safetensors"
    lora = str(servers.root / "org/lora")
    _assert_same(_compared(str(servers.root / "org/base"), url, lora), here)
    asked = [*servers.hub.tally.asked, *servers.hub.content.tally.asked]
    assert not any("Authorization" in each.headers for each in asked)


def test_an_address_that_has_expired_is_asked_for_again(servers: Servers, here: Results) -> None:
    paths = [servers.url("hf", name) for name in NAMES]
    _compared(*paths)
    with mock.patch.object(Hub, "signature", "another"):
        _assert_same(_compared(*paths), here)
    assert any(asked.path.endswith(".safetensors") for asked in servers.hub.tally.asked)


def test_a_range_costs_one_request_once_its_address_is_known(servers: Servers) -> None:
    _compared(*(servers.url("hf", name) for name in ("org/base", "org/ft")), workers=1)
    resolved = [a.path for a in servers.hub.tally.asked if a.path.endswith(".safetensors")]
    assert len(resolved) == len(set(resolved))
    assert len(servers.hub.content.tally.ranges()) > 2 * len(resolved)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_listed_once(servers: Servers, kind: str) -> None:
    parse_tuned(servers.url(kind, "org/ft"))
    tally = servers.hub.tally if kind == "hf" else servers.tally(kind)
    most = {"http": 20, "s3": 3, "hf": 1}[kind]
    assert 1 <= len(tally.asked) <= most


@pytest.mark.parametrize("name", ["../../other/x", "https://example.com/x", "a%2e%2e/x", "/etc/x"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_index_leads_nowhere_else(servers: Servers, kind: str, name: str) -> None:
    folder = servers.root / "evil" / kind
    folder.mkdir(parents=True, exist_ok=True)
    index = {"weight_map": {"model.embed_tokens.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    servers.upload()
    servers.calm()
    with pytest.raises(CheckpointError, match="expected a file in"):
        _compared(str(servers.root / "org/base"), servers.url(kind, f"evil/{kind}"))
    for tally in (
        servers.web.tally,
        servers.hub.tally,
        servers.hub.content.tally,
        servers.s3.tally,
    ):
        assert all("/x" not in asked.path for asked in tally.asked)


def test_pickles_are_not_opened_from_elsewhere(servers: Servers) -> None:
    folder = servers.root / "pickled"
    folder.mkdir(exist_ok=True)
    torch.save(load_file(servers.root / "org/ft/model.safetensors"), folder / "pytorch_model.bin")
    servers.upload()
    with pytest.raises(CheckpointError, match="opened on this disk alone"):
        _compared(str(servers.root / "org/base"), servers.url("s3", "pickled"), allow_pickle=True)
