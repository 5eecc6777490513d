"""Which files of a folder are the checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from builders import low_rank, tiny_llama, write_adapter, write_full
from safetensors.torch import save_file

from wdecomp.checkpoint import open_checkpoint, steps_of
from wdecomp.errors import CheckpointError

INDEX = "model.safetensors.index.json"


def test_a_folder_a_file_and_an_index_hold_the_same(tmp_path: Path) -> None:
    tensors = tiny_llama()
    single = write_full(tmp_path / "single", tensors)
    sharded = write_full(tmp_path / "sharded", tensors, shards=3)
    paths = [single, single / "model.safetensors", sharded, sharded / INDEX]
    for path in paths:
        opened = open_checkpoint(path)
        assert {n: t.shape for n, t in opened.tensors.items()} == {
            n: tuple(t.shape) for n, t in tensors.items()
        }
    assert [len(open_checkpoint(path).shards) for path in paths] == [1, 1, 3, 3]


def test_files_that_the_index_does_not_name_are_not_read(tmp_path: Path) -> None:
    folder = write_full(tmp_path, tiny_llama(), shards=2)
    (folder / "consolidated.safetensors").write_bytes(b"anything")
    assert len(open_checkpoint(folder).shards) == 2


def test_a_single_file_goes_before_an_index(tmp_path: Path) -> None:
    folder = write_full(tmp_path, tiny_llama(2), shards=2)
    save_file({"only": torch.ones(2, 3)}, folder / "model.safetensors")
    assert list(open_checkpoint(folder).tensors) == ["only"]


def test_a_tensor_that_the_index_does_not_list_is_left_out_with_its_reason(tmp_path: Path) -> None:
    folder = write_full(tmp_path, tiny_llama(1), shards=2)
    index = json.loads((folder / INDEX).read_text())
    shard = index["weight_map"].pop("model.norm.weight")
    (folder / INDEX).write_text(json.dumps(index))
    opened = open_checkpoint(folder)
    assert "model.norm.weight" not in opened.tensors
    assert opened.left_out == (
        ("model.norm.weight", f"in {shard}, but not listed there by {INDEX}"),
    )


def test_a_tensor_that_its_shard_does_not_hold_is_an_error(tmp_path: Path) -> None:
    folder = write_full(tmp_path, tiny_llama(1), shards=2)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["gone"] = next(iter(index["weight_map"].values()))
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lists gone in .*, which does not hold it"):
        open_checkpoint(folder)


def test_a_hub_caches_links_out_of_the_folder_are_followed(tmp_path: Path) -> None:
    blobs = write_full(tmp_path / "blobs", tiny_llama(), shards=2)
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert len(open_checkpoint(snapshot).tensors) == len(tiny_llama())


def test_steps_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for step in (1000, 20, 100):
        write_full(tmp_path / f"checkpoint-{step}", tiny_llama(1))
    (tmp_path / "checkpoint-x").mkdir()
    assert [step for step, _ in steps_of(tmp_path)] == [20, 100, 1000]


def test_only_folders_named_by_a_step_are_steps(tmp_path: Path) -> None:
    names = ["checkpoint-5", "checkpoint-٣", "checkpoint-" + "9" * 20, "checkpoint-5-old"]
    for name in names:
        write_full(tmp_path / name, tiny_llama(1))
    (tmp_path / "checkpoint-6").write_text("a file")
    assert steps_of(tmp_path) == [(5, tmp_path / "checkpoint-5")]
    assert [steps_of(tmp_path / name)[0][0] for name in names] == [5, None, None, None]


def test_one_step_in_two_folders_is_an_error(tmp_path: Path) -> None:
    for name in ("checkpoint-7", "checkpoint-07"):
        write_full(tmp_path / name, tiny_llama(1))
    with pytest.raises(CheckpointError, match="checkpoint-07 and checkpoint-7 are both step 7"):
        steps_of(tmp_path)


def test_an_adapter_beside_a_model_asks_which_is_meant(tmp_path: Path) -> None:
    write_full(tmp_path, tiny_llama(1))
    write_adapter(tmp_path, low_rank(tiny_llama(1)))
    with pytest.raises(CheckpointError, match="Name the file that is meant"):
        open_checkpoint(tmp_path)
    assert open_checkpoint(tmp_path / "adapter_model.safetensors").adapter_config is not None
    assert open_checkpoint(tmp_path / "model.safetensors").adapter_config is None


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": 1, "a": 2}', '{"a":' * 50_000])
def test_a_damaged_config_names_its_file(text: str, tmp_path: Path) -> None:
    folder = write_full(tmp_path, tiny_llama(1))
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        open_checkpoint(folder)


def test_the_infinity_in_a_config_of_mamba_is_no_mistake(tmp_path: Path) -> None:
    folder = write_full(tmp_path, tiny_llama(1))
    text = '{"model_type": "mamba2", "time_step_limit": [0.0, Infinity]}'
    (folder / "config.json").write_text(text)
    assert open_checkpoint(folder).model_type == "mamba2"


def test_an_empty_adapter_config_is_there_all_the_same(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, low_rank(tiny_llama(1)))
    (folder / "adapter_config.json").write_text("{}")
    assert open_checkpoint(folder).adapter_config == {}
