"""`wdecomp audit` from the outside: what it prints, in which forms, and its exit codes."""

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pyarrow.parquet as pq
import pytest
import torch
from audit_runs import ADAPTER, adapted, base, base_model, dora, edited, freeze, trained
from builders import low_rank, moved, tiny_llama, write_adapter, write_full

import wdecomp
from wdecomp.audit import RULES, as_json, findings
from wdecomp.cli import main

LEVELS = {"none", "note", "warning", "error"}  # SARIF 2.1.0, 3.27.10


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, a DoRA with a frozen magnitude, and a healthy one."""
    folder = tmp_path_factory.mktemp("frozen")
    dora(folder)
    trained(freeze(adapted(base_model()), "magnitude")).save_pretrained(folder / "frozen")
    return folder


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = 0
    try:
        main(["audit", *map(str, arguments), "-q"])
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    return code, *capsys.readouterr()


def test_a_finding_says_what_where_how_much_and_what_to_do(
    frozen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = _run(capsys, frozen / "base", frozen / "frozen", frozen / "dora")
    assert (code, err) == (0, "")
    assert out.startswith("ERRORS\n\nfrozen-magnitude  frozen: DoRA's magnitudes did not move\n")
    assert "all 6 magnitude vectors are the base's norms still" in out
    assert "equal_to_norm 160" in out
    assert "tensors (6): model.layers.0.mlp.down_proj.weight" in out
    assert "\n    do: Keep magnitudes in float32" in out
    assert out.endswith("1 error.\n")
    assert out.isascii()


def test_sound_checkpoints_end_in_one_line(
    frozen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(capsys, frozen / "base", frozen / "dora", "--fail-on", "warning") == (
        0, "No findings.\n", "",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tuned", "fail_on", "code"),
    [("frozen", "error", 3), ("frozen", "warning", 3), ("ft", "error", 0), ("ft", "warning", 3)],
)
def test_what_fails_is_what_is_as_bad_as_was_said(
    tuned: str, fail_on: str, code: int, frozen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if tuned == "ft":  # a warning
        rounded = {n: t.bfloat16() for n, t in base_model().state_dict().items()}
        write_full(frozen / "ft", rounded)
    assert _run(capsys, frozen / "base", frozen / tuned, "--fail-on", fail_on)[0] == code


def test_json_is_what_python_gives(frozen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = _run(capsys, frozen / "base", frozen / "frozen", "--json")
    printed = json.loads(out)
    results = wdecomp.compare(frozen / "base", frozen / "frozen")
    assert printed == json.loads(json.dumps(as_json(findings(results))))
    [finding] = printed["findings"]
    assert printed["counts"] == {"error": 1, "warning": 0, "note": 0}
    assert (len(finding["tensors"]), finding["tensor_count"]) == (5, 6)


def _check_sarif(log: Any) -> None:
    """What the standard requires of the objects that are used, and of what they refer to."""
    assert log["version"] == "2.1.0"
    [run] = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "wdecomp"
    ids = [rule["id"] for rule in driver["rules"]]
    assert len(set(ids)) == len(ids)
    for rule in driver["rules"]:
        assert rule["shortDescription"]["text"]
        assert rule["help"]["text"]
    for result in run["results"]:
        assert result["message"]["text"]
        assert result["level"] in LEVELS
        assert ids[result["ruleIndex"]] == result["ruleId"]
        for location in result["locations"]:
            assert urlparse(location["physicalLocation"]["artifactLocation"]["uri"]).scheme
            for logical in location.get("logicalLocations", []):
                assert logical["fullyQualifiedName"]


def test_sarif_has_what_its_schema_requires(
    frozen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = _run(capsys, frozen / "base", frozen / "frozen", "--sarif", "--fail-on", "error")
    log = json.loads(out)
    _check_sarif(log)
    [result] = log["runs"][0]["results"]
    assert (code, result["ruleId"], result["level"]) == (3, "frozen-magnitude", "error")
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == (frozen / "frozen").resolve().as_uri()
    assert len(log["runs"][0]["tool"]["driver"]["rules"]) == len(RULES)


def test_results_that_were_made_elsewhere_tell_the_same(
    frozen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _run(capsys, frozen / "base", frozen / "frozen", "-o", tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    shutil.copytree(frozen / "base", tmp_path / "base")  # no tensor is read from now on
    assert _run(capsys, tmp_path / "there") == before
    assert "frozen-magnitude" in before[1]
    for option, value in (("--candidate-base", frozen / "base"), ("--modules", "q"), ("-j", 1)):
        code, out, err = _run(capsys, tmp_path / "there", option, value)
        assert (code, out) == (2, "")
        assert "needs BASE and TUNED" in err


@pytest.mark.parametrize(
    ("table", "column"),
    [("facts", "norm_b"), ("modules", "growth_ratio"), ("fits", "cluster_low")],
)
def test_results_of_an_older_schema_are_named(
    table: str, column: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_full(tmp_path / "base", tiny_llama(1))
    wdecomp.compare(base, write_full(tmp_path / "ft", moved(tiny_llama(1))), out=tmp_path / "out")
    file = tmp_path / f"out/{table}.parquet"
    pq.write_table(pq.read_table(file).drop_columns([column]), file)
    code, out, err = _run(capsys, tmp_path / "out")
    assert (code, out) == (1, "")
    assert f"{table}.parquet: has no {column}. It was made by an older wdecomp" in err


def test_a_dora_without_its_magnitudes_is_a_finding_beside_the_others(
    frozen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(frozen / "dora", tmp_path / "lost")
    edited(
        tmp_path / "lost" / ADAPTER,
        lambda t: [t.pop(key) for key in list(t) if "magnitude" in key],
    )
    code, out, _ = _run(capsys, frozen / "base", tmp_path / "lost", frozen / "frozen", "--json")
    assert code == 0
    first, second = json.loads(out)["findings"]
    assert (first["rule"], first["severity"]) == ("unreadable", "error")
    assert "lora_magnitude_vector is missing for 6 of 6 modules" in first["message"]
    assert (second["rule"], second["run"]) == ("frozen-magnitude", "frozen")


def test_a_base_that_does_not_fit_is_a_finding_and_the_candidate_that_does_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = tiny_llama(2)
    narrow = {n: t[:, :20] if "q_proj" in n else t for n, t in tensors.items()}
    factors = low_rank(tensors)
    magnitudes = {m: 1.001 * tensors[f"{m}.weight"].norm(dim=1) for m in factors}
    tuned = write_adapter(tmp_path / "dora", factors, magnitudes)
    right, wrong = (
        write_full(tmp_path / name, {k: t.contiguous() for k, t in each.items()})
        for name, each in (("right", tensors), ("wrong", narrow))
    )
    _, out, _ = _run(capsys, wrong, tuned, "--candidate-base", right, "--json")
    said = json.loads(out)
    assert [each["rule"] for each in said["findings"]] == ["unreadable", "base-mismatch"]
    assert said["findings"][1]["message"].startswith(f"{right} fits better: 0.001 off it")
    assert [fit["reason"] is None for fit in said["bases"]] == [False, True]


def test_candidates_are_told_by_how_far_they_are(
    frozen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = base(tmp_path, seed=7)
    arguments = (other, frozen / "dora", "--candidate-base", frozen / "base")
    code, out, _ = _run(capsys, *arguments, "--fail-on", "error")
    assert code == 3
    assert f"{frozen / 'base'} fits better" in out
    assert f"    dora  {other}: 0." in out
    _, out, _ = _run(capsys, frozen / "base", frozen / "dora", "--candidate-base", other)
    assert out.endswith("No findings.\n")


def test_a_base_alone_is_looked_at_before_a_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = tiny_llama(2)
    sound = write_full(tmp_path / "sound", tensors)
    tensors["model.layers.1.self_attn.v_proj.weight"][2] = 0
    zero = write_full(tmp_path / "zero", tensors)
    assert _run(capsys, sound)[1] == "No findings.\n"
    code, out, _ = _run(capsys, zero, "--fail-on", "warning")
    assert code == 3
    assert "zero-rows  base: columns of the base are zero" in out
    assert torch.equal(tensors["model.layers.1.self_attn.v_proj.weight"][2], torch.zeros(24))


def test_an_adapter_alone_has_the_base_that_its_config_names(
    frozen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(frozen / "frozen", tmp_path / "dora")
    config = tmp_path / "dora/adapter_config.json"
    fields = json.loads(config.read_text()) | {"base_model_name_or_path": str(frozen / "base")}
    config.write_text(json.dumps(fields))
    assert "frozen-magnitude  dora" in _run(capsys, tmp_path / "dora")[1]


def test_a_path_that_is_not_there_is_bad_input_and_no_finding(
    frozen: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "wdecomp.comparison.running.run_units", None
    )  # nothing is read before it is told
    base, nowhere = frozen / "base", frozen / "nowhere"
    for paths in ((base, nowhere), (base, frozen / "dora", "--candidate-base", nowhere)):
        code, out, err = _run(capsys, *paths)
        assert (code, out) == (1, "")
        assert err.startswith(f"wdecomp: {nowhere}")
        assert err.count("\n") == 1
