"""The reference trainer: full fine-tuning, LoRA and DoRA."""

from wdecomp.train.export import save_adapter, save_full
from wdecomp.train.layers import AdapterLinear, adapt
from wdecomp.train.loop import Settings, train

__all__ = ["AdapterLinear", "Settings", "adapt", "save_adapter", "save_full", "train"]
