"""Vectors of float32 for compiled code: loops over them need no luck with a vectoriser.

`load` widens what is stored (BF16, F16, float32) as it reads. Inside `with_flushed_denormals`
numbers below 1e-38 count as zero, as on a GPU: an x86 takes a hundred cycles for each of them.
"""

import operator
from platform import machine
from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from wdecomp.decomposition.stored import FAST, pointer_to, widened

# Two registers of most processors, one of those that have thirty-two of 64 bytes.
WIDE = get_host_cpu_features().get("avx512f", False)
LANES = 16 if WIDE else 8
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_I32 = ir.IntType(32)
_FLUSH = 0x8040  # bits of MXCSR: results and operands that are denormal count as zero
_X86 = machine().lower() in {"x86_64", "amd64"}


class _VectorType(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


_vector = _VectorType()


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, of: Any) -> None:
        super().__init__(manager, of, _VECTOR)


@intrinsic  # type: ignore[untyped-decorator]
def load(_: Any, array: Any, i: Any, j: Any) -> Any:
    """The numbers array[i, j : j + LANES], in memory side by side."""

    def read(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = pointer_to(context, builder, array, args)
        stored = ir.VectorType(pointer.type.pointee, LANES)
        size = array.dtype.bitwidth // 8
        found = builder.load(builder.bitcast(pointer, stored.as_pointer()), align=size)
        return widened(builder, array.dtype, found, LANES)

    return _vector(array, types.intp, types.intp), read


@intrinsic  # type: ignore[untyped-decorator]
def store(_: Any, array: Any, i: Any, j: Any, numbers: Any) -> Any:
    """Sets array[i, j : j + LANES] of a float32 array."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = pointer_to(context, builder, array, args[:3])
        builder.store(args[3], builder.bitcast(pointer, _VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, _vector), write


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(_: Any, array: Any, i: Any, j: Any) -> Any:
    """Asks for the cache line of array[i, j], which may lie beyond the array's end."""

    def ask(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = pointer_to(context, builder, array, args)
        line = builder.bitcast(pointer, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [line.type, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, everywhere, data = _I32(0), _I32(3), _I32(1)
        builder.call(function, [line, read, everywhere, data])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), ask


@intrinsic  # type: ignore[untyped-decorator]
def splat(_: Any, number: Any) -> Any:
    """A number in every lane."""

    def spread(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        nothing = ir.Constant(_VECTOR, ir.Undefined)
        narrow = builder.fptrunc(args[0], ir.FloatType())
        first = builder.insert_element(nothing, narrow, _I32(0))
        lanes = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
        return builder.shuffle_vector(first, nothing, lanes)

    return _vector(types.float64), spread


@intrinsic  # type: ignore[untyped-decorator]
def total(_: Any, numbers: Any) -> Any:
    """The sum of the lanes."""

    def add_up(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), _VECTOR])
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        found = builder.call(function, [ir.Constant(ir.FloatType(), -0.0), args[0]], fastmath=FAST)
        return builder.fpext(found, ir.DoubleType())

    return types.float64(_vector), add_up


def _define(python: Any, instruction: str) -> None:
    """An operator between two vectors, as one instruction of LLVM."""

    @intrinsic  # type: ignore[untyped-decorator]
    def combined(_: Any, x: Any, y: Any) -> Any:
        def combine(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args, flags=FAST)

        return _vector(_vector, _vector), combine

    @overload(python)
    def operate(x, y):  # type: ignore[no-untyped-def]  # numba compares the two signatures
        return (lambda x, y: combined(x, y)) if x is _vector and y is _vector else None


_define(operator.add, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")


@intrinsic  # type: ignore[untyped-decorator]
def plus_product(_: Any, z: Any, x: Any, y: Any) -> Any:
    """The sum z + x y: one instruction, rounded once, where the processor has it."""

    def combine(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        name = f"llvm.fmuladd.v{LANES}f32"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(function, [args[1], args[2], args[0]])

    return _vector(_vector, _vector, _vector), combine


@intrinsic  # type: ignore[untyped-decorator]
def flush_denormals(_: Any) -> Any:
    """Lets this thread take denormal numbers for zero; returns what `restore` needs."""

    def change(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not _X86:
            return _I32(0)
        place = cgutils.alloca_once(builder, _I32)
        _control(builder, "stmxcsr", place)
        before = builder.load(place)
        builder.store(builder.or_(before, _I32(_FLUSH)), place)
        _control(builder, "ldmxcsr", place)
        return before

    return types.int32(), change


@intrinsic  # type: ignore[untyped-decorator]
def restore(_: Any, before: Any) -> Any:
    """Undoes `flush_denormals`."""

    def change(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _X86:
            place = cgutils.alloca_once(builder, _I32)
            builder.store(args[0], place)
            _control(builder, "ldmxcsr", place)
        return context.get_dummy_value()

    return types.void(types.int32), change


def _control(builder: Any, instruction: str, place: Any) -> None:
    pointer = builder.bitcast(place, ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [pointer.type])
    name = f"llvm.x86.sse.{instruction}"
    builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [pointer])
