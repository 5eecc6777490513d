"""The reference trainer: the methods of the paper, and the loop that trains them."""

from wdecomp.train.adapting import adapt, adapted_layers, norms_kept, weights_kept
from wdecomp.train.export import save_adapter, save_full
from wdecomp.train.gradients import covariance_report, gradient_report
from wdecomp.train.layers import AdaptedLayer, Adapter
from wdecomp.train.live import Recorder
from wdecomp.train.loop import Settings, train

__all__ = [
    "AdaptedLayer",
    "Adapter",
    "Recorder",
    "Settings",
    "adapt",
    "adapted_layers",
    "covariance_report",
    "gradient_report",
    "norms_kept",
    "save_adapter",
    "save_full",
    "train",
    "weights_kept",
]
