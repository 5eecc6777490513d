"""Servers that fail: what passes is tried again, and what does not is said in one line."""

import os
import socket
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from builders import moved, tiny_llama, write_full
from servers.folders import TOKEN, Servers, served, small_folders
from servers.tally import Asked, always, times

import wdecomp
from wdecomp.errors import CheckpointError, MissingExtraError, WdecompError
from wdecomp.inputs import named_path
from wdecomp.remote import retrying, transports
from wdecomp.table import Results

KINDS = ("http", "s3", "hf")
SECRETS = (TOKEN, "very-secret-key", "AKIAEXAMPLE", "s3cret")


servers = served(small_folders)


@pytest.fixture(autouse=True)
def calm(servers: Servers) -> None:
    servers.calm()


@pytest.fixture(scope="module")
def here(servers: Servers) -> Results:
    return wdecomp.compare(servers.root / "org/base", servers.root / "org/ft")


def _compared(servers: Servers, kind: str, **options: Any) -> Results:
    return wdecomp.compare(servers.url(kind, "org/base"), servers.url(kind, "org/ft"), **options)


def _refusal(servers: Servers, kind: str, **options: Any) -> str:
    """The one line that is said, with nothing secret in it."""
    with pytest.raises(WdecompError) as refused:
        _compared(servers, kind, **options)
    said = str(refused.value)
    assert "\n" not in said
    assert not any(secret in said for secret in SECRETS)
    assert said.startswith(servers.url(kind, "org/").rstrip("/")[:5])
    return said


@pytest.mark.parametrize("what", ["503", "500", "429", "cut", "short"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_passes_is_tried_again(servers: Servers, here: Results, kind: str, what: str) -> None:
    servers.tally(kind).fault = times(4, what)
    found = _compared(servers, kind)
    pd.testing.assert_frame_equal(found.modules, here.modules)
    assert sum(asked.method == "GET" for asked in servers.tally(kind).asked) >= 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_is_down_is_one_line(servers: Servers, kind: str) -> None:
    servers.tally(kind).fault = always("503")
    assert "503" in _refusal(servers, kind)
    asked = [a for a in servers.tally(kind).asked if a.path.endswith("ft/model.safetensors")]
    assert len([a for a in asked if a.method == "GET"]) == retrying.TRIES


def test_a_shard_that_cannot_be_looked_for_is_not_called_missing(servers: Servers) -> None:
    servers.web.tally.fault = lambda a: "503" if "-of-" in a.path and a.method == "HEAD" else ""
    said = _refusal(servers, "http")
    assert "503" in said
    assert "incomplete" not in said


@pytest.mark.parametrize("what", ["cut", "short"])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_that_never_come_are_one_line(servers: Servers, kind: str, what: str) -> None:
    servers.tally(kind).fault = always(what)
    assert "cannot be read" in _refusal(servers, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_without_ranges_is_refused_before_its_bytes_come(
    servers: Servers, kind: str, tmp_path: Path
) -> None:
    big = {"model.layers.0.mlp.down_proj.weight": moved(tiny_llama(1))["model.norm.weight"]}
    big = {name: value.new_zeros(4096, 1024) for name, value in big.items()}
    write_full(servers.root / f"big/{kind}", big)
    servers.upload()
    servers.tally(kind).fault = always("whole")
    servers.tally(kind).forget()
    with pytest.raises(CheckpointError, match="does not give ranges of a file, only all of it"):
        wdecomp.compare(servers.root / "org/base", servers.url(kind, f"big/{kind}"))
    assert servers.tally(kind).sent <= 8 << 20  # what lies in the sockets, of 16 MiB
    asked = [a for a in servers.tally(kind).asked if a.method == "GET" and a.span]
    assert len(asked) == 1  # and not asked again


@pytest.mark.parametrize("what", ["404", "403"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_not_given_is_one_line(servers: Servers, kind: str, what: str) -> None:
    servers.tally(kind).fault = always(what)
    said = _refusal(servers, kind)
    words = {"404": ("no such file", "not there"), "403": ("access is denied", "private, gated")}
    assert any(word in said for word in words[what]), said


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_a_file_that_changes_while_it_is_read_is_refused_and_the_run_goes_on_later(
    servers: Servers, kind: str, tmp_path: Path
) -> None:
    tensors = tiny_llama(2)
    base, url = servers.url(kind, "org/base"), servers.url(kind, f"moving/{kind}")
    file = write_full(servers.root / f"moving/{kind}", moved(tensors)) / "model.safetensors"
    servers.upload()
    before, after = file.read_bytes(), bytearray(file.read_bytes())
    after[-3] ^= 1

    def change(asked: Asked) -> str:
        ours = asked.method == "GET" and asked.path.endswith(f"moving/{kind}/model.safetensors")
        if ours and asked.span is not None and asked.span[0] > 0 and file.read_bytes() != after:
            file.write_bytes(after)
            servers.s3.tally.fault = lambda asked: ""
            servers.upload()
        return ""

    servers.tally(kind).fault = change
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="was changed or replaced while it was read") as no:
        wdecomp.compare(base, url, out=out)
    assert "\n" not in str(no.value)
    servers.calm()
    with pytest.raises(WdecompError, match="--restart"):  # it is another run now
        wdecomp.compare(base, url, out=out)
    servers.s3.client.upload_file(str(file), "bucket", f"moving/{kind}/model.safetensors")
    assert len(before) == len(after)
    again = wdecomp.compare(base, url, out=out, restart=True)
    local = wdecomp.compare(servers.root / "org/base", file.parent)
    pd.testing.assert_frame_equal(
        again.modules.drop(columns="run"), local.modules.drop(columns="run")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_a_server_ended_goes_on(
    servers: Servers, here: Results, kind: str, tmp_path: Path
) -> None:
    def fault(asked: Asked) -> str:
        late = asked.span is not None and asked.span[0] > 0
        return "503" if asked.method == "GET" and late else ""

    servers.tally(kind).fault = fault
    with pytest.raises(CheckpointError, match="503"):
        _compared(servers, kind, out=tmp_path / "out")
    servers.calm()
    found = _compared(servers, kind, out=tmp_path / "out")
    pd.testing.assert_frame_equal(found.modules, here.modules)


def test_no_credentials_are_one_line(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    with pytest.raises(CheckpointError, match="no credentials for S3") as no:
        wdecomp.compare(servers.root / "org/base", "s3://other/ft")
    assert "\n" not in str(no.value)


def test_a_private_repository_is_one_line(servers: Servers) -> None:
    servers.hub.private = "another-token"
    assert "HF_TOKEN" in _refusal(servers, "hf")


def test_nobody_there_is_one_line(servers: Servers) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/ft"
        with pytest.raises(CheckpointError, match="the connection failed"):
            wdecomp.compare(servers.root / "org/base", url)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "simplecache::s3://bucket/ft", "zip://x::http://h/a.zip",
        "ftp://host/x", "local:///etc", "s3://bucket/../other", "hf://gpt2", "memory://x",
    ],
)  # fmt: skip
def test_addresses_that_are_not_meant_are_refused(url: str) -> None:
    with pytest.raises(CheckpointError):
        named_path(url)


@pytest.mark.parametrize(
    "url", ["https://user:s3cret@host/ft", "s3://key:s3cret@bucket/ft", "ftp://u:s3cret@h/x?s3cret"]
)
def test_credentials_in_an_address_are_refused_unseen(url: str) -> None:
    with pytest.raises(CheckpointError) as no:
        named_path(url)
    assert "s3cret" not in str(no.value)


@pytest.mark.parametrize(
    ("url", "extra"),
    [
        ("s3://bucket/ft", "s3"), ("hf://org/ft", "hf"), ("https://host/ft", "http"),
        ("gs://bucket/ft", "gcs"), ("az://box/ft", "azure"),
    ],
)  # fmt: skip
def test_a_missing_package_names_its_extra(
    url: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: object) -> Any:
        raise ModuleNotFoundError("No module named 'gone'", name="gone")

    monkeypatch.setattr(transports, "_opened", missing)
    monkeypatch.setattr("wdecomp.remote.store._stores", {})
    with pytest.raises(MissingExtraError, match=rf"pip install 'wdecomp\[{extra}\]'"):
        named_path(url)
