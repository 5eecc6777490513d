"""What one does without wdecomp, each in a process of its own, started by compare.py.

python benchmarks/peers.py plain BASE TUNED…     norms and cosines of float32 copies
python benchmarks/peers.py merged BASE ADAPTER   the same after PEFT's merge_and_unload
python benchmarks/peers.py read FOLDER…          reading alone, with safe_open
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F


def plain(base: torch.Tensor, tuned: torch.Tensor) -> None:
    """What one would write: norms and cosines of float32 copies, along both axes."""
    w0, w = base.float(), tuned.float()
    for axis in (0, 1):
        (w.norm(dim=axis) - w0.norm(dim=axis)).abs().mean()
        (1 - F.cosine_similarity(w0, w, dim=axis)).mean()


def compare_folders(base: Path, *tuned: Path) -> None:
    """The script that loads a shard of each and goes over its tensors."""
    from safetensors.torch import load_file

    for folder in tuned:
        for shard in sorted(base.glob("*.safetensors")):
            ours, theirs = load_file(shard), load_file(folder / shard.name)
            for name, weight in ours.items():
                plain(weight, theirs[name])


def compare_merged(base: Path, adapter: Path) -> None:
    """Merges the adapter first, all of it in memory."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    before = {n: w.clone() for n, w in model.named_parameters() if n.endswith("proj.weight")}
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    after = dict(merged.named_parameters())
    with torch.no_grad():
        for name, weight in before.items():
            plain(weight, after[name])


def read(*folders: Path) -> None:
    """Every tensor by safe_open, and a look at each 64 bytes of it."""
    from safetensors import safe_open

    for folder in folders:
        for shard in sorted(folder.glob("*.safetensors")):
            with safe_open(shard, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    _touch(file.get_tensor(name))


def _touch(tensor: torch.Tensor) -> None:
    tensor.view(torch.int16).reshape(-1)[::32].sum()


if __name__ == "__main__":
    kind, *paths = sys.argv[1:]
    {"plain": compare_folders, "merged": compare_merged, "read": read}[kind](*map(Path, paths))
