"""Vectors of sixteen lanes for numba: one instruction works on sixteen rays.

numba compiles loops, and its compiler makes vector code of simple ones only: not of loops that gather from memory at
computed places and store in the same pass. These types say what is meant: LLVM turns a vector of sixteen into the
widest instructions that the machine has (one of AVX-512, two of AVX2, four of SSE or NEON).
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

LANES = 16
_INT = ir.IntType(32)
_ELEMENTS = {"floats": ir.FloatType(), "ints": _INT, "mask": ir.IntType(1)}
_VECTORS = {kind: ir.VectorType(element, LANES) for kind, element in _ELEMENTS.items()}
_FUSED = ("contract",)  # a * b + c may be one rounding


class Lanes(types.Type):
    """numba's type of a vector: "floats" (32 bit), "ints" (32 bit) or "mask"."""

    def __init__(self, kind: str):
        self.kind = kind
        super().__init__(name=f"Lanes({kind})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes):
        super().__init__(manager, lanes, _VECTORS[lanes.kind])


FLOATS, INTS, MASK = Lanes("floats"), Lanes("ints"), Lanes("mask")
_OF_SCALAR = {types.float32: FLOATS, types.int32: INTS}


def _function(arguments: tuple, result, emit):
    """A function of vectors, from the instructions that `emit(builder, *values)` writes."""

    def signature(found):
        if tuple(found) == arguments:
            return result(*arguments), lambda context, builder, sig, values: emit(builder, *values)
        return None

    if len(arguments) == 1:

        @intrinsic
        def function(typing, a):
            return signature((a,))
    elif len(arguments) == 2:

        @intrinsic
        def function(typing, a, b):
            return signature((a, b))
    else:

        @intrinsic
        def function(typing, a, b, c):
            return signature((a, b, c))

    return function


def _operator(symbol, alternatives: dict) -> None:
    """Give an operator its meaning for pairs of vectors: {type: (result, emit)}."""
    functions = {kind: _function((kind, kind), result, emit) for kind, (result, emit) in alternatives.items()}

    @overload(symbol)
    def meaning(a, b):
        function = functions.get(a) if a == b else None
        return None if function is None else lambda a, b: function(a, b)


def _call(name: str, result, *arguments):
    """Emitter of a call to one of LLVM's own functions."""

    def emit(builder, *values):
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)
        return builder.call(function, values)

    return emit


def _constant(kind: str, value) -> ir.Constant:
    return ir.Constant(_VECTORS[kind], [value] * LANES)


_operator(
    operator.add,
    {
        FLOATS: (FLOATS, lambda b, x, y: b.fadd(x, y, flags=_FUSED)),
        INTS: (INTS, lambda b, x, y: b.add(x, y)),
    },
)
_operator(
    operator.sub,
    {
        FLOATS: (FLOATS, lambda b, x, y: b.fsub(x, y, flags=_FUSED)),
        INTS: (INTS, lambda b, x, y: b.sub(x, y)),
    },
)
_operator(
    operator.mul,
    {
        FLOATS: (FLOATS, lambda b, x, y: b.fmul(x, y, flags=_FUSED)),
        INTS: (INTS, lambda b, x, y: b.mul(x, y)),
    },
)
_operator(operator.lt, {FLOATS: (MASK, lambda b, x, y: b.fcmp_ordered("<", x, y))})
_operator(operator.le, {FLOATS: (MASK, lambda b, x, y: b.fcmp_ordered("<=", x, y))})
_operator(operator.ne, {INTS: (MASK, lambda b, x, y: b.icmp_unsigned("!=", x, y))})
_operator(operator.and_, {MASK: (MASK, lambda b, x, y: b.and_(x, y)), INTS: (INTS, lambda b, x, y: b.and_(x, y))})
_operator(operator.rshift, {INTS: (INTS, lambda b, x, y: b.ashr(x, y))})
_operator(operator.lshift, {INTS: (INTS, lambda b, x, y: b.shl(x, y))})

minimum = _function((FLOATS, FLOATS), FLOATS, lambda b, x, y: b.select(b.fcmp_ordered("<", x, y), x, y))
maximum = _function((FLOATS, FLOATS), FLOATS, lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))
int_minimum = _function((INTS, INTS), INTS, lambda b, x, y: b.select(b.icmp_signed("<", x, y), x, y))
int_maximum = _function((INTS, INTS), INTS, lambda b, x, y: b.select(b.icmp_signed(">", x, y), x, y))
product = _function((FLOATS, FLOATS), FLOATS, lambda b, x, y: b.fmul(x, y))  # rounded before anything is added
truncated = _function((FLOATS,), INTS, lambda b, x: b.fptosi(x, _VECTORS["ints"]))
as_floats = _function((INTS,), FLOATS, lambda b, x: b.sitofp(x, _VECTORS["floats"]))
any_of = _function((MASK,), types.boolean, _call("llvm.vector.reduce.or.v16i1", _ELEMENTS["mask"], _VECTORS["mask"]))
where_float = _function((MASK, FLOATS, FLOATS), FLOATS, lambda b, m, x, y: b.select(m, x, y))
where_int = _function((MASK, INTS, INTS), INTS, lambda b, m, x, y: b.select(m, x, y))


@intrinsic
def splat(typing, x):
    """A float32 or int32 in all lanes."""
    result = _OF_SCALAR.get(x)
    if result is None:
        return None

    def emit(context, builder, signature, values):
        vector = _VECTORS[result.kind]
        first = builder.insert_element(ir.Constant(vector, ir.Undefined), values[0], ir.Constant(_INT, 0))
        return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), _constant("ints", 0))

    return result(x), emit


def _place(context, builder, signature, values, kind):
    """Pointer to sixteen elements of an array, from (array, offset, ...)."""
    data = context.make_array(signature.args[0])(context, builder, values[0]).data
    element = builder.gep(data, [values[1]])
    return builder.bitcast(element, _VECTORS[kind].as_pointer())


@intrinsic
def load(typing, array, offset):
    """Sixteen neighbouring elements of a flat array (float32 or int32), from `offset` on."""
    result = _OF_SCALAR.get(getattr(array, "dtype", None))
    if result is None:
        return None

    def emit(context, builder, signature, values):
        return builder.load(_place(context, builder, signature, values, result.kind), align=4)

    return result(array, types.intp), emit


@intrinsic
def store(typing, array, offset, lanes):
    """Write sixteen neighbouring elements."""
    if not isinstance(lanes, Lanes) or _OF_SCALAR.get(array.dtype) != lanes:
        return None

    def emit(context, builder, signature, values):
        builder.store(values[2], _place(context, builder, signature, values, lanes.kind), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), emit


def _gathered(builder, data, element, index, align, where=None):
    """The 32 bits from data[index] on, for an array of `element`s; zero, and nothing read, outside the mask `where`."""
    wide = ir.VectorType(ir.PointerType(), LANES)
    pointers = ir.GEPInstr(builder.block, data, [index], True, "", source_etype=element)
    pointers.type = wide  # llvmlite knows of single pointers only
    builder._insert(pointers)
    vector, mask = _VECTORS["ints"], _VECTORS["mask"]
    signature = ir.FunctionType(vector, [wide, _INT, mask, vector])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.masked.gather.v16i32.v16p0")
    where = _constant("mask", 1) if where is None else where
    return builder.call(function, [pointers, ir.Constant(_INT, align), where, _constant("ints", 0)])


@intrinsic
def gather(typing, array, index):
    """array[index] of a flat array (float32 or int32); every index must lie inside."""
    result = _OF_SCALAR.get(getattr(array, "dtype", None))
    if result is None or index != INTS:
        return None

    def emit(context, builder, signature, values):
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        found = _gathered(builder, data, _INT, values[1], 4)
        return builder.bitcast(found, _VECTORS[result.kind])

    return result(array, index), emit


@intrinsic
def gather_where(typing, array, index, mask):
    """array[index] of a flat int32 array where the mask is set, and 0 elsewhere, which costs no memory access."""
    if getattr(array, "dtype", None) != types.int32 or index != INTS or mask != MASK:
        return None

    def emit(context, builder, signature, values):
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        return _gathered(builder, data, _INT, values[1], 4, values[2])

    return INTS(array, index, mask), emit


@intrinsic
def gather_pair(typing, array, index):
    """(array[index], array[index + 1]) of a flat uint16 array, as floats."""
    if getattr(array, "dtype", None) != types.uint16 or index != INTS:
        return None
    result = types.UniTuple(FLOATS, 2)

    def emit(context, builder, signature, values):
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        both = _gathered(builder, data, ir.IntType(16), values[1], 2)
        sides = builder.and_(both, _constant("ints", 0xFFFF)), builder.lshr(both, _constant("ints", 16))
        floats = [builder.sitofp(side, _VECTORS["floats"]) for side in sides]
        return context.make_tuple(builder, signature.return_type, floats)

    return result(array, index), emit
