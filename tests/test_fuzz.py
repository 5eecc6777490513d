"""Short runs of the fuzzers; the long ones are commands: fuzz_headers.py, fuzz_configs.py."""

from pathlib import Path

import fuzz_configs
import fuzz_headers
import pytest


def test_no_mutated_header_is_accepted_that_safetensors_refuses(tmp_path: Path) -> None:
    found = fuzz_headers.fuzz(tmp_path, 6000, seed=0)
    assert found["wrong"] == []
    assert found["accepted by both"] > 300  # else nothing was compared


def test_the_fuzzer_sees_a_reader_that_is_too_lenient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wdecomp.checkpoint.header._check_coverage", lambda *_: None)
    found = fuzz_headers.fuzz(tmp_path, 3000, seed=0)
    assert any("accepted here, refused by safetensors" in wrong for wrong in found["wrong"])


def test_the_fuzzer_sees_a_crash_and_another_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fuzz_headers.as_we_see

    def odd(path: Path) -> fuzz_headers.Seen:
        seen = real(path)
        if len(seen) == 1:
            raise KeyError("w")
        return {
            name: (dtype, shape, content + b"x") for name, (dtype, shape, content) in seen.items()
        }

    monkeypatch.setattr(fuzz_headers, "as_we_see", odd)
    wrong = fuzz_headers.fuzz(tmp_path, 1000, seed=0)["wrong"]
    assert any("KeyError" in each for each in wrong)
    assert any("read as something else" in each for each in wrong)


def test_no_mutated_config_ends_in_anything_but_one_line(tmp_path: Path) -> None:
    found = fuzz_configs.fuzz(tmp_path, 2000, seed=0)
    assert found["wrong"] == {}
    for name in ("adapter_config.json", "config.json", "model.safetensors.index.json"):
        assert found["said"][f"{name} opened"] > 20
        assert found["said"][f"{name} refused"] > 20


def test_the_fuzzer_of_configs_sees_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wdecomp.adapter.config._number", lambda value, *_: value + 0.0)
    assert any("TypeError" in wrong for wrong in fuzz_configs.fuzz(tmp_path, 600, seed=0)["wrong"])
