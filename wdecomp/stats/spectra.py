"""What the singular values of a run's changes say, in a paragraph."""

from collections.abc import Iterator

import pandas as pd

from wdecomp.errors import some

FOUND = ("factors", "exact", "randomised")


def spectral_texts(spectra: pd.DataFrame) -> list[str]:
    """A paragraph for each run, of its matrices at the last step: medians and ranges; ASCII.

    Args:
        spectra: the table of that name.
    """
    return [
        f"{run}: {' '.join(_sentences(_last(rows)))}"
        for run, rows in spectra.groupby("run", sort=False)
    ]


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    steps = rows["step"]
    return rows[steps == steps.max()] if steps.notna().any() else rows


def _sentences(rows: pd.DataFrame) -> Iterator[str]:
    known = rows[rows["found_by"].isin(FOUND) & (rows["norm_delta"] > 0)]
    if len(known):
        yield _size(known)
        yield _energy(known)
        if known["alignment"].notna().any():
            yield _alignment(known)
            yield _intruders(known)
        by_sample = known[known["remainder"] > 0]
        if len(by_sample):
            yield (
                f"Of {len(by_sample)} large matrices only leading singular values were found, "
                f"which leave {_range(by_sample['remainder'])} of ||dW||: of their effective rank "
                "the table has bounds."
            )
    for why, said in (("nonfinite", "hold NaN or infinity"), ("too large", "are too large")):
        names = list(rows[rows["found_by"] == why]["parameter"])
        if names:
            yield f"Of {len(names)} matrices nothing was found: they {said} ({some(names)})."


def _size(rows: pd.DataFrame) -> str:
    known = rows["effective_rank"].notna()
    ranks = f"effective rank {_range(rows['effective_rank'])}, " if known.any() else ""
    said = "1 matrix" if len(rows) == 1 else f"{len(rows)} matrices (medians, with ranges)"
    return (
        f"the change of {said} has {ranks}stable rank {_range(rows['stable_rank'])}, "
        f"and ||dW|| {_range(rows['relative_change'])} of ||W0||."
    )


def _energy(rows: pd.DataFrame) -> str:
    said = []
    for share in (90, 99):
        ranks = rows[f"rank_{share}"]
        over = int(ranks.isna().sum())
        if over < len(ranks):
            more = f" (in {over} matrices more than were found)" if over else ""
            said.append(f"{share} % in {_range(ranks.dropna())}{more}")
    if not said:
        return "More directions than were found hold 90 % of its energy."
    return f"Of its energy {' and '.join(said)} directions."


def _alignment(rows: pd.DataFrame) -> str:
    k, known = int(rows["leading"].max()), rows.dropna(subset=["alignment"])
    return (
        f"Along the base's {k} leading directions lies {_range(known['alignment'])} of ||dW||, "
        f"by chance {_range(known['alignment_chance'])}."
    )


def _intruders(rows: pd.DataFrame) -> str:
    known = rows.dropna(subset=["intruders"])
    fewest, most = int(known["intruders"].sum()), int(known["intruders_most"].sum())
    counted = str(fewest) if fewest == most else f"{fewest} to {most}"
    holders = int((known["intruders_most"] > 0).sum())
    where = f" in {holders} of {len(known)} matrices" if most else ""
    return (
        f"Intruder dimensions among the {int(rows['leading'].max())} leading: {counted}{where}; "
        f"least cosine {_short(float(known['least_cosine'].min()))}."
    )


def _range(values: pd.Series) -> str:
    """The median with the range, or the only value."""
    numbers = values.dropna().astype(float)
    low, middle, high = (_short(float(v)) for v in numbers.quantile([0.0, 0.5, 1.0]))
    return middle if low == high else f"{middle} ({low} to {high})"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
