"""Checkpoints of random weights with the shapes of LLaMA-7B, for the benchmarks."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HIDDEN, INNER = 4096, 11008
SHAPES = {
    **{f"self_attn.{which}_proj": (HIDDEN, HIDDEN) for which in "qkvo"},
    **{f"mlp.{which}_proj": (INNER, HIDDEN) for which in ("gate", "up")},
    "mlp.down_proj": (HIDDEN, INNER),
}
LAYER_BYTES = sum(2 * rows * width for rows, width in SHAPES.values())
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32}
CONFIG |= {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_attention_heads": 32}

Array = np.ndarray


def write_models(folder: Path, layers: int, tuned: int) -> tuple[Path, list[Path]]:
    """A BF16 base, a shard for each layer, and tuned ones at a distance of 5 % from it."""
    random = np.random.default_rng(0)
    weights = random.standard_normal(50_000_000, np.float32) * np.float32(0.02)
    paths = [folder / "base", *(folder / f"tuned-{i}" for i in range(1, tuned + 1))]
    for path in paths:
        changed = weights
        if path.name != "base":
            changed = weights + random.standard_normal(weights.size, np.float32) * np.float32(1e-3)
        _write_model(path, layers, (changed.view(np.uint32) >> 16).astype(np.uint16))
    return paths[0], paths[1:]


def write_adapter(folder: Path, layers: int, rank: int, dora: bool) -> Path:
    """A PEFT adapter of every projection, as long as a short training would make it."""
    random, tensors = np.random.default_rng(rank), {}
    for name, (rows, width) in _names(layers):
        key = f"base_model.model.{name}"
        for factor, shape in (("lora_A", (rank, width)), ("lora_B", (rows, rank))):
            numbers = random.standard_normal(shape, np.float32) * np.float32(0.02)
            tensors[f"{key}.{factor}.weight"] = numbers
        if dora:
            norms = np.full(rows, 0.02 * width**0.5, np.float32)
            tensors[f"{key}.lora_magnitude_vector"] = norms
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank}
    config |= {"use_dora": dora, "target_modules": [name.split(".")[1] for name in SHAPES]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def write_shard(
    file: Path, shapes: dict[str, tuple[int, int]], content: Callable[[int], Iterator[bytes]]
) -> None:
    """A BF16 safetensors file.

    Args:
        file: its path.
        shapes: of its tensors.
        content: the bytes of one, given how many there are.
    """
    header, end = {}, 0
    for name, (rows, width) in shapes.items():
        begin, end = end, end + 2 * rows * width
        header[name] = {"dtype": "BF16", "shape": [rows, width], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for rows, width in shapes.values():
            stream.writelines(content(2 * rows * width))


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    """Which tensor is in which shard."""
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)


def _write_model(folder: Path, layers: int, bits: Array) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
    starts = iter(range(0, 10**9, 1_000_003))

    def content(nbytes: int) -> Iterator[bytes]:
        start = next(starts) % (bits.size - nbytes // 2)
        yield bits[start : start + nbytes // 2].tobytes()

    weight_map: dict[str, str] = {}
    for layer in range(layers):
        file, prefix = f"model-{layer:05d}.safetensors", f"model.layers.{layer}."
        shapes = {f"{n}.weight": s for n, s in _names(layers) if n.startswith(prefix)}
        write_shard(folder / file, shapes, content)
        weight_map |= dict.fromkeys(shapes, file)
    write_index(folder, weight_map)


def _names(layers: int) -> Iterator[tuple[str, tuple[int, int]]]:
    for layer in range(layers):
        for name, shape in SHAPES.items():
            yield f"model.layers.{layer}.{name}", shape
