"""The null line: where the points would lie if updates of the same size were random."""

import numpy as np
import pandas as pd


def null_points(modules: pd.DataFrame) -> pd.DataFrame:
    """ΔD and ΔM of isotropic Gaussian updates as large as those of the given rows, on their bases.

    No learning, and yet ΔM grows with ΔD: noise lengthens what it turns. Points as a chart's line
    has them, by increasing ΔD; layers whose norms differ do not lie on one curve.

    Returns:
        delta_direction and delta_magnitude, a row for every row of `modules` that has both.
    """
    names = {f"null_{name}": name for name in ("delta_direction", "delta_magnitude")}
    points = modules[list(names)].rename(columns=names)
    finite = np.isfinite(points.to_numpy(np.float64)).all(axis=1)
    ordered: pd.DataFrame = points[finite].sort_values("delta_direction", ignore_index=True)
    return ordered
