"""Checkpoints for servers to give, and one way to name them at each server."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from builders import low_rank, moved, tiny_llama, write_adapter, write_full

from servers.hub import Hub, running_hub
from servers.s3 import S3, running_s3
from servers.tally import Tally
from servers.web import Server, running
from wdecomp.remote import retrying, store

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
TOKEN = "hf_a-secret-token"


@dataclass(frozen=True)
class Servers:
    """One of each, all giving the folders below `root`."""

    root: Path
    web: Server
    hub: Hub
    s3: S3

    def url(self, kind: str, name: str) -> str:
        """Of `org/base` and the like, at one of them."""
        fronts = {"http": self.web.url, "s3": "s3://bucket", "hf": "hf:/"}
        return f"{fronts[kind]}/{name}"

    def tally(self, kind: str) -> Tally:
        """Of the server that gives the weights."""
        return {"http": self.web.tally, "s3": self.s3.tally, "hf": self.hub.content.tally}[kind]

    def upload(self) -> None:
        """Puts all files below `root` into the bucket."""
        for file in self.root.rglob("*"):
            if file.is_file():
                self.s3.client.upload_file(str(file), "bucket", str(file.relative_to(self.root)))

    def calm(self) -> None:
        """Counts anew, without faults or latency."""
        for tally in (self.web.tally, self.hub.tally, self.hub.content.tally, self.s3.tally):
            tally.forget()
            tally.latency, tally.fault = 0.0, lambda asked: ""
        self.hub.private = ""


@contextmanager
def serving(root: Path) -> Iterator[Servers]:
    """All servers, their addresses and keys in the environment, and short waits between tries."""
    with ExitStack() as opened:
        web, hub = opened.enter_context(running(root)), opened.enter_context(running_hub(root))
        s3 = opened.enter_context(running_s3())
        environment = s3.environment() | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
        opened.enter_context(mock.patch.dict(os.environ, environment))
        for name in PROXIES:
            os.environ.pop(name, None)
        opened.enter_context(mock.patch.object(retrying, "FIRST_WAIT", 0.01))
        opened.enter_context(mock.patch.dict(store._stores, clear=True))
        servers = Servers(root, web, hub, s3)
        servers.upload()
        yield servers


def small_folders(root: Path) -> None:
    """`org/base` in two shards, `org/ft`, `org/lora`, and `org/run` with two steps."""
    tensors = tiny_llama(2)
    write_full(root / "org/base", tensors, shards=2, config={"model_type": "llama"})
    write_full(root / "org/ft", moved(tensors), config={"model_type": "llama"})
    write_adapter(root / "org/lora", low_rank(tensors), base_model_name_or_path="org/base")
    for step in (10, 20):
        write_full(root / f"org/run/checkpoint-{step}", moved(tensors, step * 1e-4))


def large_folders(root: Path) -> None:
    """`org/base`, `org/ft` of 34 MB each in two shards, `org/lora`: matrices, vectors, factors."""
    random = torch.Generator().manual_seed(0)
    tensors = {}
    for i in range(4):
        front = f"model.layers.{i}"
        for name, shape in {
            "self_attn.q_proj": (1024, 1024), "self_attn.k_proj": (256, 1024),
            "mlp.up_proj": (2816, 1024), "input_layernorm": (1024,),
        }.items():  # fmt: skip
            numbers = torch.randn(*shape, generator=random) * 0.02
            tensors[f"{front}.{name}.weight"] = numbers.to(torch.bfloat16)
    write_full(root / "org/base", tensors, shards=2, config={"model_type": "llama"})
    tuned = {k: v.to(torch.bfloat16) for k, v in moved(tensors).items()}
    write_full(root / "org/ft", tuned, shards=2)
    matrices = {k: v for k, v in tensors.items() if v.ndim == 2}
    write_adapter(root / "org/lora", low_rank(matrices))


def served(write: Callable[[Path], object]) -> Any:
    """A fixture for a module: all servers, giving the folders that `write` makes."""

    @pytest.fixture(scope="module", name="servers")
    def running_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
        root = tmp_path_factory.mktemp("served")
        write(root)
        with serving(root) as running:
            yield running

    return running_all
