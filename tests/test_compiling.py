"""Machine code that was kept goes with the sources that are there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import wdecomp

# ‖w − w0‖²/m0 of a column of length 1 that became 3 long: summary.py has it from chance.py.
FIGURE = """
import numpy as np
from wdecomp.decomposition.summary import _totals
print(_totals(np.ones(1), np.full(1, 2.0), np.zeros(1))[6])
"""


def test_a_change_beside_it_is_no_reason_to_run_the_old_machine_code(tmp_path: Path) -> None:
    package = Path(wdecomp.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, tmp_path / "wdecomp", ignore=ignored)
    assert _figure(tmp_path) == "4.0"
    changed = tmp_path / "wdecomp" / "decomposition" / "chance.py"
    before = changed.read_text()
    changed.write_text(before.replace("return grown**2 +", "return 10 * grown**2 +"))
    assert _figure(tmp_path) == "40.0"


def _figure(home: Path) -> str:
    found = subprocess.run(
        [sys.executable, "-c", FIGURE],
        env=os.environ | {"PYTHONPATH": str(home)},
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return found.stdout.strip()
