"""How are weights merged, and differentiated, at the speed of memory? Compiled loops over chunks that stay in cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import carray, njit, types
from numba.extending import intrinsic

CHUNK = 2048  # elements: two fp32 scratch rows of 8 KB sit in the first level of cache, beside what streams through

LANES = 64  # fp32 sums side by side: enough for any vector unit, and the same order of sums on each of them

CODES = {torch.float32: 0, torch.bfloat16: 1}
"""The dtypes that the kernels read and write, in any mixture; `reference` does the others. They hold no GIL."""

DIFFERENCE, HALF_DIFFERENCE = 2, 3
"""The codes of an expert that is its difference from the base already, fp32 and bf16: odd codes are bf16."""

NOTHING = 4
"""The code of an expert that leaves the tensor as it is: its address is not read."""


@intrinsic
def pointer(typing_context: Any, address: Any, kind: Any) -> Any:
    """An integer address as a pointer to elements of the dtype `kind`."""
    target = types.CPointer(kind.dtype)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return target(address, kind), build


# The next three are 32-bit arithmetic, which vectorises; numba's own integers would become 64-bit.


@intrinsic
def wide(typing_context: Any, number: Any) -> Any:
    """bf16 bits as fp32: they are its upper half; an fp32 number as it is."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if signature.args[0] == types.float32:
            return args[0]
        word = ir.IntType(32)
        return builder.bitcast(builder.shl(builder.zext(args[0], word), word(16)), ir.FloatType())

    return types.float32(number), build


@intrinsic
def rounded(typing_context: Any, number: Any) -> Any:
    """The bits of an fp32 number rounded to bf16, to nearest even."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.bitcast(args[0], word)
        odd = builder.and_(builder.lshr(bits, word(16)), word(1))
        shifted = builder.lshr(builder.add(bits, builder.add(odd, word(0x7FFF))), word(16))
        return builder.trunc(shifted, ir.IntType(16))

    return types.uint16(types.float32), build


@intrinsic
def larger(typing_context: Any, most: Any, number: Any) -> Any:
    """The larger of `most` and the bits of an fp32 number's magnitude; infinity and NaN are above all finite ones."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        magnitude = builder.and_(builder.bitcast(args[1], word), word(0x7FFFFFFF))
        return builder.select(builder.icmp_unsigned(">", magnitude, args[0]), magnitude, args[0])

    return types.uint32(types.uint32, types.float32), build


@njit(nogil=True, cache=True, inline="always")
def halves(address, at, n):  # type: ignore[no-untyped-def]
    """n bf16 numbers, as uint16 bits, from element `at` of the memory at an address."""
    return carray(pointer(address + 2 * at, np.uint16), (n,))


@njit(nogil=True, cache=True, inline="always")
def floats(address, at, n):  # type: ignore[no-untyped-def]
    """n fp32 numbers from element `at` of the memory at an address."""
    return carray(pointer(address + 4 * at, np.float32), (n,))


@njit(nogil=True, cache=True)
def _add(total, base, zeros, at, n, k, count, experts, codes, scales):  # type: ignore[no-untyped-def]
    # Four experts of one dtype in one pass keep the sums in registers, and more reads under way; the order of the sums
    # is that of the experts all the same. Returns how many were added.
    origin = zeros if codes[k] >= DIFFERENCE else base
    if count - k >= 4 and codes[k] == codes[k + 1] == codes[k + 2] == codes[k + 3]:
        p, q, r, s = scales[k], scales[k + 1], scales[k + 2], scales[k + 3]
        if codes[k] & 1:
            a, b = halves(experts[k], at, n), halves(experts[k + 1], at, n)
            c, d = halves(experts[k + 2], at, n), halves(experts[k + 3], at, n)
            for i in range(n):
                o = origin[i]
                total[i] = (((total[i] + p * (wide(a[i]) - o)) + q * (wide(b[i]) - o)) + r * (wide(c[i]) - o)) + s * (
                    wide(d[i]) - o
                )
        else:
            e, f = floats(experts[k], at, n), floats(experts[k + 1], at, n)
            g, h = floats(experts[k + 2], at, n), floats(experts[k + 3], at, n)
            for i in range(n):
                o = origin[i]
                total[i] = (((total[i] + p * (e[i] - o)) + q * (f[i] - o)) + r * (g[i] - o)) + s * (h[i] - o)
        return 4
    p = scales[k]
    if codes[k] & 1:
        a = halves(experts[k], at, n)
        for i in range(n):
            total[i] += p * (wide(a[i]) - origin[i])
    else:
        e = floats(experts[k], at, n)
        for i in range(n):
            total[i] += p * (e[i] - origin[i])
    return 1


_SIGNATURE = "boolean(int64, int64, int64[::1], int64[::1], float32, float32[::1], int64, int64, int64, int64)"


@njit(_SIGNATURE, nogil=True, cache=True)
def merge(base, base_code, experts, codes, base_scale, scales, out, out_code, start, stop):  # type: ignore[no-untyped-def]
    """Elements `start` to `stop` of `base_scale * base + sum_k scales_k * (expert_k - base)`, written to `out`.

    `base`, `experts` (K) and `out` are addresses of contiguous memory, each with its dtype's code from `CODES`, or
    `DIFFERENCE` or `HALF_DIFFERENCE` for what needs no base subtracted; scales are float32, K of them, none of them 0:
    the caller leaves those experts out. Sums are fp32 in the order of the
    experts, without fused multiply-add; bf16 results are rounded to nearest even. Returns whether all are finite.
    """
    origin = np.empty(CHUNK, np.float32)
    total = np.empty(CHUNK, np.float32)
    zeros = np.zeros(CHUNK, np.float32)
    largest = np.uint32(0)
    for at in range(start, stop, CHUNK):
        n = min(CHUNK, stop - at)
        if base_code == 1:
            narrow = halves(base, at, n)
            for i in range(n):
                origin[i] = wide(narrow[i])
                total[i] = base_scale * origin[i]
        else:
            full = floats(base, at, n)
            for i in range(n):
                origin[i] = full[i]
                total[i] = base_scale * origin[i]
        k = 0
        while k < len(experts):
            k += _add(total, origin, zeros, at, n, k, len(experts), experts, codes, scales)
        if out_code == 1:
            narrow = halves(out, at, n)
            for i in range(n):
                narrow[i] = rounded(total[i])
                largest = larger(largest, total[i])
        else:
            full = floats(out, at, n)
            for i in range(n):
                full[i] = total[i]
                largest = larger(largest, total[i])
    # 0x7F7F8000 is the least magnitude that rounds to infinity in bf16, 0x7F800000 is infinity
    return largest < (np.uint32(0x7F7F8000) if out_code == 1 else np.uint32(0x7F800000))


@njit(nogil=True, cache=True, inline="always")
def load(address, code, at, n, out):  # type: ignore[no-untyped-def]
    """Write elements `at` to `at + n` at an address, of a dtype in `CODES`, to `out` as fp32."""
    if code == 1:
        narrow = halves(address, at, n)
        for i in range(n):
            out[i] = wide(narrow[i])
    else:
        full = floats(address, at, n)
        for i in range(n):
            out[i] = full[i]


@njit(nogil=True, cache=True, inline="always")
def _folded(lanes):  # type: ignore[no-untyped-def]
    total = 0.0
    for lane in lanes:
        total += np.float64(lane)
    return total


@njit(nogil=True, cache=True)
def product(a, b, n, lanes):  # type: ignore[no-untyped-def]
    """The inner product of n fp32 elements: fp32 in `lanes`, of shape `(LANES,)`, whose sum is float64."""
    lanes[:] = 0
    whole = n // LANES * LANES
    for i in range(0, whole, LANES):
        for j in range(LANES):
            lanes[j] += a[i + j] * b[i + j]
    for i in range(whole, n):
        lanes[i - whole] += a[i] * b[i]
    return _folded(lanes)


@njit(nogil=True, cache=True)
def _product_with_difference(grad, expert, origin, n, lanes):  # type: ignore[no-untyped-def]
    lanes[:] = 0
    whole = n // LANES * LANES
    for i in range(0, whole, LANES):
        for j in range(LANES):
            lanes[j] += grad[i + j] * (expert[i + j] - origin[i + j])
    for i in range(whole, n):
        lanes[i - whole] += grad[i] * (expert[i] - origin[i])
    return _folded(lanes)


@njit(nogil=True, cache=True)
def _four_products(grad, origin, e, f, g, h, n, lanes, out, k):  # type: ignore[no-untyped-def]
    p, q, r, s = lanes[0], lanes[1], lanes[2], lanes[3]
    lanes[:] = 0
    whole = n // LANES * LANES
    for i in range(0, whole, LANES):
        for j in range(LANES):
            d, o = grad[i + j], origin[i + j]
            p[j] += d * (wide(e[i + j]) - o)
            q[j] += d * (wide(f[i + j]) - o)
            r[j] += d * (wide(g[i + j]) - o)
            s[j] += d * (wide(h[i + j]) - o)
    for i in range(whole, n):
        j, d, o = i - whole, grad[i], origin[i]
        p[j] += d * (wide(e[i]) - o)
        q[j] += d * (wide(f[i]) - o)
        r[j] += d * (wide(g[i]) - o)
        s[j] += d * (wide(h[i]) - o)
    for m in range(4):
        out[k + m] += _folded(lanes[m])


@njit(nogil=True, cache=True)
def _add_products(grad, base, zeros, at, n, k, count, experts, codes, widened, lanes, out):  # type: ignore[no-untyped-def]
    # Four experts of one dtype in one pass, as in `_add`; the bits are those of one after the other. Returns how many.
    origin = zeros if codes[k] >= DIFFERENCE else base
    if count - k >= 4 and codes[k] == codes[k + 1] == codes[k + 2] == codes[k + 3]:
        if codes[k] & 1:
            a, b = halves(experts[k], at, n), halves(experts[k + 1], at, n)
            c, d = halves(experts[k + 2], at, n), halves(experts[k + 3], at, n)
            _four_products(grad, origin, a, b, c, d, n, lanes, out, k)
        else:
            e, f = floats(experts[k], at, n), floats(experts[k + 1], at, n)
            g, h = floats(experts[k + 2], at, n), floats(experts[k + 3], at, n)
            _four_products(grad, origin, e, f, g, h, n, lanes, out, k)
        return 4
    if codes[k] & 1:
        load(experts[k], 1, at, n, widened)
        out[k] += _product_with_difference(grad, widened, origin, n, lanes[0])
    else:
        out[k] += _product_with_difference(grad, floats(experts[k], at, n), origin, n, lanes[0])
    return 1


_PRODUCTS = "void(int64, int64, int64[::1], int64[::1], int64, int64, int64, int64, float64[::1])"


@njit(_PRODUCTS, nogil=True, cache=True)
def products(base, base_code, experts, codes, grad, grad_code, start, stop, out):  # type: ignore[no-untyped-def]
    """Inner products of a gradient G over elements `start` to `stop`, written to `out`, float64 of shape `(K + 2,)`.

    `out[k] = <G, expert_k - base>` (or `<G, difference_k>`), then `<G, base>` and `<G, G>`. Addresses and dtypes as for
    `merge`. The difference is taken before the product: `<G, expert> - <G, base>` would cancel. Sums are fp32 in
    `LANES` lanes within a chunk, float64 in a fixed order across lanes and chunks, without fused multiply-add.
    """
    origin = np.empty(CHUNK, np.float32)
    slope = np.empty(CHUNK, np.float32)
    widened = np.empty(CHUNK, np.float32)
    zeros = np.zeros(CHUNK, np.float32)
    lanes = np.empty((4, LANES), np.float32)
    count = len(experts)
    out[:] = 0.0
    for at in range(start, stop, CHUNK):
        n = min(CHUNK, stop - at)
        load(base, base_code, at, n, origin)
        load(grad, grad_code, at, n, slope)
        k = 0
        while k < count:
            k += _add_products(slope, origin, zeros, at, n, k, count, experts, codes, widened, lanes, out)
        out[count] += product(slope, origin, n, lanes[0])
        out[count + 1] += product(slope, slope, n, lanes[0])
