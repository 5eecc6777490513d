"""How much is asked for, how often, and how much of it at a time."""

import time
from collections.abc import Iterator
from itertools import pairwise
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from builders import moved, write_full
from safetensors.torch import save_file
from servers.folders import Servers, large_folders, served

import wdecomp
from wdecomp.adapter import read_adapter
from wdecomp.checkpoint import (
    Matrix,
    MatrixReader,
    Rectangle,
    StoredTensor,
    open_checkpoint,
    read_matrix,
    whole,
)
from wdecomp.checkpoint.header import FIRST_BYTES
from wdecomp.inputs import named_path
from wdecomp.remote import Wanted, ahead, fetched_ahead, kept, read_into, remote_path
from wdecomp.scan import ahead as scan_ahead

KINDS = ("http", "s3", "hf")


servers = served(large_folders)


@pytest.fixture(autouse=True)
def calm(servers: Servers) -> None:
    servers.calm()


def _compared(servers: Servers, kind: str, *names: str, **options: Any) -> Any:
    return wdecomp.compare(*(servers.url(kind, name) for name in names), **options)


def _stored(servers: Servers, *names: str) -> tuple[int, int]:
    """Bytes of tensors, and how many shards there are."""
    opened = [open_checkpoint(servers.root / name) for name in names]
    tensors = sum(t.nbytes for each in opened for t in each.tensors.values())
    return tensors, sum(len(each.shards) for each in opened)


@pytest.mark.parametrize("names", [("org/base", "org/ft"), ("org/base", "org/lora")])
@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_is_fetched_once(servers: Servers, kind: str, names: tuple[str, ...]) -> None:
    _compared(servers, kind, *names, workers=2)
    tensors, shards = _stored(servers, *names)
    read = tensors
    if "org/lora" in names:  # its q_proj are changed: nothing else of the base is read
        read = _stored(servers, "org/lora")[0] + 4 * 2 * 1024 * 1024
    got = sum(a.span[1] - a.span[0] for a in servers.tally(kind).ranges() if a.span)
    assert read <= got <= 1.02 * read + shards * FIRST_BYTES
    assert got <= servers.tally(kind).sent + shards * FIRST_BYTES


@pytest.mark.parametrize("kind", KINDS)
def test_many_ranges_are_under_way_together(servers: Servers, kind: str) -> None:
    servers.tally(kind).latency = 0.2  # so that a busy machine has asked before the first answer
    _compared(servers, kind, "org/base", "org/ft", workers=1)
    assert servers.tally(kind).most >= 8
    assert servers.tally(kind).most <= 2 * ahead.IN_FLIGHT  # as servers count, who lag behind


def test_neighbours_are_one_range(servers: Servers) -> None:
    _compared(servers, "http", "org/base", "org/lora", workers=1)
    spans = sorted(
        a.span for a in servers.web.tally.ranges("lora/adapter_model.safetensors") if a.span
    )
    tensors = [span for span in spans if span[0] > 0]
    assert len(tensors) <= 4  # of 8 factors: one, but for those that were read before it came
    assert all(one[1] <= other[0] for one, other in pairwise(tensors))


def test_memory_is_bounded(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for little, what is ahead waits until it is taken, and each byte comes once."""
    monkeypatch.setattr(scan_ahead, "FETCHED", 4 << 20)
    monkeypatch.setattr(scan_ahead, "FETCHED_EACH", 4 << 20)
    held: list[int] = []
    ask = ahead._Ahead._ask

    def asked(self: Any, wanted: Any) -> bool:
        found = ask(self, wanted)
        held.append(self._memory - self._left)
        return found

    monkeypatch.setattr(ahead._Ahead, "_ask", asked)
    _compared(servers, "http", "org/base", "org/ft", workers=1)
    assert max(held) <= (8 << 20) + ahead.RANGE + ahead.RANGE // 8
    tensors, shards = _stored(servers, "org/base", "org/ft")
    got = sum(a.span[1] - a.span[0] for a in servers.web.tally.ranges() if a.span)
    assert got <= 1.02 * tensors + shards * FIRST_BYTES


def test_of_a_fused_tensor_only_what_is_compared_is_fetched(servers: Servers) -> None:
    fused = {"model.layers.0.self_attn.qkv_proj.weight": torch.randn(3 * 512, 512)}
    config = {"model_type": "phi3", "hidden_size": 512, "num_attention_heads": 8}
    for name, tensors in (("phi", fused), ("phi-ft", moved(fused))):
        write_full(servers.root / name, tensors, config=config | {"num_key_value_heads": 8})
    found = _compared(servers, "http", "phi", "phi-ft", modules=["q"], workers=1)
    assert len(found.modules) == 2
    got = sum(a.span[1] - a.span[0] for a in servers.web.tally.ranges() if a.span)
    assert got <= 1.02 * 2 * 512 * 512 * 4 + 2 * FIRST_BYTES


def test_the_sample_of_a_base_is_not_asked_for_again(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "KEPT", 1)
    _compared(servers, "http", "org/base", "org/ft", workers=1)
    ranges = [(a.path, *a.span) for a in servers.web.tally.ranges() if a.span and a.span[0] > 0]
    for (file, _, stop), (other, start, _) in pairwise(sorted(ranges)):
        assert file != other or stop <= start


def _wanted(servers: Servers, count: int) -> list[Wanted]:
    """So many MiB of a file, one by one."""
    file = remote_path(servers.url("http", "org/base/model-00001-of-00002.safetensors"))
    return [Wanted(file, i << 20, (i + 1) << 20) for i in range(count)]


def _read(wanted: Wanted) -> bytes:
    into = bytearray(wanted.stop - wanted.start)
    read_into(wanted.file, wanted.start, memoryview(into), wanted.stop)
    return bytes(into)


def test_what_a_plan_has_twice_is_fetched_once(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "KEPT", 1)
    wanted = _wanted(servers, 3)
    servers.calm()
    plan = iter([wanted[0], None, wanted[1], None, wanted[0], None, wanted[2], None])
    with fetched_ahead(plan, 1 << 20):
        content = (servers.root / "org/base/model-00001-of-00002.safetensors").read_bytes()
        for each in wanted:
            assert _read(each) == content[each.start : each.stop]
    assert len(servers.web.tally.ranges()) == 3


def _until_asked(servers: Servers, count: int, go: Event | None = None) -> None:
    """Lets a plan go on if it waits, until the server has been asked so often."""
    if go is not None:
        go.set()
    until = time.monotonic() + 20
    while len(servers.web.tally.ranges()) < count and time.monotonic() < until:
        time.sleep(0.001)


def test_what_was_taken_makes_room(servers: Servers) -> None:
    wanted = _wanted(servers, 3)
    servers.calm()
    plan = (each for one in wanted for each in (one, None))
    with fetched_ahead(plan, 1 << 20):
        for count, each in enumerate(wanted, 1):
            _until_asked(servers, count)
            assert len(servers.web.tally.ranges()) == count
            _read(each)


def test_what_nobody_comes_for_is_dropped_in_the_end(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, asked = _wanted(servers, 14), []
    fetch = ahead._Ahead._fetch
    monkeypatch.setattr(
        ahead._Ahead, "_fetch", lambda self, block: asked.append(block.start) or fetch(self, block)
    )
    plan = (each for pair in zip(wanted, [None] * 14, strict=True) for each in pair)
    with fetched_ahead(plan, 1 << 20):
        while not asked:
            time.sleep(0.001)
        for each in wanted[1:]:
            _read(each)
            time.sleep(0.01)
    assert asked[0] == 0
    assert len(asked) >= 4  # it went on after the first was given up


def _waiting(go: Event, *wanted: Wanted) -> Iterator[Wanted | None]:
    go.wait(30)
    yield from (*wanted, None)


def test_what_a_plan_asks_for_in_this_moment_is_not_asked_for_twice(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reader has looked for its bytes, and before it says that it will fetch them."""
    (wanted,), go = _wanted(servers, 1), Event()
    servers.calm()
    monkeypatch.setattr(ahead.tiny, "take", lambda *_: _until_asked(servers, 1, go) or 0)
    content = (servers.root / "org/base/model-00001-of-00002.safetensors").read_bytes()
    with fetched_ahead(_waiting(go, wanted), 1 << 20):
        assert _read(wanted) == content[: 1 << 20]
    assert len(servers.web.tally.ranges()) == 1


def test_what_came_before_its_plan_is_there_for_who_reads_it_again(servers: Servers) -> None:
    """An adapter's factors: read for their product, and once more for what is said of them."""
    (wanted,), go = _wanted(servers, 1), Event()
    servers.calm()
    with fetched_ahead(_waiting(go, wanted), 1 << 20):
        first = _read(wanted)
        go.set()
        assert _read(wanted) == first
    assert len(servers.web.tally.ranges()) == 1


def test_a_range_ends_where_a_plan_has_just_asked_for_more(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reader has seen how far its range may go, and before it says that it goes there."""
    (wanted, after), go = _wanted(servers, 2), Event()
    servers.calm()
    next_start = ahead._Ahead.next_start

    def seen(*where: Any) -> int:
        found = next_start(*where)
        _until_asked(servers, 1, go)
        return found

    monkeypatch.setattr(ahead._Ahead, "next_start", seen)
    with fetched_ahead(_waiting(go, after), 1 << 20):
        into = memoryview(bytearray(1 << 20))
        read_into(wanted.file, 0, into, limit=4 << 20)
    spans = sorted(a.span for a in servers.web.tally.ranges() if a.span)
    assert spans == [(0, 1 << 20), (1 << 20, 2 << 20)]


def test_what_was_fetched_is_seen_where_it_lies(servers: Servers) -> None:
    """As far as it came in one range; across two it is copied; both are what a local file has."""
    name, blocks = "model.layers.0.self_attn.q_proj.weight", []
    here, there = (
        Matrix(open_checkpoint(named_path(each)).tensors[name], input_first=False)
        for each in (str(servers.root / "org/base"), servers.url("http", "org/base"))
    )
    tensor, (rows, columns) = there.tensor, there.shape
    assert isinstance(tensor, StoredTensor)
    cut = tensor.offset + tensor.nbytes * 3 // 8
    ranges = [(tensor.offset, cut), (cut, tensor.offset + tensor.nbytes)]
    plan = iter([item for span in ranges for item in (Wanted(tensor.file, *span), None)])
    with fetched_ahead(plan, 1 << 20), MatrixReader(there) as reader, MatrixReader(here) as local:
        for top in range(0, rows, rows // 4):
            at = Rectangle(slice(top, top + rows // 4), slice(0, columns))
            block = reader.read(at)
            np.testing.assert_array_equal(block, local.read(at))
            blocks.append(block.flags.writeable)
    assert blocks == [False, True, False, False]


def test_what_cannot_be_seen_aligned_is_copied(servers: Servers) -> None:
    """A range may begin anywhere: compiled code takes no numbers at odd addresses."""
    file = remote_path(servers.url("http", "org/base/model-00001-of-00002.safetensors"))
    tensor = StoredTensor("x", "BF16", (512, 1024), file, 3, 1 << 20)
    with fetched_ahead(iter([Wanted(file, 0, 2 << 20), None]), 1 << 20):
        found = read_matrix(Matrix(tensor, input_first=False))
        with MatrixReader(Matrix(tensor, input_first=False)) as reader:
            seen = reader.read(whole(tensor.shape))
            assert seen.flags.aligned
            np.testing.assert_array_equal(seen, found)


@pytest.mark.parametrize(("kind", "looks"), [("http", 2), ("s3", 1)])
def test_files_whose_ranges_are_pinned_are_looked_at_again_once(
    servers: Servers, kind: str, looks: int
) -> None:
    """Not for each unit: every range was asked for by the etag, or came with it."""
    _compared(servers, kind, "org/base", "org/ft", workers=1)
    heads = [a.path for a in servers.tally(kind).asked if a.method == "HEAD"]
    shards = [path for path in heads if path.endswith(".safetensors") and "-of-" in path]
    assert shards
    assert all(shards.count(path) == looks for path in shards)  # a bucket was listed first


def test_a_header_is_one_request_and_a_long_one_two(servers: Servers) -> None:
    path = named_path(servers.url("http", "org/base"))
    servers.calm()
    open_checkpoint(path)
    spans = [a.span for a in servers.web.tally.ranges()]
    assert sorted(spans) == [(0, FIRST_BYTES)] * 2


def test_many_tiny_tensors_are_asked_for_at_once(servers: Servers) -> None:
    """Kohya's alphas: each read by itself, before there is a plan."""
    tensors, random = {}, torch.Generator().manual_seed(0)
    for i in range(40):
        front = f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_{i}_attn1_to_q"
        tensors[f"{front}.alpha"] = torch.tensor(4.0)
        tensors[f"{front}.lora_down.weight"] = torch.randn(4, 320, generator=random)
        tensors[f"{front}.lora_up.weight"] = torch.randn(320, 4, generator=random)
    (servers.root / "kohya").mkdir(exist_ok=True)
    save_file(tensors, servers.root / "kohya/lora.safetensors")
    servers.web.tally.latency = 0.02
    path = named_path(servers.url("http", "kohya/lora.safetensors"))
    there, here = read_adapter(open_checkpoint(path)), servers.root / "kohya/lora.safetensors"
    found = [update.update.scaling for update in there.updates.values()]
    assert found == [u.update.scaling for u in read_adapter(open_checkpoint(here)).updates.values()]
    assert len(servers.web.tally.ranges()) <= 1 + 1 + 40
    assert servers.web.tally.most >= 8
