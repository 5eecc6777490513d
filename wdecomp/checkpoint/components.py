"""A folder of diffusers: one model in several folders, of which each has its own config."""

from collections.abc import Mapping
from pathlib import Path

from wdecomp.checkpoint import strict_json
from wdecomp.checkpoint.folders import adapter_file, has_weights
from wdecomp.errors import CheckpointError
from wdecomp.remote import RemotePath

MODEL_INDEX = "model_index.json"

# Folders that hold a component where no model_index.json says so, as training scripts leave them.
KNOWN = (
    "controlnet", "decoder", "image_encoder", "movq", "prior", "safety_checker", "text_encoder",
    "text_encoder_2", "text_encoder_3", "transformer", "transformer_2", "unet", "unet_ema", "vae",
    "vqgan", "vqvae",
)  # fmt: skip


def component_folders(folder: Path) -> dict[str, Path]:
    """The folders of a pipeline that hold weights, by component; none if it is no pipeline."""
    listed = _listed(folder)
    if listed is None and isinstance(folder, RemotePath):
        there = {child.name for child in folder.iterdir()} if folder.is_dir() else set()
        return {n: folder / n for n in KNOWN if n in there and has_weights(folder / n)}
    names = KNOWN if listed is None else sorted(listed)
    return {name: folder / name for name in names if has_weights(folder / name)}


def absent_components(folder: Path) -> list[tuple[str, str]]:
    """Components that model_index.json lists, and of which no weights are there."""
    return [
        (name, f"listed in {MODEL_INDEX}, and its folder holds no weights")
        for name in sorted(_listed(folder) or ())
        if (name in KNOWN or (folder / name / "config.json").is_file())
        and not has_weights(folder / name)
        and adapter_file(folder / name) is None
    ]


def _listed(folder: Path) -> frozenset[str] | None:
    """The components in model_index.json; a name that is no plain word is no folder's."""
    file = folder / MODEL_INDEX
    if not file.is_file():
        return None
    index: Mapping[str, object] = strict_json.read_object(file)
    parts = {name for name, kind in index.items() if isinstance(kind, list) and any(kind)}
    odd = sorted(name for name in parts if not name.isidentifier())
    if odd:
        raise CheckpointError(f"{file}: lists {odd[0]!r}, expected the name of a folder beside it.")
    return frozenset(parts)
