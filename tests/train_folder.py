"""Tiny models with tokenizers and training sets, and `wdecomp train` run on them."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from wdecomp.cli import main
from wdecomp.cli.train import train
from wdecomp.train.export import quiet

WORDS = ["[PAD]", "[UNK]", "<s>", "</s>", *(f"w{i}" for i in range(24))]
SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
SIZES |= {"vocab_size": 30, "num_attention_heads": 2, "max_position_embeddings": 16}


def write_folder(made: Path) -> Path:
    """A tiny BERT and a tiny LLaMA with tokenizers, and a training set for each task."""
    draw = random.Random(0)
    torch.manual_seed(0)
    bert = BertModel(BertConfig(**SIZES), add_pooling_layer=False)
    llama = LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, **SIZES))
    with quiet():
        for name, model in (("bert", bert), ("llama", llama)):
            model.save_pretrained(made / name)
            tokenizer(name).save_pretrained(made / name)
    texts = [" ".join(draw.choices(WORDS[4:], k=draw.randint(2, 9))) for _ in range(20)]
    rows: dict[str, list[dict[str, Any]]] = {
        "pairs": [{"query": t, "document": " ".join(reversed(t.split()))} for t in texts],
        "classify": [{"text": t, "label": ["low", "high"][len(t) > 20]} for t in texts],
        "lm": [{"prompt": t, "completion": t[:2]} for t in texts],
    }
    for task, each in rows.items():
        (made / f"{task}.jsonl").write_text("\n".join(map(json.dumps, each)))
    return made


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("<s>", 2), ("</s>", 3)]
    form = "<s> $A </s>" if name == "bert" else "<s> $A"
    made.post_processor = processors.TemplateProcessing(form, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", eos_token="</s>")


def flags(folder: Path, model: str, task: str, *more: str) -> list[str]:
    named = {"model": folder / model, "data": folder / f"{task}.jsonl"}
    given = [word for key, value in named.items() for word in (f"--{key}", str(value))]
    return [*given, "--batch", "5", "--lr", "0.01", "--rank", "3", "--quiet", *more]


def run(out: Path, given: list[str]) -> Path:
    train.main([*given, "--out", str(out)], standalone_mode=False)
    return out


def refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["train", *given])
    assert end.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err.removeprefix("wdecomp: ")


def hashes(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
