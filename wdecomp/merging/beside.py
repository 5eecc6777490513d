"""What stands beside the weights: index, configs, tokenizer, and code of the model's own."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wdecomp.checkpoint import Checkpoint
from wdecomp.merging.plan import root_of, safe_name
from wdecomp.merging.records import Plan

# What a model needs besides its weights; never weights in other formats, or a trainer's state.
KINDS = (".json", ".jinja", ".model", ".txt", ".py", ".tiktoken", ".vocab", ".bpe")
LICENCES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
OTHERS = re.compile(
    r"\..*|.*\.index(\.[\w-]+)?\.json|adapter_config\.json|trainer_state\.json|.*_results\.json"
)
CONFIG = "config.json"
# Folders of a sentence encoder, each a step after the transformer: 1_Pooling, 2_Dense.
STEPS_AFTER = re.compile(r"\d+_\w+")
DTYPE_KEYS = ("dtype", "torch_dtype")
TIED = "tie_word_embeddings"


def write_beside(base: Checkpoint, plan: Plan, draft: Path) -> None:
    """Writes all that is not weights into a folder that has them.

    Raises:
        OSError: it cannot be written.
    """
    root = root_of(base)
    for file in _small_files(base, root):
        below = file.relative_to(root)
        (draft / below).parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as source, (draft / below).open("wb") as copy:
            shutil.copyfileobj(source, copy)
    for component, config in (base.components or {"": base.config}).items():
        edited = config_of(config, plan, bool(component))
        if edited != config:
            _write_json(draft / component / CONFIG, edited)
    for file, weight_map in _indices(base, root):
        _write_index(draft, file.relative_to(root), weight_map, plan)


def config_of(config: Mapping[str, Any], plan: Plan, of_component: bool) -> dict[str, Any]:
    """A config.json that says of the merged weights what is so.

    Weights in float32 would be rounded on loading by a config that says bfloat16.
    """
    found = dict(config)
    if not config:
        return found
    if plan.decoded:
        for key in ("quantization_config", "compression_config"):
            found.pop(key, None)
    if plan.dtype == "F32":
        found = _replaced(found, DTYPE_KEYS, str, "float32")
        if not of_component and not any(key in found for key in DTYPE_KEYS):
            found["torch_dtype"] = "float32"
    if plan.untied:
        found = _replaced(found, (TIED,), bool, False) | {TIED: False}
    return found


def _replaced(config: dict[str, Any], keys: tuple[str, ...], kind: type, by: Any) -> dict[str, Any]:
    """A config, and the configs in it, with another value where one of a kind stands."""
    return {
        key: by if key in keys and isinstance(value, kind)
        else _replaced(value, keys, kind, by) if isinstance(value, dict)
        else value
        for key, value in config.items()
    }  # fmt: skip


def _small_files(base: Checkpoint, root: Path) -> Iterator[Path]:
    for child in sorted(root.iterdir()):
        whole = STEPS_AFTER.fullmatch(child.name) is not None
        if child.is_file():
            if _is_kept(child):
                yield child
        elif whole or (base.components and not child.name.startswith(".")):
            inner = (file for file in sorted(child.rglob("*")) if file.is_file())
            yield from (file for file in inner if whole or _is_kept(file))


def _is_kept(file: Path) -> bool:
    if OTHERS.fullmatch(file.name):
        return False
    return file.suffix in KINDS or file.name.upper().startswith(LICENCES)


def _indices(base: Checkpoint, root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The indices that the base was read through: those that list just its shards."""
    shards = {shard.path for shard in base.shards}
    for folder in [root / component for component in base.components] or [root]:
        here = {path for path in shards if path.is_relative_to(folder)}
        for file in sorted(folder.glob("*.index*.json")):
            try:
                index = json.loads(file.read_bytes())
                listed = {folder / name for name in index["weight_map"].values()}
            except (ValueError, LookupError, TypeError, AttributeError):
                continue  # it was not the one that was opened
            if listed == here:
                yield file, index


def _write_index(draft: Path, file: Path, index: dict[str, Any], plan: Plan) -> None:
    """The base's index, of the tensors that there are now."""
    folder = file.parent
    items = {path: each for path, each in plan.files.items() if path.is_relative_to(folder)}
    shard_of = {
        item.name: path.relative_to(folder).as_posix()
        for path, each in items.items()
        for item in each
    }
    order = [name for name in index["weight_map"] if name in shard_of]
    size = sum(item.nbytes for each in items.values() for item in each)
    _write_json(
        draft / folder / safe_name(file.name),
        {
            "metadata": {**(index.get("metadata") or {}), "total_size": size},
            "weight_map": {name: shard_of[name] for name in dict.fromkeys([*order, *shard_of])},
        },
    )


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
