"""What `wdecomp inspect` says of adapters and their bases."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import low_rank, tiny_llama, write_adapter, write_full

from wdecomp.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base = tiny_llama(2)
    factors = low_rank(base)
    magnitudes = {module: torch.ones(len(b)) for module, (_, b) in factors.items()}
    write_full(tmp_path / "base", base, config={"model_type": "llama"})
    write_adapter(tmp_path / "dora", factors, magnitudes, lora_alpha=5, use_rslora=True)
    return tmp_path


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    main(["inspect", "--json", *arguments])
    return json.loads(capsys.readouterr().out)


def test_an_adapter_alone_shows_dialect_formula_and_scaling(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [found] = _json(capsys, str(folder / "dora"))["checkpoints"]
    assert (found["kind"], found["adapter"]["dialect"], found["adapter"]["method"]) == (
        *("adapter", "PEFT", "dora"),
    )
    update = found["adapter"]["updates"][0]
    assert update == {
        "parameter": "model.layers.0.self_attn.q_proj.weight",
        "from": "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "formula": "m·V/‖V‖ per output, V = W0 + s·BA",
        "rank": 2,
        "scaling": 5 / 2**0.5,
    }


@pytest.mark.parametrize("spelling", ["before", "--base"])
def test_with_a_base_every_key_has_its_tensor_and_its_orientation(
    spelling: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, dora = str(folder / "base"), str(folder / "dora")
    [run] = _json(capsys, *([base, dora] if spelling == "before" else [dora, "--base", base]))[
        "runs"
    ]
    assert len(run["updates"]) == 4
    assert run["matrices"] == [
        ["decoder", "q", "(output, input)", "linear", 2],
        ["decoder", "v", "(output, input)", "linear", 2],
    ]


def test_long_tables_are_cut_and_all_shows_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_llama(30)
    write_full(folder / "deep", base)
    write_adapter(folder / "lora", low_rank(base))
    main(["inspect", str(folder / "deep"), str(folder / "lora")])
    short = capsys.readouterr().out
    assert "and 40 more: --all shows them" in short
    main(["inspect", "--all", str(folder / "deep"), str(folder / "lora")])
    assert capsys.readouterr().out.count("←") == 60
