"""`--spectral`: from folders to spectra.parquet, beside PEFT's merge and PEFT's own intruders."""

import json
import math
from pathlib import Path

import click.testing
import numpy as np
import pytest
import scipy.linalg
import torch
from builders import low_rank, moved, tiny_llama, write_adapter, write_full
from numpy.testing import assert_allclose
from pandas.testing import assert_frame_equal
from peft import LoraConfig, PeftModel
from peft.tuners.lora.intruders import reduce_intruder_dimension
from peft_models import Make, Mixed, bert, gpt2, llama, seeded, write_case
from peft_oracle import base_of, everything, merged_of, pairings

import wdecomp
from wdecomp.cli import commands
from wdecomp.decomposition.spectral import Settings
from wdecomp.errors import ResultsError
from wdecomp.scan import spectra as module
from wdecomp.stats.spectra import spectral_texts

FACTORS = 2e-5  # relative: PEFT rounds W' to float32, which the factors are not
CASES: dict[str, tuple[Make, LoraConfig]] = {
    "linear": (llama, LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"])),
    "conv1d": (gpt2, LoraConfig(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)),
    "convolutions": (Mixed, LoraConfig(target_modules=["conv2", "point"], r=3)),
    "dora": (bert, LoraConfig(target_modules=["query", "value"], use_dora=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_every_figure_is_that_of_the_merged_weights(case: str, tmp_path: Path) -> None:
    make, config = CASES[case]
    write_case(tmp_path, make, config)
    results = wdecomp.compare(tmp_path / "base", tmp_path / "adapter", spectral=True)
    rows = results.spectra.set_index("parameter")
    found, _ = pairings(tmp_path)
    assert set(rows.index) == {n for n in found.matrices if n in everything(found)}
    assert set(rows["found_by"]) == {"exact" if case == "dora" else "factors"}
    for name, row in rows.iterrows():
        w0, tuned = base_of(tmp_path, str(name)), merged_of(tmp_path, str(name))
        u0, s0, vt0 = scipy.linalg.svd(w0, full_matrices=False)
        delta = tuned - w0
        s = scipy.linalg.svdvals(delta)
        if case != "dora":  # what PEFT's rounding added is no part of it
            s = s[: int(found.matrices[str(name)].tuned.update.rank)]
        shares = s / s.sum()
        energy = np.cumsum(s**2) / (s**2).sum()
        k = min(10, len(s0))
        assert (row["outputs"], row["inputs"]) == w0.shape
        assert row["leading"] == k
        close = {"rtol": FACTORS}
        assert_allclose(row["norm_delta"], np.linalg.norm(delta), **close)
        assert_allclose(row["relative_change"], np.linalg.norm(delta) / np.linalg.norm(w0), **close)
        assert_allclose(row["spectral_norm"], s[0], **close)
        assert_allclose(row["spectral_norm_base"], s0[0], **close)
        assert_allclose(row["stable_rank"], (s**2).sum() / s[0] ** 2, **close)
        assert_allclose(row["effective_rank"], math.exp(-(shares * np.log(shares)).sum()), **close)
        assert row["effective_rank_low"] == row["effective_rank_high"] == row["effective_rank"]
        assert row["rank_90"] == int((energy < 0.9).sum()) + 1
        assert row["rank_99"] == int((energy < 0.99).sum()) + 1
        assert row["remainder"] == 0
        along = np.linalg.norm(u0[:, :k].T @ delta @ vt0[:k].T) / np.linalg.norm(delta)
        assert_allclose(row["alignment"], along, rtol=1e-4)
        assert_allclose(row["alignment_chance"], k / math.sqrt(w0.size))
        u = scipy.linalg.svd(tuned, full_matrices=False)[0]
        closest = np.abs(u.T @ u0).max(axis=1)[:k]
        assert row["intruders"] == row["intruders_most"] == int((closest < 0.5).sum())
        assert_allclose(row["least_cosine"], closest.min(), rtol=1e-3)
        assert row["residual"] < 1e-10


def test_intruders_are_those_that_peft_counts(tmp_path: Path) -> None:
    config = LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], r=4, lora_alpha=64)
    write_case(tmp_path, llama, config)
    said: list[str] = []
    model = PeftModel.from_pretrained(seeded(llama), tmp_path / "adapter")
    reduce_intruder_dimension(model, logging_sink=said.append)
    theirs = {}
    for line in said[:-1]:  # the last tells that a new adapter is active
        name, count = line.split(": ", 1)
        theirs[name.removeprefix("base_model.model.") + ".weight"] = int(count.split(" ")[-1])
    rows = wdecomp.compare(tmp_path / "base", tmp_path / "adapter", spectral=True).spectra
    assert dict(zip(rows["parameter"], rows["intruders"].astype(int), strict=True)) == theirs
    assert sum(theirs.values()) > 3
    assert len(set(theirs.values())) > 1


def _folders(folder: Path) -> Path:
    tensors = tiny_llama(2)
    write_full(folder / "base", tensors)
    for step in (10, 20):
        write_full(folder / f"ft/checkpoint-{step}", moved(tensors, 1e-3 * step, seed=step))
    write_adapter(folder / "lora", low_rank(tensors))
    return folder


def test_one_row_for_each_run_step_and_matrix_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _folders(tmp_path)
    tensors = tiny_llama(2)
    frozen = "model.layers.1.mlp.down_proj.weight"
    write_full(folder / "part", moved(tensors) | {frozen: tensors[frozen]})
    monkeypatch.setattr("wdecomp.comparison.asked.SPECTRAL_UNIT_BYTES", 1)
    runs = [folder / name for name in ("ft", "lora", "part")]
    results = wdecomp.compare(folder / "base", *runs, spectral=True)
    keys = ["run", "method", "step", "stack", "layer", "module", "parameter"]
    theirs = results.modules.drop_duplicates(["run", "step", "parameter"])[keys]
    assert_frame_equal(results.spectra[keys], theirs.reset_index(drop=True))
    assert len(theirs) == 2 * 7 + 4 + 6
    facts = results.facts.set_index(["run", "step", "parameter"])
    for row in results.spectra.itertuples():
        known = facts.loc[(row.run, row.step, row.parameter)]
        assert_allclose(row.norm_delta, known["norm_delta"], rtol=1e-5)
        assert_allclose(row.relative_change, known["relative_change"], rtol=1e-5)


def test_large_matrices_are_sampled_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _folders(tmp_path)
    exact = wdecomp.compare(folder / "base", folder / "ft", spectral=True).spectra
    small = Settings(exact_side=0, sampled=12, leading=3)
    monkeypatch.setattr("wdecomp.comparison.asked.Settings", lambda: small)
    results = wdecomp.compare(folder / "base", folder / "ft", spectral=True)
    rows = results.spectra
    wide = rows[[min(o, i) > 22 for o, i in zip(rows["outputs"], rows["inputs"], strict=True)]]
    assert set(rows["found_by"]) == set(rows["vectors_by"]) == {"randomised"}
    assert len(wide) == 2 * (1 + 2 * 2)
    assert wide["effective_rank"].isna().all()
    truth = exact.set_index(["step", "parameter"])["effective_rank"]
    for row in wide.itertuples():
        here = truth.loc[(row.step, row.parameter)]
        assert 0.98 * row.effective_rank_low < here < 1.02 * row.effective_rank_high
        assert row.effective_rank_high < 2 * row.effective_rank_low
        assert 0.1 < row.remainder < 0.8
    assert wide["rank_99"].isna().all()
    assert "of their effective rank the table has bounds" in spectral_texts(rows)[0]


def test_without_it_nothing_is_there_and_the_error_says_what_to_do(tmp_path: Path) -> None:
    folder = _folders(tmp_path)
    results = wdecomp.compare(folder / "base", folder / "lora", out=folder / "out")
    assert not (folder / "out" / "spectra.parquet").exists()
    assert "spectral" not in results.run["options"]
    with pytest.raises(ResultsError, match=r"spectra\.parquet: there is none\. .*--spectral"):
        _ = results.spectra
    with pytest.raises(ResultsError, match=r"another run \(options"):
        wdecomp.compare(folder / "base", folder / "lora", out=folder / "out", spectral=True)


def test_interrupted_it_goes_on_and_the_table_comes_out_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _folders(tmp_path)
    monkeypatch.setattr("wdecomp.comparison.asked.SPECTRAL_UNIT_BYTES", 1)
    arguments = folder / "base", folder / "ft", folder / "lora"
    wdecomp.compare(*arguments, out=folder / "whole", spectral=True)
    real, calls = module._row, []

    def failing(*of: object) -> object:
        calls.append(of)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(*of)

    with monkeypatch.context() as patched:
        patched.setattr(module, "_row", failing)
        with pytest.raises(KeyboardInterrupt):
            wdecomp.compare(*arguments, out=folder / "out", spectral=True, workers=1)
    assert len(list((folder / "out" / "parts").iterdir())) > 1
    assert not (folder / "out" / "spectra.parquet").exists()
    wdecomp.compare(*arguments, out=folder / "out", spectral=True)
    whole, out = ((folder / n / "spectra.parquet").read_bytes() for n in ("whole", "out"))
    assert whole == out
    done = json.loads((folder / "out" / "DONE.json").read_text())["sha256"]
    assert "spectra.parquet" in done
    (folder / "out" / "spectra.parquet").unlink()
    with pytest.raises(ResultsError, match=r"spectra\.parquet: cannot be read"):
        _ = wdecomp.read_results(folder / "out").spectra
    wdecomp.compare(*arguments, out=folder / "out", spectral=True)
    assert (folder / "out" / "spectra.parquet").read_bytes() == whole


@pytest.mark.parametrize("workers", [1, 4])
def test_one_pair_at_a_time(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _folders(tmp_path)
    monkeypatch.setattr("wdecomp.comparison.asked.SPECTRAL_UNIT_BYTES", 1)
    at_once, most = 0, 0
    real = module._base

    def counted(*of: object) -> object:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        try:
            return real(*of)
        finally:
            at_once -= 1

    monkeypatch.setattr(module, "_base", counted)
    wdecomp.compare(folder / "base", folder / "lora", spectral=True, workers=workers)
    assert most == 1


def test_what_has_no_spectrum_is_named_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = tiny_llama(1)
    write_full(tmp_path / "base", tensors)
    tuned = moved(tensors)
    tuned["model.layers.0.self_attn.q_proj.weight"][3, 4] = math.nan
    write_full(tmp_path / "ft", tuned)
    monkeypatch.setattr(module, "LARGEST", 1000)  # the embedding and down have more
    results = wdecomp.compare(tmp_path / "base", tmp_path / "ft", spectral=True)
    rows = results.spectra.set_index("module")
    assert rows["found_by"].to_dict() == {
        "embedding": "too large", "down": "too large", "q": "nonfinite", "v": "exact",
    }  # fmt: skip
    assert rows.loc[["embedding", "down", "q"], "norm_delta"].isna().all()
    (text,) = spectral_texts(results.spectra)
    assert "Of 1 matrices nothing was found: they hold NaN or infinity" in text
    assert "Of 2 matrices nothing was found: they are too large" in text


def test_a_base_of_zeros_has_no_directions(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    write_full(tmp_path / "base", {name: torch.zeros(12, 9)})
    write_full(tmp_path / "ft", {name: torch.randn(12, 9)})
    (row,) = wdecomp.compare(tmp_path / "base", tmp_path / "ft", spectral=True).spectra.to_dict(
        "records"
    )
    assert row["stable_rank"] > 1
    assert all(np.isnan(row[n]) for n in ("alignment", "relative_change", "least_cosine"))


def test_every_matrix_is_beside_its_own_base(tmp_path: Path) -> None:
    base = tiny_llama(1)
    quantized = moved(base, 0.01, seed=5)
    factors = low_rank(base)
    write_full(tmp_path / "base", base)
    write_full(tmp_path / "codes", quantized)
    write_adapter(tmp_path / "lora", factors)
    codes = tmp_path / "codes"
    rows = wdecomp.compare(
        tmp_path / "base", tmp_path / "lora", base_dequantized=codes, spectral=True
    ).spectra.set_index(["run", "parameter"])
    for adapted, (a, b) in factors.items():
        name = f"{adapted}.weight"
        w0, wq, product = base[name], quantized[name], 2.0 * b @ a
        wanted = {
            "quantization": ("exact", wq - w0, w0),
            "lora": ("factors", product, wq),
            "lora+quantization": ("exact", wq + product - w0, w0),
        }
        for run, (found_by, delta, reference) in wanted.items():
            row = rows.loc[(run, name)]
            s = scipy.linalg.svdvals(delta.double().numpy())
            assert row["found_by"] == found_by
            assert_allclose(row["spectral_norm"], s[0], rtol=1e-5)
            assert_allclose(row["relative_change"], delta.norm() / reference.norm(), rtol=1e-5)


def test_of_a_resized_embedding_the_common_rows_count(tmp_path: Path) -> None:
    name = "model.embed_tokens.weight"
    base = torch.randn(50, 24)
    tuned = torch.cat([base + 0.1 * torch.randn(50, 24), torch.randn(4, 24)])
    write_full(tmp_path / "base", {name: base})
    write_full(tmp_path / "ft", {name: tuned})
    (row,) = wdecomp.compare(tmp_path / "base", tmp_path / "ft", spectral=True).spectra.to_dict(
        "records"
    )
    s = scipy.linalg.svdvals((tuned[:50] - base).T.double().numpy())
    assert (row["outputs"], row["inputs"]) == (24, 50)
    assert_allclose(row["stable_rank"], (s**2).sum() / s[0] ** 2, rtol=1e-5)


def _run(*arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(commands, list(arguments), catch_exceptions=False)


def test_the_command_prints_a_paragraph_a_run_and_export_has_the_table(tmp_path: Path) -> None:
    folder = _folders(tmp_path)
    out = str(folder / "out")
    paths = [str(folder / name) for name in ("base", "ft", "lora")]
    done = _run("compare", *paths, "--out", out, "--spectral", "-q")
    assert done.exit_code == 0
    assert done.stdout.isascii()
    results = wdecomp.read_results(out)
    texts = spectral_texts(results.spectra)
    assert [text.split(":")[0] for text in texts] == ["ft", "lora"]
    last = results.spectra[results.spectra["step"] == 20]
    assert f"and ||dW|| {last['relative_change'].median():.3g} (" in texts[0]
    lora = results.spectra[results.spectra["run"] == "lora"]
    assert f"stable rank {lora['stable_rank'].median():.3g} (" in texts[1]
    assert f"the change of {len(lora)} matrices" in texts[1]
    assert f"least cosine {lora['least_cosine'].min():.3g}." in texts[1]
    assert f"leading: {lora['intruders'].sum()}" in texts[1]
    flat = " ".join(done.stdout.split())
    assert all(text in flat for text in texts)
    as_json = json.loads(_run("compare", *paths, "--out", out, "--spectral", "--json", "-q").stdout)
    assert as_json["spectra"] == texts
    exported = _run("export", out, "--table", "spectra", "--format", "json", "--run", "lora")
    rows = json.loads(exported.stdout)["rows"]
    assert [row["intruders"] for row in rows] == lora["intruders"].tolist()
