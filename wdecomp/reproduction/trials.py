"""What is trained: every method on every setting that a section of the page needs."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from wdecomp.demo.training import METHODS, TARGETS
from wdecomp.train import Adapter
from wdecomp.train.loop import Method

RANKS = (4, 8, 16, 32, 64)  # Fig. 5
SHARES = (0.1, 0.4, 0.7, 1.0)  # of the pairs: Fig. 4 has 1000, 4000, 7000, 10 000
ADAPTED: tuple[Method, ...] = ("lora", "dora")
VECTORS: tuple[Method, ...] = ("vera", "dvora")
# As in Table 11: their rank is a quarter of the width, their learning rate ten times LoRA's.
VECTORS_RANK, VECTORS_LR = 96, 5e-2
LR: dict[Method, float] = {method: lr for method, (_, lr) in METHODS.items()} | dict.fromkeys(
    VECTORS, VECTORS_LR
)
# The encoder's own names for q, k, v and for what is left of a layer's matrices.
ATTENTION = ("query", "key", "value")
OTHERS = ("attention.output.dense", "intermediate.dense", "*[0-9].output.dense")


@dataclass(frozen=True)
class Trial:
    """One training. Equal trials are one, in however many sections they are.

    Attributes:
        method: "full", or an adapter's.
        seed: of the order of the pairs and of the initial A.
        decay: AdamW's weight decay.
        rank: of the adapters; alpha is twice that, as the paper has it.
        share: of the demo's steps, each of new pairs: a training set of that size, seen once.
        targets, magnitude_targets: ends of the names of adapted layers.
        nf4: the linear layers of the frozen base are in NF4.
    """

    method: Method
    seed: int = 0
    decay: float = 0.0
    rank: int = 16
    share: float = 1.0
    targets: tuple[str, ...] = TARGETS
    magnitude_targets: tuple[str, ...] = ()
    nf4: bool = False

    @property
    def name(self) -> str:
        """A folder's name, another one for every trial."""
        parts = [self.method, f"seed-{self.seed}"]
        for field, default in asdict(Trial(self.method)).items():
            value = getattr(self, field)
            if field not in ("method", "seed") and value != default:
                text = f"{len(value)}" if isinstance(value, tuple) else f"{value:g}"
                parts.append(f"{field.replace('_', '-')}-{text}")
        return "_".join(parts)

    @property
    def adapters(self) -> dict[str, Adapter]:
        """What `adapt` puts in; nothing for full fine-tuning."""
        if self.method == "full":
            return {}
        adapter = Adapter(self.method, rank=self.rank, alpha=2 * self.rank)
        only = Adapter("magnitude")
        return dict.fromkeys(self.targets, adapter) | dict.fromkeys(self.magnitude_targets, only)

    def record(self) -> dict[str, Any]:
        """All that the trial is."""
        return asdict(self) | {"lr": LR[self.method]}


def trial(method: Method, **settings: Any) -> Trial:
    """A trial at the method's own rank."""
    rank = {"rank": VECTORS_RANK} if method in VECTORS else {}
    return Trial(method, **{**rank, **settings})


def correlations() -> list[Trial]:
    """Figs. 2, 3 and 7."""
    return [trial(method, decay=float(decay)) for decay in (0, 1) for method in METHODS]


def ranks() -> list[Trial]:
    """Fig. 5."""
    return [trial(method, rank=rank) for rank in RANKS for method in ADAPTED]


def sizes() -> list[Trial]:
    """Fig. 4."""
    return [trial(method, share=share) for share in SHARES for method in (*ADAPTED, *VECTORS)]


def granularity() -> list[Trial]:
    """Table 6: all directions, or those of q, k and v alone beside all magnitudes."""
    everything = (*ATTENTION, *OTHERS)
    return [
        trial("lora", targets=everything),
        trial("dora", targets=everything),
        trial("dora", targets=ATTENTION, magnitude_targets=OTHERS),
    ]


def vectors() -> list[Trial]:
    """Table 5."""
    return [trial(method) for method in (*ADAPTED, *VECTORS)]


def quantized() -> list[Trial]:
    """Fig. 6."""
    return [trial("full"), *(trial(method, nf4=True) for method in ADAPTED)]


def all_trials(seeds: Iterable[int]) -> list[Trial]:
    """Every trial once, seed by seed."""
    return list(dict.fromkeys(replace(each, seed=seed) for seed in seeds for each in _sections()))


def _sections() -> Iterator[Trial]:
    for section in (correlations, ranks, sizes, granularity, vectors, quantized):
        yield from section()
