"""How are two thin matrices multiplied, to the same bits everywhere? Compiled tiles that stay in registers."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

ROWS = 4
COLUMNS = 32
"""A tile's sums: 8 registers of 16 lanes or 16 of 8, and room beside them for what is multiplied."""


def _tile_of(rows: int) -> Any:
    """Compiles `rows` x COLUMNS sums over the rank, each a chain of fused multiply-adds from 0."""

    @intrinsic
    def tile(typing_context: Any, left: Any, strip: Any, rank: Any, out: Any, stride: Any) -> Any:
        """`left` (rows, rank) times `strip` (rank, COLUMNS), by address, to rows of `out`, `stride` numbers apart."""

        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            left, strip, rank, out, stride = args
            single, vector = ir.FloatType(), ir.VectorType(ir.FloatType(), COLUMNS)
            fma = get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{COLUMNS}f32"
            )
            zero = ir.Constant(vector, [0.0] * COLUMNS)
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), COLUMNS), [0] * COLUMNS)

            def at(base: Any, index: Any, kind: Any) -> Any:
                return builder.inttoptr(builder.add(base, builder.shl(index, index.type(2))), kind.as_pointer())

            before = builder.block
            loop, after = builder.append_basic_block("rank"), builder.append_basic_block("store")
            builder.branch(loop)
            builder.position_at_end(loop)
            r = builder.phi(rank.type)
            sums = [builder.phi(vector) for _ in range(rows)]
            line = builder.load(at(strip, builder.mul(r, r.type(COLUMNS)), vector), align=4)
            added = []
            for i, total in enumerate(sums):
                number = builder.load(at(left, builder.add(builder.mul(rank, r.type(i)), r), single), align=4)
                first = builder.insert_element(zero, number, ir.IntType(32)(0))
                added.append(builder.call(fma, [builder.shuffle_vector(first, zero, lanes), line, total]))
            following = builder.add(r, r.type(1))
            builder.cbranch(builder.icmp_signed("<", following, rank), loop, after)
            r.add_incoming(r.type(0), before)
            r.add_incoming(following, loop)
            for total, new in zip(sums, added, strict=True):
                total.add_incoming(zero, before)
                total.add_incoming(new, loop)
            builder.position_at_end(after)
            for i, total in enumerate(added):
                builder.store(total, at(out, builder.mul(stride, r.type(i)), vector), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), build

    return tile


_four, _one = _tile_of(ROWS), _tile_of(1)


@njit("void(float32[:, ::1], float32[:, ::1], float32[:, ::1])", nogil=True, cache=True)
def multiply(left, right, out):  # type: ignore[no-untyped-def]
    """`out = left @ right` of shapes `(m, r)`, `(r, n)` and `(m, n)`, float32, r at least 1.

    Each entry is `fma(left[i, k], right[k, j], sum)` over k from 0 up, whatever the shapes, the processor's vectors or
    the number of threads around: the order of a library's sums depends on all of these.
    """
    rows, rank, columns = left.shape[0], left.shape[1], right.shape[1]
    spare = np.zeros(rank * COLUMNS + 16, np.float32)
    skipped = (-spare.ctypes.data // 4) % 16  # a vector that spans two cache lines is read twice
    strip = spare[skipped : skipped + rank * COLUMNS].reshape(rank, COLUMNS)
    edge = np.empty((ROWS, COLUMNS), np.float32)
    for j in range(0, columns, COLUMNS):
        width = min(COLUMNS, columns - j)
        if width == COLUMNS:
            for k in range(rank):
                for lane in range(COLUMNS):  # a count that the compiler knows becomes a few vectors
                    strip[k, lane] = right[k, j + lane]
        else:
            strip[:, :width] = right[:, j:]
        i = 0
        while i < rows:
            many = ROWS if i + ROWS <= rows else 1
            place, stride = out.ctypes.data + 4 * (i * columns + j), columns
            if width < COLUMNS:  # a tile is never narrower: what it has beyond the last column is left behind
                place, stride = edge.ctypes.data, COLUMNS
            if many == ROWS:
                _four(left.ctypes.data + 4 * i * rank, strip.ctypes.data, rank, place, stride)
            else:
                _one(left.ctypes.data + 4 * i * rank, strip.ctypes.data, rank, place, stride)
            if width < COLUMNS:
                out[i : i + many, j:] = edge[:many, :width]
            i += many
