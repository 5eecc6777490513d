"""The house rules, and that each of them can be broken."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from builders import moved, tiny_llama, write_full

import wdecomp
from wdecomp.cli import commands

ROOT = Path(__file__).parents[1]

# Contract → a file and the import that breaks it.
BREACHES = {
    "Each floor imports only from floors below its own": (
        "checkpoint/header.py",
        "import wdecomp.scan",
    ),
    "Tables never see a tensor": ("stats/fits.py", "import torch"),
    "torch only where something is trained": ("adapter/updates.py", "import torch"),
    "Nothing from a checkpoint is executed": ("checkpoint/container.py", "import pickle"),
}


def _lint(folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"}
    command = ["lint-imports", "--no-cache", "--config", str(folder / "pyproject.toml")]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def _copy(folder: Path) -> Path:
    shutil.copytree(ROOT / "wdecomp", folder / "wdecomp", ignore=shutil.ignore_patterns("__py*"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_import_contracts_are_kept(tmp_path: Path) -> None:
    assert f"{len(BREACHES)} kept, 0 broken" in _lint(_copy(tmp_path))


@pytest.mark.parametrize("contract", BREACHES)
def test_an_import_contract_fails_when_it_is_broken(contract: str, tmp_path: Path) -> None:
    folder = _copy(tmp_path)
    name, line = BREACHES[contract]
    file = folder / "wdecomp" / name
    file.write_text(f"{file.read_text()}\n{line}\n")
    assert f"{contract} BROKEN" in _lint(folder)


def test_torch_is_allowed_to_one_module_of_the_checkpoint_and_to_no_other(tmp_path: Path) -> None:
    folder = _copy(tmp_path)
    file = folder / "wdecomp" / "checkpoint" / "contents.py"
    file.write_text(f"{file.read_text()}\nimport torch\n")
    assert "torch only where something is trained BROKEN" in _lint(folder)


def _modules_after(code: str, *arguments: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after a piece of code."""
    program = f"{code}\nimport sys, json; print('\\n' + json.dumps(list(sys.modules)))"
    command = [sys.executable, "-c", program, *arguments]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(json.loads(output.splitlines()[-1]))


def test_help_loads_nothing_heavy_and_the_proof_can_fail() -> None:
    heavy = {"numpy", "pandas", "numba", "torch", "pyarrow", "matplotlib", "plotly"}
    help_ = "from wdecomp.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert not heavy & _modules_after(help_)
    assert "numpy" in _modules_after("import wdecomp; wdecomp.compare")


def test_help_is_there_in_half_a_second() -> None:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "wdecomp", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) <= 0.5


def test_comparing_full_checkpoints_never_imports_torch(tmp_path: Path) -> None:
    base = write_full(tmp_path / "base", tiny_llama(1))
    tuned = write_full(tmp_path / "ft", moved(tiny_llama(1)))
    code = "import sys, wdecomp; wdecomp.compare(*sys.argv[1:])"
    assert not {"torch", "safetensors"} & _modules_after(code, str(base), str(tuned))


def test_the_public_names_are_these() -> None:
    assert sorted(wdecomp.__all__) == [
        "ColumnDelta",
        "Decomposition",
        "Results",
        "WdecompError",
        "column_delta",
        "compare",
        "decompose",
        "read_results",
    ]
    for name in wdecomp.__all__:
        assert getattr(wdecomp, name).__doc__


def test_every_command_and_option_has_help_and_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for name, command in commands.commands.items():
        assert command.help
        assert f"wdecomp {name}" in readme
        options = [p for p in command.params if isinstance(p, click.Option)]
        assert all(option.help for option in options)


def test_architecture_names_every_module_and_no_other() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text.split("| floor | modules |")[1].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", table))
    children = (ROOT / "wdecomp").iterdir()
    there = {c.stem for c in children if c.suffix == ".py" or (c / "__init__.py").exists()}
    assert named == there - {"__init__", "__main__"}
    for path in re.findall(r"`(\w+/\w+\.py)`", text):
        assert (ROOT / "wdecomp" / path).exists() or (ROOT / path).exists(), path


def test_inspect_reads_headers_only(tmp_path: Path) -> None:
    tensors = {f"model.layers.{i}.self_attn.q_proj.weight": None for i in range(1000)}
    weight_map = {}
    header = {"dtype": "BF16", "shape": [4096, 4096], "data_offsets": [0, 2 * 4096**2]}
    for i, name in enumerate(tensors):
        shard = f"model-{i:05d}.safetensors"
        text = json.dumps({name: header}).encode()
        with (tmp_path / shard).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + 2 * 4096**2)  # sparse: 32 GiB that were never written
        weight_map[name] = shard
    index = json.dumps({"weight_map": weight_map})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    command = [sys.executable, "-m", "wdecomp", "inspect", str(tmp_path), str(tmp_path), "--json"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 20  # reading 67 GB takes longer
    assert json.loads(done.stdout)["bytes"] == 2 * 1000 * 2 * 4096**2
