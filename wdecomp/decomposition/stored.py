"""How compiled code turns stored elements into numbers; an array's type tells how it is stored."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FAST = ("reassoc", "contract", "nsz")  # NaN and infinity keep their meaning


def widened(builder: Any, stored: Any, value: Any, lanes: int = 1) -> Any:
    """LLVM's float32 (float64 stays as it is) of one stored element, or of a vector of them.

    Args:
        builder: of LLVM instructions.
        stored: numba's type of an element: uint16 is BF16, int16 is F16.
        value: the element, or `lanes` of them.
        lanes: how many there are.
    """

    def of(kind: Any) -> Any:
        return ir.VectorType(kind, lanes) if lanes > 1 else kind

    if stored == types.uint16:  # the upper half of a float32
        wide = of(ir.IntType(32))
        shift = ir.Constant(wide, [16] * lanes if lanes > 1 else 16)
        return builder.bitcast(builder.shl(builder.zext(value, wide), shift), of(ir.FloatType()))
    if stored == types.int16:
        return builder.fpext(builder.bitcast(value, of(ir.HalfType())), of(ir.FloatType()))
    return value


def pointer_to(context: Any, builder: Any, array_type: Any, arguments: Any) -> Any:
    """LLVM's pointer to array[i, j], as numba passes the three; j runs along the memory."""
    array, i, j = arguments
    struct = context.make_array(array_type)(context, builder, array)
    down = builder.mul(i, builder.extract_value(struct.strides, 0))
    row = cgutils.pointer_add(builder, struct.data, down)
    return builder.gep(row, [j])


@intrinsic  # type: ignore[untyped-decorator]
def number(_: Any, array: Any, i: Any, j: Any) -> Any:
    """The number, in float64, that a stored element stands for."""

    def read(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        stored = builder.load(pointer_to(context, builder, array, args))
        value = widened(builder, array.dtype, stored)
        return value if array.dtype == types.float64 else builder.fpext(value, ir.DoubleType())

    return types.float64(array, types.intp, types.intp), read


@intrinsic  # type: ignore[untyped-decorator]
def array_at(_: Any, like: Any, address: Any, stride: Any) -> Any:
    """An array of the type and shape of `like` at another address, so many bytes from row to row.

    It owns nothing: whoever has the address keeps what lies there.
    """

    def place(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(like)(context, builder, args[0])
        array.data = builder.inttoptr(args[1], array.data.type)
        strides = builder.insert_value(array.strides, args[2], 0)
        array.strides = strides
        nothing = cgutils.voidptr_t
        array.meminfo = array.parent = ir.Constant(nothing, None)
        return array._getvalue()

    return like(like, types.intp, types.intp), place
