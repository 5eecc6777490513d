"""The page's pictures, as the paper numbers its own."""

from pathlib import Path

import pandas as pd

from wdecomp.charts import Panel, panels, static_scatter
from wdecomp.charts.lines import static_lines
from wdecomp.reproduction import trials
from wdecomp.reproduction.figures import Runs, late, movement_table, score_table
from wdecomp.reproduction.trials import trial
from wdecomp.reproduction.wording import WEIGHTS
from wdecomp.stats import module_fits


def draw(out: Path, runs: Runs) -> None:
    """Writes figure-N.svg into a folder; scatter plots are of the first seed."""
    out.mkdir(exist_ok=True)
    first = runs.seeds[0]
    for module, file in (("q", "figure-2"), ("v", "figure-7")):
        grid: dict[str, list[Panel]] = {}
        for each in trials.correlations():
            modules = late(runs.one(each, first))
            stack = str(modules.loc[modules["module"] == module, "stack"].iloc[0])
            grid.setdefault(f"weight decay {each.decay:g}", []).extend(
                panels(modules, module_fits(modules), module, stack)
            )
        static_scatter(grid, f"{WEIGHTS[module]} weights, output axis", out / f"{file}.svg")
    moved = movement_table(runs, trial("lora"), trial("dora"))
    for_layers = {
        f"{name} of {WEIGHTS[str(module)]}": pd.concat(
            pd.DataFrame(
                {"layer": part["layer"], "method": method, "mean": part[f"{figure}_{method}"]}
            )
            for method in trials.ADAPTED
        )
        for module, part in moved.groupby(moved["module"].astype(str))
        for figure, name in (("delta_direction", "ΔD"), ("delta_magnitude", "ΔM"))
    }
    static_lines(for_layers, "layer", "How far LoRA and DoRA moved", out / "figure-3.svg")
    sizes, ranks = score_table(runs, trials.sizes()), score_table(runs, trials.ranks())
    title = "MRR@10, mean and range of the seeds"
    static_lines({"MRR@10": sizes}, "share", title, out / "figure-4.svg")
    static_lines({"MRR@10": ranks}, "rank", title, out / "figure-5.svg", log=True)
