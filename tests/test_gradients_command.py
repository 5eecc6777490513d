"""`wdecomp gradients` from its flags to its tables, and what is refused."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from wdecomp.charts.gradients import gradient_scatter
from wdecomp.cli import main
from wdecomp.train import Adapter, adapt, adapted_layers, save_adapter
from wdecomp.train.data import batches
from wdecomp.train.export import quiet
from wdecomp.train.gradients import equations, formula_error
from wdecomp.train.tasks import Example, pairs_loss

WORDS = ["[PAD]", "[UNK]", "<s>", "</s>", *(f"w{i}" for i in range(24))]
SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
SIZES |= {"vocab_size": 30, "num_attention_heads": 2, "max_position_embeddings": 16}
QUERY = "encoder.layer.1.attention.self.query"
FILES = {"modules.parquet", "columns.parquet", "gradients.svg", "gradients.png", "gradients.json"}
COVARIANCE = {"covariance-modules.parquet", "covariance-columns.parquet"}
# Gradients in float32 through two layers, summed in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT and a tiny LLaMA with one tokenizer, and rows for each task."""
    made, draw = tmp_path_factory.mktemp("gradients"), random.Random(0)
    torch.manual_seed(0)
    bert = BertModel(BertConfig(**SIZES), add_pooling_layer=False)
    llama = LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, **SIZES))
    with quiet():
        for name, model in (("bert", bert), ("llama", llama)):
            model.save_pretrained(made / name)
            tokenizer().save_pretrained(made / name)
    texts = [" ".join(draw.choices(WORDS[4:], k=draw.randint(2, 9))) for _ in range(21)]
    rows: dict[str, list[dict[str, Any]]] = {
        "pairs": [{"query": t, "document": " ".join(reversed(t.split()))} for t in texts],
        "classify": [{"text": t, "label": ["low", "high"][len(t) > 20]} for t in texts],
        "lm": [{"prompt": t, "completion": t[:2]} for t in texts],
        "three": [{"query": t, "document": t} for t in texts[:3]],
    }
    for name, each in rows.items():
        (made / f"{name}.jsonl").write_text("\n".join(map(json.dumps, each)))
    return made


def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("<s>", 2), ("</s>", 3)]
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", eos_token="</s>")


def flags(folder: Path, model: str, data: str, *more: str) -> list[str]:
    named = ["--model", str(folder / model), "--data", str(folder / f"{data}.jsonl")]
    return ["gradients", *named, "--batch", "4", "--quiet", *more]


def refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(given)
    assert end.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err.removeprefix("wdecomp: ")


def bert(folder: Path) -> Any:
    with quiet():
        return AutoModel.from_pretrained(folder / "bert").eval()


def gradient(folder: Path, model: Any, name: str, count: int) -> Tensor:
    """∂L/∂W of one layer by plain autograd, L the mean over the first batches of 4 pairs."""
    texts = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    pairs = [
        Example(*(tokenizer()(row[side])["input_ids"] for side in ("query", "document")))
        for row in texts
    ]
    weight = model.get_parameter(f"{name}.weight")
    total = torch.zeros_like(weight)
    order = batches(len(pairs), 4, 0)
    for _ in range(count):
        loss = pairs_loss(model, [pairs[i] for i in next(order)], 3)
        total += torch.autograd.grad(loss, weight)[0]
    return total / count


def test_tables_are_of_the_models_own_gradients(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(flags(folder, "bert", "pairs", "--batches", "3", "--out", str(out)))
    said = capsys.readouterr()
    assert said.err == ""
    modules = pd.read_parquet(out / "modules.parquet")
    kinds = [f"{i}.attention.self.{kind}" for i in (0, 1) for kind in ("query", "value")]
    assert sorted(modules["module"]) == [f"encoder.layer.{kind}" for kind in kinds]
    for row in modules.itertuples():
        assert f"{row.module} " in said.out
        assert f"{row.spearman:+.2f}" in said.out
    assert modules["formula_error"].max() < 1e-14
    assert "|∂L/∂m| goes with |cos(∂L/∂W, v)|" in said.out

    columns = pd.read_parquet(out / "columns.parquet")
    columns = columns[columns["module"] == QUERY]
    model = bert(folder)
    w, g = model.get_parameter(f"{QUERY}.weight").detach(), gradient(folder, model, QUERY, 3)
    unit = w / w.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(columns["magnitude_gradient"], (g * unit).sum(1), **CLOSE)
    np.testing.assert_allclose(columns["gradient_norm"], g.norm(dim=1), **CLOSE)
    cosine = torch.nn.functional.cosine_similarity(g, w, dim=1).abs()
    np.testing.assert_allclose(columns["abs_cosine"], cosine, rtol=1e-3)


@pytest.mark.parametrize("axis", ["output", "input"])
def test_an_adapter_has_magnitudes_of_its_own(folder: Path, tmp_path: Path, axis: Any) -> None:
    model = bert(folder)
    adapt(model, {"query": Adapter("dora", 3, 7, axis=axis)})
    torch.manual_seed(2)
    for layer in adapted_layers(model).values():
        assert layer.lora_B is not None
        assert layer.magnitude is not None
        layer.lora_B.data.normal_(std=0.2)
        layer.magnitude.data *= 1.5
    save_adapter(model, tmp_path / "adapter", "base")
    other = {"output": "input", "input": "output"}[axis]
    more = ["--adapter", str(tmp_path / "adapter"), "--axis", other, "--out", str(tmp_path / "out")]
    main(flags(folder, "bert", "pairs", "--batches", "2", *more))
    found = pd.read_parquet(tmp_path / "out" / "columns.parquet")
    assert set(found["module"]) == set(adapted_layers(model))
    assert set(found["axis"]) == {axis}
    layer = adapted_layers(model)[QUERY]
    merged, v = layer.merged(), layer.direction(*layer.factors()).detach()
    plain = bert(folder)
    plain.get_parameter(f"{QUERY}.weight").data.copy_(merged)
    first = QUERY.replace("1", "0", 1)
    plain.get_parameter(f"{first}.weight").data.copy_(adapted_layers(model)[first].merged())
    g = gradient(folder, plain, QUERY, 2)
    dim = 1 if axis == "output" else 0
    columns = found[found["module"] == QUERY]
    (file,) = (tmp_path / "adapter").glob("*.safetensors")
    stored = {key: t for key, t in load_file(file).items() if "layer.1" in key}
    (m,) = (t for key, t in stored.items() if key.endswith(("magnitude_vector", "dora_scale")))
    np.testing.assert_allclose(columns["magnitude"], m.flatten(), rtol=1e-7)
    np.testing.assert_allclose(columns["norm"], v.norm(dim=dim), rtol=1e-5)
    found_of_m = columns["magnitude_gradient"]
    np.testing.assert_allclose(found_of_m, (g * v).sum(dim) / v.norm(dim=dim), **CLOSE)


def test_covariances_are_asked_for_and_leave_with_their_question(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = flags(folder, "bert", "pairs", "--targets", "query", "--out", str(out))
    main([*given, "--covariance", "--columns", "5", "--json"])
    assert {file.name for file in out.iterdir()} == FILES | COVARIANCE
    columns = pd.read_parquet(out / "covariance-columns.parquet")
    assert len(columns) == 2 * 5
    modules = pd.read_parquet(out / "covariance-modules.parquet")
    assert modules["samples"].tolist() == [6, 6]  # 21 rows by 4: no row is in two batches
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "gradients.json").read_text())
    (first, _) = printed["covariance"]["modules"]
    assert first["distance_weight"] == pytest.approx(modules["distance_weight"][0], rel=1e-5)
    expected = {"task": "pairs", "batches": 6, "batch": 4, "targets": ["query"], "adapter": None}
    assert expected.items() <= printed.items()
    sha256 = hashlib.sha256((folder / "pairs.jsonl").read_bytes()).hexdigest()
    assert printed["data_sha256"] == sha256
    before = (out / "gradients.svg").read_bytes()
    main([*flags(folder, "bert", "pairs", "--targets", "query"), "--covariance", "--columns", "5"])
    said = capsys.readouterr().out
    assert "the covariance of a column's gradient comes closer" in said
    assert f"{modules['difference'][1]:+.2g}" in said
    main(given)
    assert {file.name for file in out.iterdir()} == FILES
    assert (out / "gradients.svg").read_bytes() == before
    assert json.loads((out / "gradients.json").read_text())["covariance"] is None


@pytest.mark.parametrize(("model", "data"), [("llama", "lm"), ("llama", "classify")])
def test_other_tasks(
    folder: Path, model: str, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = flags(folder, model, data, "--batches", "2", "--axis", "input", "--json")
    given.remove("--quiet")
    main(given)
    said = capsys.readouterr()
    assert "gradients" in said.err
    printed = json.loads(said.out)
    assert printed["task"] == data
    assert {row["module"].rpartition(".")[2] for row in printed["modules"]} == {"q_proj", "v_proj"}
    assert {row["axis"] for row in printed["modules"]} == {"input"}
    assert all(row["gradient_norm"] > 0 for row in printed["modules"])


def test_what_the_loss_does_not_reach_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(flags(folder, "bert", "pairs", "--batches", "1", "--targets", "query,pooler.dense"))
    assert "The loss does not depend on pooler.dense." in capsys.readouterr().out


def test_formulas_that_are_not_autograds_show(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    g, v = torch.randn(2, 9, 5, dtype=torch.float64)
    v[4] = 0
    m = torch.rand(9, dtype=torch.float64)
    assert formula_error(g, v, m) < 1e-15
    for name in ("direction_gradient", "magnitude_gradient"):
        right = getattr(equations, name)
        with monkeypatch.context() as patch:
            patch.setattr(equations, name, lambda *a, right=right: 1.001 * right(*a))
            assert 0.9e-3 < formula_error(g, v, m) < 2e-3


def test_a_picture_of_what_has_no_direction(tmp_path: Path) -> None:
    row = {"module": "h", "magnitude_gradient": 0.0, "gradient_norm": 0.0, "abs_cosine": np.nan}
    gradient_scatter(pd.DataFrame([row] * 3), "nothing", tmp_path / "nothing.png")
    assert (tmp_path / "nothing.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batches", "0"], "batches: is 0, at least 1 was expected."),
        (["--batches", "7"], "batches: is 7, at most 6 was expected. {data} has 21 rows: lower"),
        (["--batches", "4", "--covariance"], "batches: is 4, at least 5 was expected for a cov"),
        (["--batch", "0"], "batch: is 0, at least 1 was expected."),
        (["--batch", "1"], "batch: leaves 1 pair in a batch, at least 2 were expected."),
        (["--data", "{three}", "--batch", "2"], "batch: leaves 1 pair in a batch, at least 2"),
        (["--columns", "0", "--covariance"], "columns: is 0, at least 1 was expected."),
        (["--seed", "-1"], "seed: is -1, at least 0 was expected."),
        (["--max-length", "17"], "max_length: is 17, at most 16 was expected."),
        (["--targets", "qurey"], "targets: 'qurey' is the name of no module."),
        (["--targets", "dropout"], "is a Dropout, expected a Linear"),
        (["--task", "lm"], "has the fields query, document, expected prompt and completion"),
        (["--model", "{folder}"], "{folder}: has no config.json, the folder of a transformers"),
        (["--adapter", "{folder}"], "{folder}: no weights found."),
        (["--adapter", "{bert}"], "{bert}: is a whole model, an adapter was expected."),
        (["--out", "{bert}"], "holds config.json, model.safetensors, tokenizer.json and 1 more, a"),
        (["--out", "{data}"], "{data}: holds a file, a new folder or one of wdecomp gradients"),
        (["--out", "{data}/out"], "{data}/out: cannot be written (Not a directory)."),
    ],
)
def test_bad_input_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    places = {"folder": folder, "bert": folder / "bert", "data": folder / "pairs.jsonl"}
    places["three"] = folder / "three.jsonl"
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    given = flags(folder, "bert", "pairs", *(word.format(**places) for word in more))
    line = refused(given, capsys)
    assert message.format(**places) in line
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
