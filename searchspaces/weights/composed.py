"""How are compositions merged, and differentiated, at the speed of memory? Chunk by chunk, each step a short loop."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from searchspaces.algebra import draws
from searchspaces.cache.compiled import kept_on_disk
from searchspaces.weights import election, gates, kernel, sparse
from searchspaces.weights import packed as packed_numbers
from searchspaces.weights.election import combine, divide, leave, weigh
from searchspaces.weights.gates import open_gate, shut
from searchspaces.weights.kernel import (
    CHUNK,
    DIFFERENCE,
    LANES,
    NOTHING,
    floats,
    halves,
    larger,
    load,
    product,
    rounded,
)
from searchspaces.weights.packed import EQUAL, LARGEST, NONE, SHARED, Packed, fours
from searchspaces.weights.sparse import STRIDE, ZEROS, begin, fill, keep, line, scaled

_compiled = kept_on_disk(kernel, sparse, gates, election, packed_numbers, draws)


def merge(
    packed: Packed,
    base: int,
    base_code: int,
    experts: NDArray[np.int64],  # (K,) addresses
    codes: NDArray[np.int64],  # (K,)
    out: int,
    out_code: int,
    start: int,
    stop: int,
) -> bool:
    """Write merged elements `start` to `stop` to `out`; says whether they are finite.

    Addresses and codes as for `kernel.merge`, of all K experts in their order, and `NOTHING` among the codes; those
    that are not in `packed.active` are not read. Sums are fp32 in the order of the experts, without fused multiply-add:
    the same bits whatever the range.
    """
    addresses, codes = experts[packed.active], codes[packed.active]
    if packed.lines is not None:
        return bool(_merge_lines(base, base_code, addresses, codes, *packed.lines, out, out_code, start, stop))
    scratch = _scratch(packed, len(addresses))
    raws = ROWS + fours(len(addresses)) if packed.gated else 0
    return bool(
        _merge(
            scratch.ctypes.data, raws, base, base_code, addresses, codes, packed.merging, packed.vote, out, out_code,
            start, stop,
        )
    )  # fmt: skip


def products(
    packed: Packed,
    base: int,
    base_code: int,
    experts: NDArray[np.int64],  # (K,) addresses
    codes: NDArray[np.int64],  # (K,)
    grad: int,
    grad_code: int,
    start: int,
    stop: int,
    out: NDArray[np.float64],  # (K + 2,)
) -> None:
    """`<G, u_k>` of a composition over elements `start` to `stop`, then `<G, theta_0>` and `<G, G>`, written to `out`.

    Sums as in `kernel.products`. Raises ValueError where u_k depends on the weights, or these are by row or column.
    """
    packed.check_linear()
    scratch = _scratch(packed, packed.count)
    raws = ROWS + fours(packed.count) if packed.gated else 0
    _products(
        scratch.ctypes.data, raws, base, base_code, experts, codes, packed.measuring, packed.vote, grad, grad_code,
        start, stop, out,
    )  # fmt: skip
    out[: packed.count] *= packed.gains


ORIGIN, TOTAL, GATE, PARTS, SLOPE, ROWS = 5, 6, 7, 8, 9, 10
"""Scratch rows behind those that `sparse` knows: from the last on kept task vectors, and behind these raw ones."""

PART = 512  # elements of a merge at a time: the rows of eight experts stay in the first level of cache


def _scratch(packed: Packed, count: int) -> NDArray[np.float32]:
    return np.zeros((ROWS + fours(count) * (2 if packed.gated else 1)) * STRIDE, dtype=np.float32)


@njit(nogil=True, inline="always")
def _take(address, code, origin, at, n, expert, home, row, total):  # type: ignore[no-untyped-def]
    near = line(home, ZEROS, n) if code >= DIFFERENCE else origin
    if code == NOTHING:
        fill(row, n, np.float32(0))
    elif code & 1:
        keep(halves(address, at, n), near, at, n, expert, home, row, total)
    else:
        keep(floats(address, at, n), near, at, n, expert, home, row, total)


@njit(nogil=True, inline="always")
def _take_all(home, raws, addresses, codes, origin, at, n, experts, vote, total, gate, adds):  # type: ignore[no-untyped-def]
    """Write what stays of every expert to its row, and its sum to `total`; raw task vectors first, and the gate.

    Returns the first of the rows; with `adds`, only the sum is needed.
    """
    count = len(addresses)
    if vote.draws:
        begin(home, at, n)
    if raws:
        fill(total, n, np.float32(0))
        for k in range(count):
            row, near = line(home, raws + k, n), line(home, ZEROS, n) if codes[k] >= DIFFERENCE else origin
            if codes[k] == NOTHING:
                fill(row, n, np.float32(0))
            elif codes[k] & 1:
                scaled(halves(addresses[k], at, n), near, n, np.float32(1), row, total)
            else:
                scaled(floats(addresses[k], at, n), near, n, np.float32(1), row, total)
        open_gate(home, raws, count, n, vote, total, gate)
        if adds and _unsparsified(experts, count, False):
            weigh(home, raws, experts, count, n, total)
            return raws
        if _unsparsified(experts, count, True):
            return raws
    fill(total, n, np.float32(0))
    for k in range(count):
        row = line(home, ROWS + k, n)
        if raws:
            keep(line(home, raws + k, n), line(home, ZEROS, n), at, n, experts[k], home, row, total)
        else:
            _take(addresses[k], codes[k], origin, at, n, experts[k], home, row, total)
    return ROWS


@njit(nogil=True)
def _unsparsified(experts, count, unscaled):  # type: ignore[no-untyped-def]
    for k in range(count):  # noqa: SIM110 (numba has no `all`)
        if experts[k].kind != 0 or (unscaled and experts[k].gain != 1):
            return False
    return True


@_compiled
def _merge(home, raws, base, base_code, addresses, codes, experts, vote, out, out_code, start, stop):  # type: ignore[no-untyped-def]
    finite, adds = True, vote.consensus == NONE or vote.consensus == SHARED
    at = start
    while at < stop:
        n = _length(at, stop, PART)
        origin, total, gate = line(home, ORIGIN, n), line(home, TOTAL, n), line(home, GATE, n)
        load(base, base_code, at, n, origin)
        rows = _take_all(home, raws, addresses, codes, origin, at, n, experts, vote, total, gate, adds)
        if not adds:
            combine(home, rows, experts, len(addresses), n, vote, total)
        if raws:
            shut(gate, n, total)
        finite &= _store(total, origin, vote.base, n, out, out_code, at)
        at += n
    return finite


@njit(nogil=True, inline="always")
def _length(at, stop, most):  # type: ignore[no-untyped-def]
    # the upper bits of a place are the same within a chunk
    return min(most, stop - at, (1 << 32) - (at & 0xFFFFFFFF))


@njit(nogil=True)
def _store(total, origin, base, n, out, out_code, at):  # type: ignore[no-untyped-def]
    largest = np.uint32(0)
    if out_code == 1:
        narrow = halves(out, at, n)
        for i in range(n):
            value = base * origin[i] + total[i]
            narrow[i] = rounded(value)
            largest = larger(largest, value)
        return largest < np.uint32(0x7F7F8000)  # as in `kernel.merge`
    full = floats(out, at, n)
    for i in range(n):
        value = base * origin[i] + total[i]
        full[i] = value
        largest = larger(largest, value)
    return largest < np.uint32(0x7F800000)


@_compiled
def _products(home, raws, base, base_code, addresses, codes, experts, vote, grad, grad_code, start, stop, out):  # type: ignore[no-untyped-def]
    count = len(addresses)
    lanes = np.empty(LANES, np.float32)
    out[:] = 0.0
    at = start
    while at < stop:
        n = _length(at, stop, CHUNK)
        origin, total, gate = line(home, ORIGIN, n), line(home, TOTAL, n), line(home, GATE, n)
        parts, slope = line(home, PARTS, n), line(home, SLOPE, n)
        load(base, base_code, at, n, origin)
        load(grad, grad_code, at, n, slope)
        out[count] += product(slope, origin, n, lanes)
        out[count + 1] += product(slope, slope, n, lanes)
        rows = _take_all(home, raws, addresses, codes, origin, at, n, experts, vote, total, gate, False)
        if vote.consensus == EQUAL or vote.consensus == LARGEST:
            leave(home, rows, experts, count, n, vote, total, parts)
            divide(slope, parts, n, vote.divided, vote.scale)
        if raws:
            shut(gate, n, slope)
        for k in range(count):
            out[k] += product(slope, line(home, rows + k, n), n, lanes)
        at += n


@_compiled
def _merge_lines(base, base_code, experts, codes, run, bases, weights, out, out_code, start, stop):  # type: ignore[no-untyped-def]
    scratch = np.zeros((5, CHUNK), np.float32)
    origin, total, row, by, zeros = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    finite = True
    for at in range(start, stop, CHUNK):
        n = min(CHUNK, stop - at)
        load(base, base_code, at, n, origin)
        _lay(bases, run, at, n, by)
        for i in range(n):
            total[i] = by[i] * origin[i]
        for k in range(len(experts)):
            if codes[k] != NOTHING:
                near = zeros if codes[k] >= DIFFERENCE else origin
                load(experts[k], codes[k] & 1, at, n, row)
                _lay(weights[k], run, at, n, by)
                for i in range(n):
                    total[i] += by[i] * (row[i] - near[i])
        finite &= _store(total, zeros, np.float32(0), n, out, out_code, at)
    return finite


@njit(nogil=True)
def _lay(values, run, at, n, out):  # type: ignore[no-untyped-def]
    """Each element's value: `values[p // run % len(values)]` for places p from `at`."""
    i = 0
    while i < n:
        line = (at + i) // run % len(values)
        if run == 1:
            m = min(n - i, len(values) - line)
            out[i : i + m] = values[line : line + m]
        else:
            m = min(n - i, run - (at + i) % run)
            out[i : i + m] = values[line]
        i += m
