"""A small results folder in the ranges of the DoRA paper, by the generator of the benchmarks."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from wdecomp.table import Results

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MODULES = ("self_attn.q_proj", "self_attn.v_proj")


def generator() -> ModuleType:
    """benchmarks/synthetic_results.py, with the module beside it that it imports."""
    for name in ("synthetic", "synthetic_results"):
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
            assert spec is not None
            assert spec.loader is not None
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
    return sys.modules["synthetic_results"]


def small_results(folder: Path, run: str | None = None) -> Results:
    """4 layers, q and v, 4 steps, 3 methods, with columns; the second run may have another name."""
    made = generator()
    ft, lora, dora = made.METHODS
    if run is not None:
        lora = made.Method(run, "lora", lora.direction, lora.magnitude, lora.slope)
    found: Results = made.write_results(
        folder, 4, 24, 40, columns=True, methods=(ft, lora, dora), modules=MODULES
    )
    return found
