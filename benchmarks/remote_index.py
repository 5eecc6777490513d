"""`inspect hf://…` of a model of 671 billion weights, of which there are only headers.

    python benchmarks/remote_index.py FOLDER [--latency 0.03]

writes the index and the 163 shards of a model with DeepSeek-V3's shapes (90,000 tensors in FP8 with
scales; 673 GB, sparse: some MB on the disk) into FOLDER, serves them as the hub does, and prints
the time and the memory of `inspect` of it alone and beside a second one of its kind.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from remote import Server

SHARDS = 163
LAYERS, DENSE, EXPERTS = 61, 3, 256
HIDDEN, INNER, NARROW = 7168, 18432, 2048
CONFIG = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": LAYERS,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}


def shapes() -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of every tensor, those of one module one after another."""
    yield "model.embed_tokens.weight", "BF16", (129280, HIDDEN)
    for layer in range(LAYERS):
        front = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{front}.{norm}.weight", "BF16", (HIDDEN,)
        for name, shape in {
            "q_a_proj": (1536, HIDDEN), "q_b_proj": (24576, 1536),
            "kv_a_proj_with_mqa": (576, HIDDEN), "kv_b_proj": (32768, 512),
            "o_proj": (HIDDEN, 16384),
        }.items():  # fmt: skip
            yield from _scaled(f"{front}.self_attn.{name}", shape)
        if layer < DENSE:
            yield from _mlp(f"{front}.mlp", INNER)
            continue
        yield f"{front}.mlp.gate.weight", "BF16", (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            yield from _mlp(f"{front}.mlp.experts.{expert}", NARROW)
        yield from _mlp(f"{front}.mlp.shared_experts", NARROW)
    yield "model.norm.weight", "BF16", (HIDDEN,)
    yield "lm_head.weight", "BF16", (129280, HIDDEN)


def _mlp(front: str, inner: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    for name, shape in {
        "gate": (inner, HIDDEN),
        "up": (inner, HIDDEN),
        "down": (HIDDEN, inner),
    }.items():
        yield from _scaled(f"{front}.{name}_proj", shape)


def _scaled(front: str, shape: tuple[int, int]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    rows, columns = shape
    yield f"{front}.weight", "F8_E4M3", shape
    yield f"{front}.weight_scale_inv", "F32", (-(-rows // 128), -(-columns // 128))


def write(folder: Path) -> int:
    """The files, sparse; how many tensors they have."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tensors = list(shapes())
    each = -(-len(tensors) // SHARDS)
    weight_map = {}
    for i in range(SHARDS):
        name = f"model-{i + 1:05d}-of-{SHARDS:06d}.safetensors"
        part = tensors[i * each : (i + 1) * each]
        weight_map |= dict.fromkeys((tensor for tensor, _, _ in part), name)
        _write_shard(folder / name, part)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
    return len(tensors)


def _write_shard(file: Path, part: list[tuple[str, str, tuple[int, ...]]]) -> None:
    header, end = {}, 0
    for name, dtype, shape in part:
        size = {"BF16": 2, "F8_E4M3": 1, "F32": 4}[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


def inspected(*paths: str) -> tuple[float, float, str]:
    """Seconds and peak GB of the command, and the end of what it says."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "wdecomp", "inspect", "--json", *paths]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return time.perf_counter() - started, peak, found.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency", type=float, default=0.03)
    asked = parser.parse_args()
    for name in ("base", "ft"):
        if not (asked.folder / "org" / name).exists():
            print(f"{name}: {write(asked.folder / 'org' / name):,} tensors")
    os.environ |= {"HF_TOKEN": "t"}
    server = Server(asked.folder, "hf", asked.latency)
    try:
        for paths in (("hf://org/ft",), ("hf://org/base", "hf://org/ft")):
            seconds, peak, said = inspected(*paths)
            found = json.loads(said)
            what = f"{found['bytes'] / 1e9:,.0f} GB to read" if "units" in found else ""
            print(f"inspect {' '.join(paths)}: {seconds:.1f} s, {peak:.2f} GB {what}")
    finally:
        server.stop()


if __name__ == "__main__":
    main()
