"""The tables that a comparison leaves behind: the contract with every reader.

modules.parquet   a matrix in a row: run × step × parameter × axis
fits.parquet      a statistic in a row
facts.parquet     a tensor in a row: what diagnosis needs, 1-D tensors included
spectra.parquet   a matrix in a row, with --spectral: run × step × parameter
inputs.parquet    a tensor that was read in a row, with --checksums
columns/          a column in a row: one file per run and step, one row group per matrix and axis
"""

import pyarrow as pa

VERSION = 1

_WHERE = [
    ("run", pa.string()),
    ("method", pa.string()),
    ("step", pa.int64()),
    ("stack", pa.string()),
    ("layer", pa.int64()),
    ("module", pa.string()),
    ("parameter", pa.string()),
]

MODULES = pa.schema(
    [
        *_WHERE,
        ("axis", pa.string()),
        ("n_columns", pa.int64()),
        ("n_zero", pa.int64()),
        ("n_nonfinite", pa.int64()),
        ("delta_magnitude", pa.float64()),
        ("delta_direction", pa.float64()),
        ("signed_delta_magnitude", pa.float64()),
        ("relative_delta_magnitude", pa.float64()),
        ("growth_ratio", pa.float64()),
        ("null_delta_magnitude", pa.float64()),  # of isotropic noise of the same ‖ΔW‖
        ("null_delta_direction", pa.float64()),
        ("floor_delta_magnitude", pa.float64()),  # of rounding to the stored dtype
        ("floor_delta_direction", pa.float64()),
        ("dtype_base", pa.string()),
        ("dtype_tuned", pa.string()),
    ]
)

FACTS = pa.schema(
    [
        *_WHERE,
        ("shape", pa.list_(pa.int64())),  # as stored in the base, without a batch dimension
        ("dtype_base", pa.string()),
        ("dtype_tuned", pa.string()),
        ("unchanged", pa.bool_()),  # every element equal; such a matrix has no row in modules
        ("norm_base", pa.float64()),  # ‖W0‖, Frobenius
        ("norm_delta", pa.float64()),  # ‖ΔW‖
        ("relative_change", pa.float64()),  # ‖ΔW‖/‖W0‖
        ("zero_outputs", pa.int64()),  # of the base
        ("zero_inputs", pa.int64()),
        ("rank", pa.int64()),  # of an adapter's factors
        ("scaling", pa.float64()),
        # For `wdecomp audit`; null where a tensor has no such thing.
        ("nonfinite_base", pa.int64()),  # outputs that hold NaN or infinity in the base
        ("nonfinite_tuned", pa.int64()),  # in the tuned weights alone
        ("growth_mean", pa.float64()),  # of (m − m0)/m0 over the columns, signed, on the axis that
        ("growth_spread", pa.float64()),  # has magnitudes, else output; standard deviation
        ("formula", pa.string()),  # of an adapter's W'; null where whole weights are stored
        ("norm_a", pa.float64()),  # ‖A‖ of LoRA's factors, Frobenius
        ("norm_b", pa.float64()),  # ‖s·B‖
        ("numerical_rank", pa.int64()),  # singular values of s·BA above 1e-6 of the largest
        ("magnitude_dtype", pa.string()),  # DoRA's m
        ("magnitude_axis", pa.string()),
        ("magnitudes", pa.int64()),  # how many there are; the counts below are of them
        ("magnitude_negative", pa.int64()),
        ("magnitude_zero", pa.int64()),  # where the base has no zero column
        ("magnitude_initial", pa.int64()),  # ‖W0‖ still, as far as float32 sums agree
        ("magnitude_rounded", pa.int64()),  # no further from ‖W0‖ than rounding to 16 bits moves
        ("magnitude_grid", pa.string()),  # to which: BF16 or F16
        ("magnitude_correlation", pa.float64()),  # of m with ‖W0‖, Pearson
        ("magnitude_misordered", pa.bool_()),  # q and k, in torchtune's order of rows
    ]
)

# Null where a figure does not exist or was not found; see docs/spectral.md for formulas.
SPECTRA = pa.schema(
    [
        *_WHERE,
        ("outputs", pa.int64()),
        ("inputs", pa.int64()),
        ("found_by", pa.string()),  # factors, exact, randomised; or why not: nonfinite, too large
        ("norm_delta", pa.float64()),  # ‖ΔW‖, Frobenius
        ("relative_change", pa.float64()),  # ‖ΔW‖/‖W0‖
        ("spectral_norm", pa.float64()),  # σ1 of ΔW
        ("spectral_norm_base", pa.float64()),  # σ1 of W0
        ("stable_rank", pa.float64()),  # ‖ΔW‖²/σ1²
        ("effective_rank", pa.float64()),  # exp of the entropy of σ/Σσ; null if only bounds
        ("effective_rank_low", pa.float64()),
        ("effective_rank_high", pa.float64()),
        ("rank_90", pa.int64()),  # how many σ² hold 90 % of ‖ΔW‖²; null if more than were found
        ("rank_99", pa.int64()),
        ("remainder", pa.float64()),  # of ‖ΔW‖, outside the values found; 0 if all were
        ("leading", pa.int64()),  # k, of what follows
        ("vectors_by", pa.string()),  # of W0 and W: exact or randomised
        ("residual", pa.float64()),  # the largest ‖Wᵀ(W v) − σ²v‖/σ1² of W0's and W's
        ("alignment", pa.float64()),  # ‖UᵀΔW V‖/‖ΔW‖, U and V the k leading vectors of W0
        ("alignment_chance", pa.float64()),  # k/√(outputs·inputs)
        ("intruders", pa.int64()),  # of the k leading u of W, |cos| < ε with all u0
        ("intruders_most", pa.int64()),  # where not all u0 were found
        ("least_cosine", pa.float64()),  # over those k, of the largest |cos| with a u0 found
    ]
)

INPUTS = pa.schema(
    [
        ("file", pa.string()),
        ("start", pa.int64()),  # of the first byte, from the start of the file
        ("bytes", pa.int64()),
        ("tensor", pa.string()),  # empty where it is all of a file
        ("crc32", pa.int64()),  # of these bytes, as zlib has it
    ]
)

FITS = pa.schema(
    [
        ("run", pa.string()),
        ("stack", pa.string()),
        ("module", pa.string()),
        ("axis", pa.string()),
        ("response", pa.string()),
        ("grouping", pa.string()),
        ("estimator", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("n", pa.int64()),
        ("cluster_low", pa.float64()),
        ("cluster_high", pa.float64()),
    ]
)

# float64 for its range: |m − m0| of a column of norm 1e-25 is no float32. Its figures are rounded
# to the 24 bits that float32 has, so that the file is no larger.
WORD = pa.dictionary(pa.int32(), pa.string())  # a name is kept once, not in every row
COLUMNS = pa.schema(
    [
        pa.field("parameter", WORD, nullable=False),
        pa.field("axis", WORD, nullable=False),
        pa.field("column", pa.int32(), nullable=False),
        pa.field("magnitude_base", pa.float64(), nullable=False),
        pa.field("delta_magnitude", pa.float64(), nullable=False),
        pa.field("delta_direction", pa.float64(), nullable=False),
    ]
)
FIGURES = ["magnitude_base", "delta_magnitude", "delta_direction"]
