"""Rows of a matrix in vector registers, for functions that numba compiles.

numba's own loops over ten or twenty columns are too short for its vectorizer. Here a row is a value: ``load`` it,
``dot`` two, or one with four at once (``dots``), ``add_scaled``, ``store`` it. It consists of ``len(blocks)`` pieces of
``LANES`` numbers, so a matrix has LANES · len(blocks) columns, padded with zeros; ``blocks`` is a tuple of any numbers,
whose length numba knows at compile time, and there is one compiled form per length. Sums run in a fixed order.

numba keeps compiled functions on disk as long as *their* file is unchanged: after a change here, touch theirs.
"""

from __future__ import annotations

from functools import reduce

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 4
"""Numbers in one piece."""

INDEX = ir.IntType(32)


class Row(types.Type):
    """Type of a row: some pieces of LANES numbers."""

    def __init__(self, element, pieces):
        self.element, self.pieces = element, pieces
        super().__init__(name=f"Row({element}, {pieces})")


@register_model(Row)
class RowModel(models.PrimitiveModel):
    """A row is an LLVM array of vectors, which stays in registers."""

    def __init__(self, manager, row):
        piece = ir.VectorType(manager.lookup(row.element).get_value_type(), LANES)
        super().__init__(manager, row, ir.ArrayType(piece, row.pieces))


def _pieces(builder, row):
    return [builder.extract_value(row, place) for place in range(row.type.count)]


def _row(builder, pieces):
    row = ir.Constant(ir.ArrayType(pieces[0].type, len(pieces)), ir.Undefined)
    for place, piece in enumerate(pieces):
        row = builder.insert_value(row, piece, place)
    return row


def _pointers(context, builder, kind, array, index, row):
    """Return pointers to the pieces of row ``index`` of an array in C order."""
    data = context.make_array(kind)(context, builder, array).data
    # By the width that is known here and not the array's own: a shift and an addition, which serve other arrays too.
    start = builder.gep(data, [builder.mul(index, ir.Constant(index.type, LANES * row.count))])
    start = builder.bitcast(start, row.element.as_pointer())
    return [builder.gep(start, [ir.Constant(INDEX, place)]) for place in range(row.count)]


def _fused(builder, one, other, add):
    """Return one · other + add."""
    bits = 64 if isinstance(one.type.element, ir.DoubleType) else 32
    kind = ir.FunctionType(one.type, [one.type] * 3)
    fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f{bits}")
    return builder.call(fma, [one, other, add])


def _places(places):
    return ir.Constant(ir.VectorType(INDEX, len(places)), list(places))


def _shuffled(builder, piece, places):
    return builder.shuffle_vector(piece, ir.Constant(piece.type, ir.Undefined), _places(places))


@intrinsic
def load(typing, array, index, blocks):
    """Return row ``index`` of ``array`` (rows, LANES · len(blocks)), in C order."""
    kind = Row(array.dtype, len(blocks))

    def generate(context, builder, signature, arguments):
        row = context.get_value_type(kind)
        pointers = _pointers(context, builder, signature.args[0], *arguments[:2], row)
        return _row(builder, [builder.load(pointer, align=array.dtype.bitwidth // 8) for pointer in pointers])

    return kind(array, types.intp, blocks), generate


@intrinsic
def store(typing, row, array, index):
    """Write a row into row ``index`` of ``array``."""

    def generate(context, builder, signature, arguments):
        value, matrix, place = arguments
        pointers = _pointers(context, builder, signature.args[1], matrix, place, value.type)
        for piece, pointer in zip(_pieces(builder, value), pointers, strict=True):
            builder.store(piece, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(row, array, types.intp), generate


@intrinsic
def zeros_like(typing, row):
    """Return a row of zeros."""

    def generate(context, builder, signature, arguments):
        return ir.Constant(arguments[0].type, None)

    return row(row), generate


def _products(builder, one, other):
    """Return the LANES numbers whose sum is the inner product of two rows."""
    pairs = list(zip(*(_pieces(builder, row) for row in (one, other)), strict=True))
    # Two sums side by side: each waits for itself only.
    sums = [
        reduce(lambda add, pair: _fused(builder, *pair, add), chain[1:], builder.fmul(*chain[0]))
        for chain in (pairs[::2], pairs[1::2])
        if chain
    ]
    return sums[0] if len(sums) == 1 else builder.fadd(*sums)


def _folded(builder, pair, places, others):
    """Return the numbers of two pieces at some places plus those at others."""
    return builder.fadd(*(builder.shuffle_vector(*pair, _places(chosen)) for chosen in (places, others)))


@intrinsic
def dot(typing, one, other):
    """Return the inner product of two rows."""

    def generate(context, builder, signature, arguments):
        total = _products(builder, *arguments)
        width = LANES
        while width > 1:
            width //= 2
            halves = [_shuffled(builder, total, range(start, start + width)) for start in (0, width)]
            total = builder.fadd(*halves)
        return builder.extract_element(total, ir.Constant(INDEX, 0))

    return one.element(one, other), generate


@intrinsic
def dots(typing, one, first, second, third, fourth):
    """Return the inner products of ``one`` with four rows, a row of one piece: summed together, in fewer steps."""
    kind = Row(one.element, 1)

    def generate(context, builder, signature, arguments):
        a, b, c, d = (_products(builder, arguments[0], other) for other in arguments[1:])
        low, high = [0, 4, 2, 6], [1, 5, 3, 7]  # within halves, where a shuffle is quickest
        ab, cd = (_folded(builder, pair, low, high) for pair in ((a, b), (c, d)))  # a0 + a1, b0 + b1, a2 + a3, b2 + b3
        return _row(builder, [_folded(builder, (ab, cd), [0, 1, 4, 5], [2, 3, 6, 7])])

    return kind(one, first, second, third, fourth), generate


@intrinsic
def numbers(typing, array, place):
    """Return a row of one piece, the numbers ``place`` … ``place`` + LANES − 1 of a one-dimensional array."""
    kind = Row(array.dtype, 1)

    def generate(context, builder, signature, arguments):
        row = context.get_value_type(kind)
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), row.element.as_pointer())
        return _row(builder, [builder.load(pointer, align=array.dtype.bitwidth // 8)])

    return kind(array, types.intp), generate


@intrinsic
def at(typing, array, place):
    """Return ``array[place]`` of a one-dimensional array, without a look at whether the place is negative."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load(builder.gep(data, [arguments[1]]))

    return array.dtype(array, types.intp), generate


@intrinsic
def number(typing, row, place):
    """Return number ``place`` of a row of one piece."""

    def generate(context, builder, signature, arguments):
        return builder.extract_element(builder.extract_value(arguments[0], 0), arguments[1])

    return row.element(row, types.intp), generate


@intrinsic
def add_scaled(typing, total, factor, row):
    """Return total + factor · row."""

    def generate(context, builder, signature, arguments):
        sums, number, addend = arguments
        number = context.cast(builder, number, signature.args[1], row.element)
        piece = addend.type.element
        spread = builder.insert_element(ir.Constant(piece, ir.Undefined), number, ir.Constant(INDEX, 0))
        spread = _shuffled(builder, spread, [0] * LANES)
        pairs = zip(_pieces(builder, addend), _pieces(builder, sums), strict=True)
        return _row(builder, [_fused(builder, spread, one, add) for one, add in pairs])

    return total(total, factor, row), generate
