"""How far a merged weight may be from W0 + ΔW.

    a = u0·|W0| + u·|W0 + ΔW| + v·rms(ΔW) + t

u is half a unit in the last place of the merged weights, relative to them, and t half the smallest
step between two of them; rms(ΔW) is over one stored row. u0·|W0| is for a base that was loaded in
that dtype, u0 = u; or that was dequantised, which is done in 16 bits, u0 ≥ 2⁻⁸. u·|W0 + ΔW| is for
the rounding of the sum, and v for factors and products that were rounded on the way: to the 16
bits of the merged weights, or in float32 to the 11 bits that a GPU's TF32 has.

Where PEFT rounds, once all of it is in 16 bits (`autocast_adapter_dtype=False`; by default factors
are float32, and only the sum is rounded):

    LoRA    s·BA, then W0 + s·BA                                              2 roundings
    DoRA    s·BA, V = W0 + s·BA, ‖V‖, m, m/‖V‖, then the product with V      6 roundings

Added up, all of one sign, these six are 4·a, which no weight reached (the largest of 50 merges of
LoRA and DoRA in BF16 and F16: 1.9·a); their root mean square over a tensor is below a (0.49·a),
over one row, whose m/‖V‖ is off as a whole, below 2·a (1.1·a).
"""

from wdecomp.dtypes import PRECISION

# In units of a: of a whole tensor and of a row the root mean square, of one weight its error.
MOST_OF_TENSOR, MOST_OF_ROW, MOST_OF_WEIGHT = 1.0, 2.0, 4.0

PRODUCTS = {"BF16": 2.0**-7}  # v
FINER_PRODUCTS = 2.0**-10
STEPS = {"F16": 2.0**-25}  # t: float16's weights below 2^-14 are all that far apart
FINER_STEPS = 2.0**-134  # bfloat16's


DEQUANTISED = "BF16"  # the coarsest dtype that a quantised base is decoded to


def roundoff(dtype: str) -> float:
    """The u of a dtype; of decoded weights, that of float32."""
    return float(2.0 ** -PRECISION.get(dtype, PRECISION["F32"]))


def products(dtype: str) -> float:
    """The v of a dtype."""
    return PRODUCTS.get(dtype, FINER_PRODUCTS)


def least(dtype: str) -> float:
    """The t of a dtype."""
    return STEPS.get(dtype, FINER_STEPS)
