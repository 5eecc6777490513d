"""The page: each experiment beside the paper's figures, and what the two have in common.

Every sentence of agreement is made from the figures of the run.
"""

from pathlib import Path

from wdecomp.charts.fits import PAPER
from wdecomp.reproduction import trials
from wdecomp.reproduction.figures import (
    N_LATE,
    Runs,
    correlation_table,
    movement_table,
    score_table,
)
from wdecomp.reproduction.memory import Saving
from wdecomp.reproduction.pictures import draw
from wdecomp.reproduction.trials import trial
from wdecomp.reproduction.wording import (
    NAMES,
    WEIGHTS,
    above,
    gain,
    markdown,
    order,
    rows_of,
    settled,
    sign,
    spread_text,
)
from wdecomp.train.loop import Method

# LLaMA-7B, commonsense reasoning, Fig. 5 and Table 15; LoRA's rank 32 stands in Table 1.
PAPER_RANKS = {
    "lora": {4: 39.49, 8: 40.74, 32: 74.7},
    "dora": {4: 61.89, 8: 77.96, 16: 77.5, 32: 78.4, 64: 76.8},
}
PAPER_GRANULARITY = (("74.7", ".83"), ("78.1", ".84"), ("77.5", ".39"))  # LLaMA-7B, Table 6
PAPER_VECTORS = {
    "lora": "5.1 / 5.7",
    "dora": "5.5 / 6.0",
    "vera": "4.3 / 5.5",
    "dvora": "5.0 / 6.0",
}
PAPER_QUANTIZED = {"full": ".26 / .51", "lora": ".12 / .32", "dora": ".31 / .56"}  # Fig. 6


def write_page(out: Path, runs: Runs, base: tuple[float, float], saving: Saving) -> Path:
    """Writes out/reproduction.md and its pictures in out/reproduction/; returns its path.

    Args:
        out: folder.
        runs: every trial.
        base: MRR@10 of the base model, and with its linear layers in NF4.
        saving: of section 4.3.
    """
    draw(out / "reproduction", runs)
    sections = [
        _setting(runs, base[0]),
        _correlations(runs),
        _movement(runs),
        _sizes(runs),
        _ranks(runs),
        _vectors(runs, base[0]),
        _granularity(runs),
        _quantized(runs, base),
        _memory(saving),
    ]
    page = out / "reproduction.md"
    page.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return page


def _setting(runs: Runs, base: float) -> str:
    return f"""# The paper's experiments on a model that fits on a laptop

Written by `wdecomp reproduce`, which trains all of this anew: the demo's sentence encoder
(all-MiniLM-L6-v2, 22.7 M parameters, 6 layers) learns to find the docstring of a signature of
Python's standard library, 48 steps of 32 pairs, {len(runs.seeds)} seeds, float32. AdamW, a tenth
of the steps to warm up, then linear decay; FT {trials.LR["full"]:g} on every parameter, LoRA and
DoRA {trials.LR["lora"]:g}, VeRA and DVoRA ten times that, as in the paper's Table 11; r = 16,
alpha = 2r, on query and value, without dropout, and without weight decay where nothing else is
said. A score is MRR@10 on held-out pairs; the base model has {base:.3f}. "a [b, c]" is the mean
over seeds with the least and the largest of them. No setting was chosen by its result.

Left out: the paper's benchmark accuracies (Tables 1 to 4, MT-Bench) and generated images. They need
models and judges that no laptop has; their settings are the recipes of `wdecomp train`. The paper's
scores stand here beside ours for their order, not for their size: another model, another task."""


def _correlations(runs: Runs) -> str:
    table = correlation_table(runs, trials.correlations(), ("q", "v"))
    head = [
        *("decay", "matrix", "axis", "method", "r [seeds]", "r in step", "r of columns"),
        *("r with ΔM/m0", "slope", "growth ratio", "paper's r"),
    ]
    in_paper = (table["module"] == "q") & (table["axis"] == "output")
    rows = [
        [
            *(f"{row.decay:g}", WEIGHTS[row.module], row.axis),
            NAMES[row.method],
            spread_text(row, "+.2f"),
            *(f"{v:+.2f}" for v in (row.within_step, row.per_column, row.relative)),
            *(f"{row.slope:+.3g}", f"{row.growth_ratio:+.2f}"),
            f"{PAPER[row.method]:+.2f}" if in_paper[row.Index] else "",
        ]
        for row in rows_of(table)
    ]
    signs = []
    for decay, part in table[in_paper].groupby("decay"):
        for row in rows_of(part):
            paper = PAPER[row.method]
            agrees = sign(row.low, row.high, paper)
            signs.append(f"{NAMES[row.method]} with decay {decay:g}: {agrees}")
    growth = table[table["method"] == "lora"]["growth_ratio"]
    low, high = growth.min(), growth.max()
    return f"""## ΔM and ΔD (section 3.2, Figs. 2 and 7)

![query weights](reproduction/figure-2.svg)

![value weights](reproduction/figure-7.svg)

Pictures: the first seed. r: Pearson, pooled over 6 layers and {N_LATE} late checkpoints (62.5, 75,
87.5 and 100 % of the steps; the paper does not say which three intermediate ones it took). In step:
with each step's means taken out. Of columns: all columns of all layers at the end. The paper's
figures: VL-BART, query, 12 layers.

{markdown(head, rows)}

**Agreement** (query, output axis): {"; ".join(signs)}.

How to read it: an update that is perpendicular to a column lengthens it, by geometry; the growth
ratio is what the norms grew over that, for LoRA between {low:+.2f} and {high:+.2f} here. With decay
on its tensors, a method loses λ·m0 of every norm, while ΔD goes with 1/m0²: a negative relation by
arithmetic. So a sign that appears with decay alone is no evidence about a method's capacity to
learn."""


def _movement(runs: Runs) -> str:
    table = movement_table(runs, trial("lora"), trial("dora"))
    rows, less = [], []
    for module, part in table.groupby("module"):
        for figure, name in (("delta_direction", "ΔD"), ("delta_magnitude", "ΔM")):
            lora, dora = part[f"{figure}_lora"], part[f"{figure}_dora"]
            fewer = int((dora < lora).sum())
            rows.append(
                [
                    *(WEIGHTS[str(module)], name),
                    *(f"{lora.mean():.3g}", f"{dora.mean():.3g}"),
                    *(f"{(dora / lora).mean():.2f}", f"{fewer} of {len(part)}"),
                ]
            )
            less.append((f"{name} of {rows[-1][0]}", fewer, len(part)))
    head = ["matrix", "figure", "LoRA", "DoRA", "DoRA / LoRA", "layers in which DoRA moved less"]
    told = ", ".join(f"{name} in {fewer} of {count}" for name, fewer, count in less)
    return f"""## How far the weights move (Fig. 3)

![ΔD and ΔM by layer](reproduction/figure-3.svg)

The paper, LLaMA2-7B: in most layers DoRA moves less than LoRA, in magnitude and in direction.

{markdown(head, rows)}

**Agreement**: DoRA moved less than LoRA in {told} layers (means over seeds, both trained with the
same learning rate)."""


def _sizes(runs: Runs) -> str:
    table = score_table(runs, trials.sizes())
    pairs: dict[str, tuple[Method, Method]]
    pairs = {"DoRA − LoRA": ("dora", "lora"), "DVoRA − VeRA": ("dvora", "vera")}
    head = ["pairs", *(NAMES[method] for method in table["method"].unique()), *pairs]
    scores = {
        methods: {
            f"{share:.0%}": runs.beside(*(trial(method, share=share) for method in methods))
            for share in trials.SHARES
        }
        for methods in pairs.values()
    }
    rows = [
        [
            f"{share:.0%}",
            *(spread_text(row, ".3f") for row in rows_of(part)),
            *(gain(*found[f"{share:.0%}"]) for found in scores.values()),
        ]
        for share, part in table.groupby("share")
    ]
    told = [settled(scores[each], *(NAMES[method] for method in each)) for each in scores]
    return f"""## Fewer examples (Fig. 4)

![score by share of the pairs](reproduction/figure-4.svg)

The paper, LLaMA on 1000, 4000, 7000 and 10 000 instructions, MT-Bench of 10: with 7000 DoRA and
DVoRA are above LoRA and VeRA by .3 and .33, with 1000 by .29 and .22. Here as many shares of 1536
pairs, one epoch each.

{markdown(head, rows)}

**Agreement**: {"; ".join(told)}."""


def _ranks(runs: Runs) -> str:
    table = score_table(runs, trials.ranks())
    head = ["rank", "LoRA", "DoRA", "DoRA − LoRA", "paper's LoRA", "paper's DoRA"]
    scores = {
        rank: runs.beside(trial("dora", rank=rank), trial("lora", rank=rank))
        for rank in trials.RANKS
    }
    rows = [
        [
            str(rank),
            *(spread_text(row, ".3f") for row in rows_of(part)),
            gain(*scores[int(str(rank))]),
            *(str(PAPER_RANKS[method].get(int(str(rank)), "–")) for method in trials.ADAPTED),
        ]
        for rank, part in table.groupby("rank")
    ]
    told = settled({f"r = {rank}": found for rank, found in scores.items()}, "DoRA", "LoRA")
    means = table.set_index(["method", "rank"])["mean"]
    falls = [means[m, min(trials.RANKS)] - means[m].max() for m in trials.ADAPTED]
    return f"""## Rank (Fig. 5)

![score by rank](reproduction/figure-5.svg)

The paper, LLaMA-7B, commonsense reasoning: LoRA collapses at r = 4 and 8, DoRA hardly.

{markdown(head, rows)}

**Agreement**: {told}. At r = {min(trials.RANKS)} LoRA is {falls[0]:+.3f} off its best rank, DoRA
{falls[1]:+.3f}. One learning rate for all ranks, and another task: whether LoRA collapses
at a small rank is a matter of both."""


def _vectors(runs: Runs, base: float) -> str:
    rows = [
        [
            *(NAMES[row.method], str(row.rank), f"{row.percent:.3f}", spread_text(row, ".3f")),
            PAPER_VECTORS[row.method],
        ]
        for row in rows_of(score_table(runs, trials.vectors()))
    ]
    head = ["method", "rank", "trained %", f"MRR@10 (base {base:.3f})", "paper's MT-Bench"]
    return f"""## VeRA and DVoRA (Table 5)

The paper's scores: LLaMA-7B / LLaMA2-7B.

{markdown(head, rows)}

**Agreement**: {order(runs, trial("dora"), trial("lora"))}; \
{order(runs, trial("dvora"), trial("vera"))}. In the paper each is above the other."""


def _granularity(runs: Runs) -> str:
    chosen = trials.granularity()
    names = ("LoRA, all", "DoRA, all", "DoRA, q, k, v; magnitudes of the others")
    rows = [
        [name, f"{row.percent:.2f}", spread_text(row, ".3f"), *paper]
        for name, row, paper in zip(
            names, rows_of(score_table(runs, chosen)), PAPER_GRANULARITY, strict=True
        )
    ]
    head = ["directions", "trained %", "MRR@10", "paper's accuracy", "paper's trained %"]
    return f"""## Magnitudes alone in half of the matrices (section 5.6, Table 6)

The paper, LLaMA-7B: half of the parameters are enough.

{markdown(head, rows)}

**Agreement**: {order(runs, chosen[2], chosen[0], "q, k, v with magnitudes", "LoRA")}; \
{order(runs, chosen[2], chosen[1], "q, k, v with magnitudes", "DoRA of all")}."""


def _quantized(runs: Runs, base: tuple[float, float]) -> str:
    full, lora, dora = trials.quantized()
    rounded = [each.outcome.rounded or 0.0 for each in runs.of(full)]
    found = {
        "FT, rounded to NF4": (rounded, ""),
        "FT": (runs.scores(full), PAPER_QUANTIZED["full"]),
        "QLoRA": (runs.scores(lora), PAPER_QUANTIZED["lora"]),
        "QDoRA": (runs.scores(dora), PAPER_QUANTIZED["dora"]),
    }
    rows = [
        [name, f"{sum(s) / len(s):.3f} [{min(s):.3f}, {max(s):.3f}]", paper]
        for name, (s, paper) in found.items()
    ]
    head = [f"method (base {base[0]:.3f}, in NF4 {base[1]:.3f})", "MRR@10", "paper"]
    return f"""## On a base in NF4 (section 6.1, Fig. 6)

The paper's figures: Orca-Math, exact match of LLaMA2-7B / LLaMA3-8B. Here all linear layers are in
NF4 with double quantisation.

{markdown(head, rows)}

**Agreement**: {order(runs, dora, lora, "QDoRA", "QLoRA")}; \
{above(runs.scores(dora), rounded, "QDoRA", "FT rounded to NF4")}; \
{order(runs, dora, full, "QDoRA", "FT")}."""


def _memory(saving: Saving) -> str:
    rows = []
    for count, (exact, detached) in saving.plain.items():
        ours, ours_detached = saving.ours[count]
        rows.append(
            [
                *(str(count), f"{exact / 2**20:.1f}", f"{detached / 2**20:.1f}"),
                *(f"{(exact - detached) / 2**20:.2f}", f"{1 - detached / exact:.1%}"),
                *(f"{ours / 2**20:.1f}", f"{ours_detached / 2**20:.1f}"),
            ]
        )
    head = [
        *("sentences in a batch", "exact, MiB", "detached, MiB", "saved, MiB", "saved"),
        *("our layers: exact", "our layers: detached"),
    ]
    all_saved = {exact - detached for exact, detached in saving.plain.values()}
    matrices = saving.matrices / 2**20
    exactly = "to the byte, whatever the batch" if all_saved == {saving.matrices} else "only about"
    return f"""## Memory of the detached norm (section 4.3)

The paper: −24.4 % of the training memory of LLaMA-7B, −12.4 % of VL-BART. Here: bytes that autograd
keeps for the backward pass, of Eq. (5) written plainly, and of our layers.

{markdown(head, rows)}

**Agreement**: one (out × in) tensor for each adapted matrix, {matrices:.2f} MiB here, is what
detaching saves {exactly}. So a percentage says how much else is kept. Our layers form V anew
in the backward pass where they fold it: the exact gradient need not keep it."""
