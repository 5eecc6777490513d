"""Addresses, paths, intervals and stores, each by itself."""

import pickle
from copy import copy
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from builders import tiny_llama, write_full
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from servers.folders import Servers, served, small_folders

from wdecomp.checkpoint import Matrix, MatrixReader, check_unchanged, open_checkpoint, spans, whole
from wdecomp.errors import CheckpointError
from wdecomp.remote import (
    Entry,
    OtherContentError,
    RemotePath,
    Store,
    Wanted,
    is_url,
    parsed,
    remote_path,
    retrying,
    store_of,
)
from wdecomp.remote.ahead import RANGE, _joined
from wdecomp.remote.blocks import Block, Blocks, Spans
from wdecomp.remote.buckets import Bucket

FILE = RemotePath("s3://bucket/a/model.safetensors")


servers = served(small_folders)


def test_a_path_is_its_url_whatever_is_done_to_it() -> None:
    path = RemotePath("s3://bucket/a") / "b" / "c.safetensors"
    assert str(path) == "s3://bucket/a/b/c.safetensors"
    assert (path.name, path.suffix, str(path.parent)) == (
        "c.safetensors",
        ".safetensors",
        "s3://bucket/a/b",
    )
    kin = [path.parent, path.with_name("d"), path.with_suffix(".json"), path.parents[1], copy(path)]
    kin += [path.resolve(), path.absolute(), pickle.loads(pickle.dumps(path)), path.joinpath("e")]
    assert {type(each) for each in kin} == {RemotePath}
    assert kin[7] == path
    assert hash(kin[7]) == hash(path)
    assert path != Path("s3:/bucket/a/b/c.safetensors")
    assert sorted([path.with_name("b"), path.with_name("a")])[0].name == "a"
    assert str(path.relative_to(path.parent)) == "c.safetensors"
    assert repr(path) == "RemotePath('s3://bucket/a/b/c.safetensors')"
    assert str(Path("/here") / path.relative_to(path.parent)) == "/here/c.safetensors"


def test_nothing_of_a_path_reaches_this_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for do in (FILE.mkdir, FILE.unlink, FILE.touch, FILE.rmdir, FILE.readlink):
        with pytest.raises(OSError, match="is not on this disk"):
            do()
    with pytest.raises(OSError, match="is only read from"):
        FILE.open("wb")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "root", "name"),
    [
        ("s3://bucket/a//b/", "bucket", "a/b"),
        ("hf://org/name", "org/name", ""),
        ("hf://org/name@v1.0/sub/file", "org/name@v1.0", "sub/file"),
        ("hf://org/name@refs/pr/7/file", "org/name@refs/pr/7", "file"),
        ("hf://org/name@refs%2Fpr%2F7", "org/name@refs/pr/7", ""),
        ("https://host:8080/a=b/c?sig=x%2F#top", "host:8080", "a=b/c"),
        ("abfs://box@account.dfs.core.windows.net/a", "box@account.dfs.core.windows.net", "a"),
        ("S3://bucket", "bucket", ""),
    ],
)
def test_addresses(url: str, root: str, name: str) -> None:
    place = parsed(url)
    assert (place.address.root, place.name) == (root, name)
    assert is_url(url)
    assert "sig" not in f"{place} {place!r}"


@pytest.mark.parametrize("text", ["a:b", "NAME=s3://bucket/x", "./s3:/x", "C:/x", "x::y", ""])
def test_what_is_no_address(text: str) -> None:
    assert not is_url(text)


intervals = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=12)


@given(intervals, st.tuples(st.integers(0, 60), st.integers(1, 30)))
def test_intervals_are_sets_of_bytes(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    found, expected = Spans(), set[int]()
    for start, length in added:
        found.add(FILE, start, start + length)
        expected |= set(range(start, start + length))
    assert {i for i in range(100) if not found.without(FILE, i, i + 1)} == expected
    start, stop = asked[0], sum(asked)
    left = found.without(FILE, start, stop)
    assert {i for a, b in left for i in range(a, b)} == set(range(start, stop)) - expected
    assert all(a < b for a, b in left)


@given(st.lists(st.integers(0, 30), unique=True))
def test_blocks_are_found_by_any_of_their_bytes(starts: list[int]) -> None:
    blocks = Blocks()
    made = {start: Block(FILE, start * 10, start * 10 + 7) for start in starts}
    for block in made.values():
        blocks.add(block)
    for position in range(320):
        inside = position % 10 < 7
        assert blocks.at(FILE, position) is (made.get(position // 10) if inside else None)
        after = [b.start for b in made.values() if b.start > position]
        assert blocks.next_start(FILE, position, 400) == min([*after, 400])
    for block in made.values():
        blocks.remove(block)
        assert blocks.at(FILE, block.start) is None


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=40))
def test_joining_loses_no_byte_and_keeps_ranges_small(pieces: list[tuple[int, int]]) -> None:
    unit = 1 << 20
    plan = [Wanted(FILE, a * unit, (a + n) * unit) for a, n in pieces]
    joined = list(_joined(iter(plan)))

    def covered(wanted: list[Wanted]) -> set[int]:
        return {i for w in wanted for i in range(w.start // unit, w.stop // unit)}

    assert covered(joined) == covered(plan)
    longest = max((w.stop - w.start for w in plan), default=0)
    assert all(w.stop - w.start <= max(RANGE + RANGE // 8, longest) for w in joined)


def test_neighbours_wait_for_nobody_beyond_a_none() -> None:
    one, other = Wanted(FILE, 0, 10), Wanted(FILE, 10, 20)
    assert list(_joined(iter([one, other]))) == [Wanted(FILE, 0, 20)]
    assert list(_joined(iter([one, None, other]))) == [one, other]


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [
        ((6, 4), {}),
        ((6, 4), {"input_first": True}),
        ((3, 6, 4), {"plane": 2}),
        ((6, 4), {"picked": (range(1, 3), range(4, 6))}),
        ((6, 4), {"picked": (range(0, 6, 2),)}),
        ((6, 4), {"picked": (range(1, 3),), "input_first": True}),
    ],
)
def test_spans_hold_all_that_a_matrix_reads(
    tmp_path: Path, shape: tuple[int, ...], matrix: dict
) -> None:
    numbers = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    save_file({"x.weight": numbers}, tmp_path / "model.safetensors")
    tensor = open_checkpoint(tmp_path).tensors["x.weight"]
    given_ = {"input_first": False} | matrix
    found = Matrix(tensor, **given_)
    with MatrixReader(found, copied=True) as reader:
        read = set(reader.read(whole(found.shape)).reshape(-1).tolist())
    within = {
        n for _, start, stop in spans(found) for n in numbers.reshape(-1)[start // 4 : stop // 4]
    }
    assert read <= within
    if "picked" not in matrix:
        assert read == within


def test_spans_of_a_quantised_weight_are_all_its_parts(tmp_path: Path) -> None:
    codes = torch.zeros(6, 4).to(torch.float8_e4m3fn)
    tensors = {"x.weight": codes, "x.weight_scale": torch.tensor(2.0)}
    save_tensors(tensors, tmp_path / "model.safetensors")
    tensor = open_checkpoint(tmp_path).tensors["x.weight"]
    found = {part.name: (a, b) for part, a, b in spans(Matrix(tensor, input_first=False))}
    assert found == {"x.weight": (0, 24), "x.weight_scale": (0, 4)}


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_a_file_is_the_one_that_was_opened(servers: Servers, kind: str) -> None:
    """What a range is of, and what is looked at after it, are two nets for one thing."""
    file = write_full(servers.root / f"own/{kind}", tiny_llama(1)) / "model.safetensors"
    servers.upload()
    path = remote_path(servers.url(kind, f"own/{kind}/model.safetensors"))
    shards = open_checkpoint(path).shards
    check_unchanged(shards)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    servers.upload()
    with pytest.raises(OtherContentError):
        path.fetch(0, 100)
    with pytest.raises(CheckpointError, match="was changed or replaced"):
        check_unchanged(shards)
    assert path.store.fetch(path.place.name, 0, 8) == file.read_bytes()[:8]  # of any content


def test_a_store_writes_lists_and_removes(servers: Servers, tmp_path: Path) -> None:
    store = store_of(parsed("s3://bucket").address)
    assert store.entries("results") == {}
    store.put("results/a.json", b"one")
    (tmp_path / "b").write_bytes(b"twotwo")
    store.put("results/parts/b", tmp_path / "b")
    assert {n: (e.size, e.is_folder) for n, e in store.entries("results").items()} == {
        "a.json": (3, False), "parts": (0, True),
    }  # fmt: skip
    assert store.fetch("results/parts/b", 1, 4) == b"wot"
    with pytest.raises(FileExistsError):
        store.put("results/a.json", b"two", fresh=True)
    assert store.fetch("results/a.json", 0, 3) == b"one"
    store.put("results/a.json", b"three")
    found = store.entry("results/a.json", again=True)
    assert isinstance(found, Entry)
    assert found.size == 5
    store.put("results/new.json", b"x", fresh=True)
    for name in ("a.json", "new.json", "parts/b", "parts/b"):
        store.remove(f"results/{name}")
    assert store.entries("results") == {}
    assert store.entry("results/a.json") is None


def test_a_bucket_of_another_library_is_a_store_too(tmp_path: Path) -> None:
    """Google's and Azure's are read and written through what all of fsspec has."""
    store = Store(Bucket("memory", "box"))
    store.put("a/b.json", b"abc")
    (tmp_path / "d").write_bytes(b"0123456789")
    store.put("a/c/d.bin", tmp_path / "d")
    assert {n: (e.size, e.is_folder) for n, e in store.entries("a").items()} == {
        "b.json": (3, False), "c": (0, True),
    }  # fmt: skip
    assert store.fetch("a/c/d.bin", 2, 5) == b"234"
    assert store.entry("none") is None
    with mock.patch.object(retrying, "FIRST_WAIT", 0.001), pytest.raises(OSError, match="bytes of"):
        store.fetch("a/c/d.bin", 8, 12)
    with pytest.raises(FileExistsError):
        store.put("a/b.json", b"x", fresh=True)
    store.remove("a/b.json")
    store.remove("a/b.json")
    assert list(store.entries("a")) == ["c"]


@pytest.mark.parametrize("kind", ["http", "hf"])
def test_nothing_is_written_where_it_cannot_be(servers: Servers, kind: str) -> None:
    path = remote_path(servers.url(kind, "org/ft"))
    with pytest.raises(OSError, match="nothing is written"):
        path.store.put("x", b"")


def test_a_stream_of_a_path_reads_as_a_file_does(servers: Servers) -> None:
    here = servers.root / "org/base/config.json"
    there = remote_path(servers.url("s3", "org/base")) / "config.json"
    assert there.read_bytes() == here.read_bytes()
    assert there.read_text() == here.read_text()
    with there.open("rb") as stream:
        stream.seek(-3, 2)
        assert stream.read() == here.read_bytes()[-3:]
    assert sorted(p.name for p in there.parent.glob("model-*.safetensors")) == sorted(
        p.name for p in here.parent.glob("model-*.safetensors")
    )
    assert not (there.parent / "nothing").exists()
    assert (there.parent.is_dir(), there.is_file(), there.is_symlink()) == (True, True, False)


def test_an_address_below_none_is_refused() -> None:
    with pytest.raises(CheckpointError, match="expected hf://ORGANISATION/NAME"):
        RemotePath("hf://org/name").parent.exists()
