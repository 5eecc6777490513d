"""A family of models on a hub, from shapes: bytes, ranges to ask for, seconds of a core.

Nothing is read. `hub_scale.py` lets workers go through what is described here.
"""

import math
from dataclasses import dataclass

from wdecomp.scan.plan import UNIT_BYTES, cut_into_units

BF16, F32 = 2, 4  # bytes
SHARD = 5_000_000_000  # bytes: where transformers begins another file
FILES_BESIDE = 3  # a listing, config.json and the index; or a listing, config and nothing else
TURNS = 4  # answers that opening one waits for: what is there, config, index, headers at once
PLANNING = 0.021  # seconds of a core for each model, by hub_limits.py
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Llama:
    """The sizes that a config.json of this architecture has; as they stand, those of 3.1-8B."""

    hidden: int = 4096
    inner: int = 14336
    layers: int = 32
    keys: int = 1024  # 8 heads of 128
    words: int = 128256

    def projections(self) -> Shapes:
        """The matrices of a layer that adapters are for, (output, input)."""
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (self.keys, self.hidden),
            "self_attn.v_proj": (self.keys, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }

    def shapes(self) -> Shapes:
        """Every tensor, in the order in which a comparison takes them."""
        norms = ("input_layernorm", "post_attention_layernorm")
        inside = self.projections() | dict.fromkeys(norms, (self.hidden,))
        layers = {
            f"model.layers.{i}.{name}.weight": shape
            for i in range(self.layers)
            for name, shape in sorted(inside.items())
        }
        words = (self.words, self.hidden)
        around = {"lm_head.weight": words, "model.embed_tokens.weight": words}
        return around | layers | {"model.norm.weight": (self.hidden,)}


def weights(shapes: Shapes) -> int:
    """How many numbers there are."""
    return sum(math.prod(shape) for shape in shapes.values())


def shards(shapes: Shapes, stored: int = BF16) -> int:
    """Files of a checkpoint, filled one after another up to 5 GB."""
    files, size = 1, 0
    for nbytes in (stored * math.prod(shape) for shape in shapes.values()):
        if size + nbytes > SHARD:
            files, size = files + 1, 0
        size += nbytes
    return files


@dataclass(frozen=True)
class Kind:
    """Models of one sort.

    count: of them.
    times: seconds of a core, as a multiple of what a full checkpoint of BF16 takes.
    stored: bytes of a number.
    rank: of an adapter; None for whole weights.
    dora: whether it has magnitudes.
    """

    name: str
    count: int
    times: float
    stored: int = BF16
    rank: int | None = None
    dora: bool = False

    def nbytes(self, name: str, shape: tuple[int, ...]) -> int:
        """Bytes that it has for one parameter of the base."""
        if self.rank is None:
            return self.stored * math.prod(shape)
        if "_proj" not in name:
            return 0
        return self.stored * (self.rank * sum(shape) + (shape[0] if self.dora else 0))

    def size(self, shapes: Shapes) -> int:
        """Bytes of one model."""
        return sum(self.nbytes(name, shape) for name, shape in shapes.items())

    def opening(self, shapes: Shapes) -> int:
        """Requests before the first weight is read."""
        return FILES_BESIDE + (1 if self.rank else shards(shapes, self.stored))


def adapter_times(rank: int, dora: bool) -> float:
    """Of README's table "How fast": r = 16 and 64, a line through both.

    >>> adapter_times(16, False), adapter_times(64, True)
    (1.9, 5.5)
    """
    low, high = (4.2, 5.5) if dora else (1.9, 3.6)
    return low + (high - low) * (rank - 16) / 48


def adapter(rank: int, count: int, dora: bool = False) -> Kind:
    """Adapters of all projections, factors in F32 as a trainer leaves them."""
    name = f"{'DoRA' if dora else 'LoRA'}, r = {rank}"
    return Kind(name, count, adapter_times(rank, dora), F32, rank, dora)


MIX = (
    Kind("full, BF16", 2850, 1.0),
    Kind("full, F32", 150, 1.5, F32),
    Kind("merged, BF16", 2000, 1.0),
    adapter(8, 1200),
    adapter(16, 2000),
    adapter(32, 800),
    adapter(64, 500),
    adapter(16, 500, dora=True),
)


@dataclass(frozen=True)
class Work:
    """What one unit of work asks of the network and of a core.

    nbytes: to be fetched.
    requests: that fetch them.
    core: seconds of one core.
    counted: of the requests, those that the hub's quota is for.
    turns: answers that are waited for one after another, at least.
    """

    nbytes: float
    requests: int
    core: float
    counted: int = 0
    turns: int = 0


@dataclass(frozen=True)
class Job:
    """One comparison: opening its checkpoints, then its units, in order."""

    models: int
    opening: Work
    units: tuple[Work, ...]


@dataclass(frozen=True)
class Reading:
    """How checkpoints are read.

    full, adapters: how many models a comparison has.
    base_here: whether the base lies on the worker's own disk.
    range_bytes: of one request.
    every_range: whether each range counts for the hub's quota; else, as in `wdecomp.remote.hub`,
        only a file's first does.
    unit_bytes: as of `wdecomp.scan.make_plan`.
    rate: bytes of base and tuned weights that a core compares in a second.
    """

    full: int = 16
    adapters: int = 64
    base_here: bool = False
    range_bytes: int = 8 << 20
    every_range: bool = False
    unit_bytes: int = UNIT_BYTES
    rate: float = 8e9


def jobs(mix: tuple[Kind, ...], shapes: Shapes, reading: Reading) -> list[Job]:
    """The comparisons of a family; those of a kind stand together, so that units are alike."""
    found = []
    for kind in mix:
        most = reading.adapters if kind.rank else reading.full
        sizes = [min(most, kind.count - done) for done in range(0, kind.count, most)]
        made = {size: _job(kind, size, shapes, reading) for size in set(sizes)}
        found += [made[size] for size in sizes]
    return found


def _job(kind: Kind, models: int, shapes: Shapes, reading: Reading) -> Job:
    opening = kind.opening(shapes) * models
    opening += 0 if reading.base_here else Kind("", 1, 1).opening(shapes)
    turns = TURNS * (models + (not reading.base_here))
    found = (
        _work(kind, models, unit, shapes, reading)
        for unit in units(kind, models, shapes, reading.unit_bytes)
    )
    return Job(models, Work(0, opening, models * PLANNING, opening, turns), tuple(found))


def units(kind: Kind, models: int, shapes: Shapes, unit_bytes: int = UNIT_BYTES) -> list[list[str]]:
    """Parameters, in the units of `wdecomp.scan.make_plan`."""
    own = {name: kind.nbytes(name, shape) for name, shape in shapes.items()}
    return cut_into_units(
        [
            (name, BF16 * math.prod(shapes[name]) + models * nbytes, models)
            for name, nbytes in own.items()
            if nbytes
        ],
        unit_bytes,
    )


def _work(kind: Kind, models: int, unit: list[str], shapes: Shapes, reading: Reading) -> Work:
    base = BF16 * sum(math.prod(shapes[name]) for name in unit)
    own = sum(kind.nbytes(name, shapes[name]) for name in unit)
    fetched = [own] * models + ([] if reading.base_here else [base])
    requests = sum(math.ceil(nbytes / reading.range_bytes) for nbytes in fetched)
    core = models * kind.times * 2 * base / reading.rate
    return Work(sum(fetched), requests, core, requests if reading.every_range else 0)
