"""What `wdecomp train` is asked for through a recipe, and what a dry run says of it."""

import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from train_folder import flags, hashes, refused, run, write_folder

from wdecomp.cli import main
from wdecomp.errors import TrainingError
from wdecomp.train.config import adapters_of, planned_warmup, read_config
from wdecomp.train.layers import Adapter
from wdecomp.train.recipe import read_recipe, recipe_methods, recipe_names

BESIDE = {"model": "m", "data": "d.txt", "out": "o"}
OWN = """
model = "a/b"
targets = ["q_proj", "v_proj"]
rank = 3
alpha = 7
dropout = 0.1
batch = 5
accumulate = 2
schedule = "cosine"
warmup = 0.25
clip = 0.5
epochs = 4
precision = "nf4"
[methods.plain]
method = "lora"
[methods.wide]
method = "dora"
magnitude_targets = ["k_proj"]
lr = 0.01
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("train"))


@pytest.fixture
def own(tmp_path: Path) -> str:
    file = tmp_path / "own.toml"
    file.write_text(OWN)
    return str(file)


def printed(given: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What the command says to stdout and to stderr."""
    capsys.readouterr()
    main(["train", *given])
    said = capsys.readouterr()
    return said.out, said.err


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (
            {"recipe": "commonsense-llama-13b:dora-half"},
            {"rank": 16, "alpha": 32, "lr": 3e-4, "warmup": 100, "batch": 16, "epochs": 3},
        ),
        (
            {"recipe": "commonsense-llama-13b", "method": "lora"},
            {"rank": 32, "dropout": 0.05, "lr": None, "schedule": "linear", "accumulate": 1},
        ),
        (
            {"recipe": "commonsense-llama-7b:dora-granularity"},
            {
                "targets": ("q_proj", "k_proj", "v_proj"),
                "magnitude_targets": ("o_proj", "gate_proj", "up_proj", "down_proj"),
            },
        ),
        (
            {"recipe": "vl-bart:dora-image"},
            {"warmup": 0.1, "clip": 5.0, "batch": 300, "epochs": 20, "weight_decay": 0.0},
        ),
        (
            {"recipe": "alpaca-llama-7b:dvora", "steps": 9, "lr": 1.0},
            {"method": "dvora", "steps": 9, "epochs": None, "lr": 1.0, "accumulate": 4},
        ),
        ({"recipe": "vl-bart:full-image"}, {"method": "full", "targets": (), "lr": 1e-4}),
        (  # the one method that trains a DoRA
            {"recipe": "orca-math-llama2-7b", "method": "dora", "targets": ["q_proj"], "rank": 8}
            | {"alpha": 4},
            {"quantize": "nf4", "alpha": 4, "rank": 8, "targets": ("q_proj",)},
        ),
        (
            {"recipe": "commonsense-llama-7b:dora", "method": "lora", "rank": 5},
            {"method": "lora", "rank": 5, "alpha": 64},
        ),
    ],
)
def test_a_recipes_settings_stand_below_those_that_are_given(
    asked: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = read_config(BESIDE | asked)
    assert {key: getattr(config, key) for key in expected} == expected


def test_the_adapters_are_the_recipes() -> None:
    for name in recipe_names():
        for method, values in recipe_methods(name).items():
            beside = {key: 8 for key in ("rank", "alpha") if key not in values}
            beside |= {} if "targets" in values else {"targets": ["q_proj"]}
            recipe = read_recipe(name, method, beside)
            config = read_config(BESIDE | beside | {"recipe": f"{name}:{method}"})
            assert adapters_of(config, config.targets) == recipe.adapters


def test_a_file_stands_above_its_recipe_and_below_flags(tmp_path: Path, own: str) -> None:
    file = tmp_path / "a.toml"
    file.write_text(f'recipe = "{own}:wide"\nrank = 6\nclip = 3.0\nsteps = 12\n')
    config = read_config(BESIDE | {"clip": 2.0}, file)
    assert (config.rank, config.clip, config.lr, config.epochs) == (6, 2.0, 0.01, None)
    assert planned_warmup(config, 12) == 3
    assert config.quantize == "nf4"
    assert read_config(BESIDE | {"quantize": "none"}, file).quantize == "none"
    only = Adapter("magnitude")
    assert adapters_of(config, config.targets)["k_proj"] == only


def test_a_share_and_a_number_of_steps_of_warm_up() -> None:
    def steps(warmup: float) -> int:
        return planned_warmup(read_config(BESIDE | {"method": "lora", "warmup": warmup}), 30)

    assert [steps(0.1), steps(7), steps(0.0), steps(1.0)] == [3, 7, 0, 30]
    with pytest.raises(TrainingError, match=r"warmup: is 1.5, at most 1.0 was expected\. "):
        steps(1.5)


@pytest.mark.parametrize(
    ("precision", "quantize", "held"),
    [("nf4", "nf4", "float32"), ("bfloat16", "none", "bfloat16"), ("float16", "none", "float32")],
)
def test_the_precision_of_the_base_is_the_recipes(
    own: str, precision: str, quantize: str, held: str
) -> None:
    Path(own).write_text(OWN.replace("nf4", precision))
    config = read_config(BESIDE | {"recipe": f"{own}:wide"})
    assert (config.quantize, config.precision) == (quantize, held)
    full = read_config(BESIDE | {"recipe": f"{own}:wide", "method": "full"})
    assert full.precision == "float32"


def test_a_recipe_and_its_settings_one_by_one_are_the_same_run(
    folder: Path, tmp_path: Path, own: str
) -> None:
    # flags() has --batch, --lr and --rank
    beside = flags(folder, "llama", "lm", "--save-at", "1.0")
    plain = ["--method", "dora", "--targets", "q_proj,v_proj", "--magnitude-targets", "k_proj"]
    plain += ["--alpha", "7", "--dropout", "0.1", "--accumulate", "2", "--schedule", "cosine"]
    plain += ["--warmup", "2", "--clip", "0.5", "--epochs", "4", "--quantize", "nf4"]
    one_by_one = run(tmp_path / "a", [*beside, *plain])
    del beside[beside.index("--batch") : beside.index("--quiet")]
    through = run(tmp_path / "b", [*beside, "--recipe", f"{own}:wide"])
    assert hashes(through) == hashes(one_by_one)


def test_bundled_recipes_are_listed_as_they_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(["--recipe", "list"], capsys)[0].splitlines()
    assert lines[0].split()[:3] == ["recipe", "method", "rank"]
    named = [line.split()[0] for line in lines[1:]]
    assert named == [f"{name}:{m}" for name in recipe_names() for m in recipe_methods(name)]
    assert re.search(r"^commonsense-llama-7b:dora-half +dora +16 +0.0002 +16 +3 +0.43 ", lines[11])


def test_a_dry_run_needs_no_more_than_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--recipe", "commonsense-llama-7b", "--method", "lora", "--dry-run"]
    assert "0.8256 % (the paper prints 0.83 %)" in printed(given, capsys)[0]
    out, err = printed([*given, "--half-rank"], capsys)
    assert re.search(r"^down_proj +lora +16 +4096 +11008 +32 +7,733,248$", out, re.MULTILINE)
    assert "trainable 28,049,408 of 6,766,465,024: 0.4145 %\n" in out
    assert "25.21 GiB  weights: the base in float32, what is trained in float32" in out
    assert err.splitlines() == [
        "Recipe commonsense-llama-7b:lora is of huggyllama/llama-7b, trained on the training data "
        "of eight commonsense tasks, joined.",
        "It does not say lr (here the trainer's own).",
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["pairs", "lm", "classify"])
def test_a_dry_run_counts_what_a_run_trains(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    given = flags(folder, "llama", task, "--method", "dora", "--steps", "1")
    given += ["--magnitude-targets", "o_proj"]
    out, err = printed([*given, "--dry-run"], capsys)
    assert not err
    trainable = int(re.search(r"^trainable ([\d,]+) of", out, re.M)[1].replace(",", ""))  # type: ignore[index]
    stored = load_file(run(tmp_path, given) / "checkpoint-1/adapter_model.safetensors")
    numbers = sum(t.numel() for key, t in stored.items() if "score" not in key)
    of_magnitudes_alone = 2 * (24 + 24)  # their A and B, which are zero
    assert trainable == numbers - of_magnitudes_alone
    assert ("a head is trained whole" in out) == (task == "classify")
    tokens = {"pairs": 2 * 5 * 16, "lm": 5 * 16, "classify": 5 * 16}[task]
    assert f"estimated for {tokens} tokens" in out


def test_a_dry_run_estimates_what_is_held(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--recipe", "commonsense-llama-7b:dora", "--dry-run", "--batch", "1"]
    for more, weights in (
        (["--precision", "bfloat16"], 12.77),
        (["--quantize", "nf4", "--precision", "bfloat16"], 3.81),
        (["--quantize", "nf4"], 4.30),  # embeddings and head in float32: half a GiB more
    ):
        out, _ = printed([*given, *more], capsys)
        found = re.search(r"^ *([\d.]+) GiB  weights", out, re.M)
        assert found is not None
        assert float(found[1]) == pytest.approx(weights, abs=0.011)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "method: is not given, full or lora or dora or vera or dvora or magnitude was expect"),
        (["--dry-run"], "method: is not given, "),
        (["--method", "dora", "--dry-run"], "model: is not given, a text was expected. Name it"),
        (["--recipe", "no-such"], "recipe: is 'no-such', the path of a .toml file or one of alp"),
        (["--recipe", "vl-bart:dora"], "vl-bart.toml: method is 'dora', one of full-image, lora-"),
        (["--recipe", "vl-bart"], "vl-bart.toml: method is not chosen, one of full-image, lora-"),
        (
            ["--recipe", "commonsense-llama-7b", "--method", "dora"],
            "model: the recipe's, huggyllama/llama-7b, is no folder here, and nothing is fetched. "
            "Name the folder that has it with --model.",
        ),
        (
            ["--recipe", "orca-math-llama2-7b:qdora", "--dry-run"],
            "orca-math-llama2-7b.toml: methods.qdora.targets is not given, a list of different ",
        ),
        (
            ["--recipe", "sdxl-dreambooth:dora", "--rank", "4", "--alpha", "4", "--dry-run"],
            "sdxl-dreambooth: has no config, one that transformers knows was expected. Name a",
        ),
        (
            ["--recipe", "commonsense-llama-7b:dora", "--rank", "0", "--dry-run"],
            "rank: is 0, at least 1 was expected.",
        ),
        (
            ["--recipe", "commonsense-llama-7b:dora-granularity", "--targets", "o_proj"],
            "commonsense-llama-7b.toml: magnitude_targets has 'o_proj', which is one of targets.",
        ),
        (["--dry-run", "--method", "lora", "--model", "/no/such"], "/no/such/config.json: is not"),
        (["--record-every", "0", "--method", "lora"], "record_every: is 0, at least 1 was expecte"),
    ],
)
def test_what_cannot_be_is_one_line(
    capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    assert refused(given, capsys).startswith(message)
