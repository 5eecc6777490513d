"""The JSON files of strangers, mutated: adapter configs, indexes, configs of models and pipelines.

    python tests/fuzz_configs.py [--count 100000] [--seed 0] [--folder FOLDER]

Whatever they hold, a checkpoint either opens or is refused in one line that names its folder, in
less than ten seconds. Prints JSON: how many opened and were refused, and what was wrong.
"""

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from builders import low_rank, moved, tiny_llama, write_adapter, write_full
from fuzz_headers import BYTES, command

from wdecomp.adapter import read_adapter
from wdecomp.checkpoint import Checkpoint, open_checkpoint
from wdecomp.errors import WdecompError
from wdecomp.pairing import pair

Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.0.self_attn.v_proj"
LORA = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "use_dora": False,
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {"q_proj": 8},
    "target_modules": ["q_proj", "v_proj"],
    "target_parameters": [],
    "modules_to_save": None,
    "lora_bias": False,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_to_transform": None,
    "base_model_name_or_path": "base",
    "trainable_token_indices": None,
    "alora_invocation_tokens": None,
    "use_qalora": False,
    "corda_config": None,
    "eva_config": None,
    "auto_mapping": None,
}
MODEL = {
    "model_type": "llama",
    "hidden_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
    "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 8, "desc_act": False},
    "text_config": {"model_type": "llama", "num_attention_heads": 4},
    "auto_map": {"AutoConfig": "evil.Config"},
}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "weights": {"num_bits": 4, "group_size": 8, "symmetric": True, "strategy": "group"},
            "targets": ["Linear"],
        }
    },
    "weight_block_size": [128, 128],
}
PIPELINE = {"_class_name": "P", "unet": ["diffusers", "UNet"], "vae": [None, None]}
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 8, 0.5, -2.5, 1e308, 2**63, 10**400, "", "x", "LORA", "DORA",
    "LOHA", "LOKR", "OFT", "VERA", "IA3", "true", "none", "all-linear", "(", ".*", "a{1000}",
    "../x", "/etc/passwd", "\x00", "\x1b[2J", "é", "model-00001-of-00002.safetensors", [],
    [None], [1, 2],
    ["x"], [[1]], {}, {"": None}, {"q_proj": 4}, {"q_proj": "4"}, {"x": {"y": []}},
    [[0, 1], [1, 2]],
]  # fmt: skip


def _mutated(value: Any, dice: random.Random) -> str | bytes:
    for _ in range(dice.randrange(1, 4)):
        value = _changed(value, dice)
    text = json.dumps(value, ensure_ascii=dice.random() < 0.5)
    if dice.random() < 0.6:
        return text
    changed = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(dice.randrange(1, 4)):
        at = dice.randrange(len(changed) + 1)
        changed[at : at + dice.choice([0, 1, 1, 8])] = bytes([dice.choice(BYTES)])
    return bytes(changed)


def _changed(value: Any, dice: random.Random) -> Any:
    """The value with something in it replaced, removed, added or put elsewhere."""
    if isinstance(value, dict) and value and dice.random() < 0.95:
        key = dice.choice(list(value))
        kind = dice.randrange(5)
        if kind == 0:
            return {k: v for k, v in value.items() if k != key}
        if kind == 1:
            return value | {dice.choice([*value, "x", ""]): dice.choice(ODD)}
        if kind == 2:
            return {dice.choice(["x", "", f"{k}.", k]): v for k, v in value.items()}
        return value | {key: _changed(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.5:
        at = dice.randrange(len(value))
        return [*value[:at], _changed(value[at], dice), *value[at + dice.randrange(2) :]]
    return dice.choice(ODD)


class Targets:
    """Whole checkpoints, each with the file that is to be mutated."""

    def __init__(self, folder: Path) -> None:
        tensors = tiny_llama(1)
        self.base = open_checkpoint(write_full(folder / "base", tensors))
        lora = write_adapter(folder / "lora", low_rank(tensors))
        magnitudes = {Q: torch.ones(32), V: torch.ones(8)}
        dora = write_adapter(folder / "dora", low_rank(tensors), magnitudes)
        model = write_full(folder / "model", moved(tensors))
        sharded = write_full(folder / "sharded", moved(tensors), shards=2)
        pipeline = folder / "pipeline"
        write_full(pipeline / "unet", {"conv.weight": torch.ones(3, 2, 1, 1)})
        (pipeline / "unet" / "model.safetensors").rename(
            pipeline / "unet" / "diffusion_pytorch_model.safetensors"
        )
        packed = {
            f"{Q}.qweight": torch.zeros(3, 32, dtype=torch.int32),
            f"{Q}.qzeros": torch.zeros(3, 4, dtype=torch.int32),
            f"{Q}.scales": torch.ones(3, 32, dtype=torch.float16),
            f"{Q}.g_idx": torch.zeros(24, dtype=torch.int32),
            f"{V}.weight_packed": torch.zeros(8, 3, dtype=torch.int32),
            f"{V}.weight_scale": torch.ones(8, 3, dtype=torch.float16),
            f"{V}.weight_shape": torch.tensor([8, 24]),
        }
        quantized = write_full(folder / "quantized", packed)
        index = sharded / "model.safetensors.index.json"
        self.all: list[tuple[Path, Path, Any]] = [
            (lora, lora / "adapter_config.json", LORA),
            (dora, dora / "adapter_config.json", LORA | {"use_dora": True}),
            (model, model / "config.json", MODEL),
            (quantized, quantized / "config.json", MODEL | {"quantization_config": COMPRESSED}),
            (quantized, quantized / "config.json", MODEL),
            (sharded, index, json.loads(index.read_text())),
            (pipeline, pipeline / "model_index.json", PIPELINE),
            (pipeline, pipeline / "unet" / "config.json", MODEL),
        ]


def _open(path: Path, base: Checkpoint) -> None:
    """As far as anything is decided from configs: every tensor read, paired or left out."""
    opened = open_checkpoint(path)
    if opened.is_adapter:
        read_adapter(opened)
    if not opened.components:
        pair(base, opened)


def fuzz(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """So many files; what main prints."""
    dice, targets = random.Random(seed), Targets(folder)
    said: Counter[str] = Counter()
    wrong: dict[str, str] = {}
    for _ in range(count):
        path, file, value = dice.choice(targets.all)
        content = _mutated(value, dice)
        text = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        before = file.read_bytes() if file.exists() else None
        file.write_bytes(text)
        start = time.process_time()
        try:
            _open(path, targets.base)
            said[f"{file.name} opened"] += 1
        except WdecompError as error:
            said[f"{file.name} refused"] += 1
            if "\n" in str(error).strip() or str(folder) not in str(error):
                wrong.setdefault(f"a refusal that is not one line with a path: {error}", repr(text))
        except Exception as error:  # noqa: BLE001  whatever it is, it is what we look for
            wrong.setdefault(f"{type(error).__name__}: {error} of {file.name}", repr(text))
        if time.process_time() - start > 10:
            wrong.setdefault("slow", repr(text))
        if before is None:
            file.unlink()
        else:
            file.write_bytes(before)
    return {"files": count, "said": dict(sorted(said.items())), "wrong": wrong}


if __name__ == "__main__":
    command(fuzz, 100_000)
