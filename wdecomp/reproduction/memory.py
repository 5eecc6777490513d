"""What the detached norm saves (section 4.3): measured on the demo's model, beside the paper."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel

from wdecomp.demo.encoder import load_encoder, tokenize
from wdecomp.demo.pairs import standard_library_pairs
from wdecomp.demo.training import TARGETS
from wdecomp.train import Adapter, adapt
from wdecomp.train.saved import plain_layers, saved_bytes
from wdecomp.train.tasks import unit_means

Gradient = Literal["exact", "detached"]
SENTENCES = (8, 32, 128)  # in a batch
RANK, ALPHA = 16, 32


@dataclass(frozen=True)
class Saving:
    """Bytes kept for the backward pass.

    Attributes:
        matrices: of all adapted weights, in float32.
        plain: sentences in a batch → with Eq. (5) as autograd runs it: norm exact, norm detached.
        ours: the same with the layers of `wdecomp.train`.
    """

    matrices: int
    plain: Mapping[int, tuple[int, int]]
    ours: Mapping[int, tuple[int, int]]


def measured_saving(base: Path) -> Saving:
    """Of the encoder in `base` on some sentences, query and value adapted."""
    pairs = tokenize(base, standard_library_pairs()[: max(SENTENCES)])

    def kept(model: PreTrainedModel, count: int) -> int:
        return saved_bytes(lambda: unit_means(model, pairs.summaries[:count], pairs.pad), model)

    def plain(gradient: Gradient) -> PreTrainedModel:
        model = load_encoder(base)
        plain_layers(model, TARGETS, "dora", RANK, ALPHA, gradient)
        return model

    def ours(gradient: Gradient) -> PreTrainedModel:
        model = load_encoder(base)
        adapter = Adapter("dora", rank=RANK, alpha=ALPHA, norm_gradient=gradient)
        adapt(model, dict.fromkeys(TARGETS, adapter))
        return model

    found = []
    for make in (plain, ours):
        exact, detached = make("exact"), make("detached")
        found.append({count: (kept(exact, count), kept(detached, count)) for count in SENTENCES})
    weights = [
        module.weight
        for name, module in load_encoder(base).named_modules()
        if name.rpartition(".")[2] in TARGETS
    ]
    return Saving(sum(weight.nbytes for weight in weights), *found)
