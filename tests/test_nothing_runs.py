"""Code that a checkpoint names is never imported, and paths in it lead nowhere."""

import json
from pathlib import Path

import pytest
from builders import low_rank, moved, tiny_llama, write_adapter, write_full

import wdecomp
from wdecomp.cli import main

EVIL = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
AUTO = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Checkpoints whose configs name a module that lies beside them, and on the path."""
    config = {"model_type": "evil", "auto_map": AUTO, "architectures": ["evil.Model"]}
    base = tiny_llama(2)
    write_full(tmp_path / "base", base, config=config)
    write_full(tmp_path / "ft", moved(base), config=config)
    mapping = {"base_model_class": "Model", "parent_library": "evil"}
    write_adapter(tmp_path / "lora", low_rank(base), auto_mapping=mapping, task_type="evil")
    for name in ("base", "ft", "lora"):
        (tmp_path / name / "evil.py").write_text(EVIL)
        monkeypatch.syspath_prepend(str(tmp_path / name))
    return tmp_path


def test_code_that_a_config_names_is_not_imported(folder: Path) -> None:
    paths = [str(folder / name) for name in ("base", "ft", "lora")]
    wdecomp.compare(*paths)
    main(["inspect", *paths])
    assert not list(folder.rglob("ran"))
    import evil  # type: ignore[import-not-found]  # noqa: F401  (that it would have run)

    assert list(folder.rglob("ran"))


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "a/../../x", ".."])
def test_an_index_never_leads_out_of_its_folder(shard: str, folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"model.norm.weight": shard}}
    (folder / "ft/model.safetensors").unlink()
    (folder / "ft/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(wdecomp.WdecompError, match="expected a file in"):
        wdecomp.compare(folder / "base", folder / "ft")
