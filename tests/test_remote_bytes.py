"""How much is asked for, how often, and how much of it at a time."""

import time
from itertools import pairwise
from typing import Any

import pytest
import torch
from builders import moved, write_full
from safetensors.torch import save_file
from servers.folders import Servers, large_folders, served

import wdecomp
from wdecomp.adapter import read_adapter
from wdecomp.checkpoint import open_checkpoint
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
    servers.tally(kind).latency = 0.03
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
