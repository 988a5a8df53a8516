"""What can be learnt of a tensor's task vectors in one pass? Compiled loops over chunks that stay in cache."""

from __future__ import annotations

import numpy as np
from numba import njit

from searchspaces.cache.compiled import kept_on_disk
from searchspaces.weights import kernel
from searchspaces.weights.kernel import CHUNK, DIFFERENCE, NOTHING, floats, halves, larger, load, wide

LANES = 16  # float64 sums side by side: enough for any vector unit, and the same order of sums on each of them


@njit(nogil=True)
def differences(base, base_code, experts, codes, at, n, origin, taus):  # type: ignore[no-untyped-def]
    load(base, base_code, at, n, origin)
    for k in range(len(experts)):
        tau = taus[k]
        if codes[k] == NOTHING:
            tau[:n] = 0
        else:
            load(experts[k], codes[k], at, n, tau)
            if codes[k] != DIFFERENCE:
                for i in range(n):
                    tau[i] -= origin[i]


@njit(nogil=True)
def variances(taus, n, mean, out):  # type: ignore[no-untyped-def]
    share = np.float32(1) / np.float32(len(taus))
    mean[:n] = 0
    out[:n] = 0
    for k in range(len(taus)):
        tau = taus[k]
        for i in range(n):
            mean[i] += tau[i]
    for i in range(n):
        mean[i] *= share
    for k in range(len(taus)):
        tau = taus[k]
        for i in range(n):
            away = tau[i] - mean[i]
            out[i] += away * away
    for i in range(n):
        out[i] *= share


@njit(nogil=True)
def _numbers(taus, n, spread, mean, out):  # type: ignore[no-untyped-def]
    if spread:
        variances(taus, n, mean, out)
    else:
        tau = taus[0]
        for i in range(n):
            out[i] = abs(tau[i])


@kept_on_disk(kernel, signature="void(int64, int64, int64[::1], int64[::1], int64, int64, boolean, float32[::1])")
def fill(base, base_code, experts, codes, start, stop, spread, out):  # type: ignore[no-untyped-def]
    """Write one number for each of elements `start` to `stop` to `out`, `(stop - start,)`.

    It is the magnitude of the first expert's task vector, or, with `spread`, the variance over all K experts:

        m = (tau_1 + ... + tau_K) / K,    v = ((tau_1 - m)^2 + ... + (tau_K - m)^2) / K

    each sum from left to right, in fp32 without fused multiply-add, and `/ K` a product with `fp32(1) / fp32(K)`.
    Addresses and dtypes as for `kernel.merge`.
    """
    origin, mean = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    taus = np.empty((len(experts), CHUNK), np.float32)
    for at in range(start, stop, CHUNK):
        n = min(CHUNK, stop - at)
        differences(base, base_code, experts, codes, at, n, origin, taus)
        _numbers(taus, n, spread, mean, out[at - start : at - start + n])


@njit(nogil=True)
def _may_lie_between(base, base_code, expert, code, at, n, low, high):  # type: ignore[no-untyped-def]
    # most chunks have nothing: they are told in one loop over the files' words. Of unequal dtypes it says yes
    largest, nothing = np.uint32(0), np.float32(0)
    if base_code == 0 and code == 0:
        origin, there = floats(base, at, n), floats(expert, at, n)
        for i in range(n):
            number = abs(there[i] - origin[i])
            largest = larger(largest, number if (low < number) & (number < high) else nothing)
    elif base_code == 1 and code == 1:
        narrow_origin, narrow = halves(base, at, n), halves(expert, at, n)
        for i in range(n):
            number = abs(wide(narrow[i]) - wide(narrow_origin[i]))
            largest = larger(largest, number if (low < number) & (number < high) else nothing)
    else:
        return True
    return largest > 0


_BETWEEN = "int64(int64, int64, int64[::1], int64[::1], int64, int64, float32, float32, float32[::1], int64)"


@kept_on_disk(kernel, signature=_BETWEEN)
def between(base, base_code, experts, codes, start, stop, low, high, out, found):  # type: ignore[no-untyped-def]
    """Write the first expert's magnitudes (see `fill`) above `low` and below `high` to `out` from `found` on.

    Returns how many there are in `out` then, in the order of the elements; -1 where there is no room for all.
    """
    origin, taus = np.empty(CHUNK, np.float32), np.empty((len(experts), CHUNK), np.float32)
    for at in range(start, stop, CHUNK):
        n = min(CHUNK, stop - at)
        if not _may_lie_between(base, base_code, experts[0], codes[0], at, n, low, high):
            continue
        differences(base, base_code, experts, codes, at, n, origin, taus)
        tau = taus[0]
        for i in range(n):
            if low < abs(tau[i]) < high:
                if found == len(out):
                    return -1
                out[found] = abs(tau[i])
                found += 1
    return found


@njit(nogil=True)
def _dot(a, b, n, lanes):  # type: ignore[no-untyped-def]
    # a product of two fp32 numbers is exact in float64
    lanes[:] = 0
    whole = n // LANES * LANES
    for i in range(0, whole, LANES):
        for j in range(LANES):
            lanes[j] += np.float64(a[i + j]) * np.float64(b[i + j])
    for i in range(whole, n):
        lanes[i - whole] += np.float64(a[i]) * np.float64(b[i])
    total = 0.0
    for lane in lanes:
        total += lane
    return total


@kept_on_disk(kernel, signature="void(int64, int64, int64[::1], int64[::1], int64, int64, int64, float64[:, :, ::1])")
def row_grams(base, base_code, experts, codes, start, stop, width, out):  # type: ignore[no-untyped-def]
    """Add inner products of base and task vectors over each row of `width` elements to `out`, `(rows, K + 1, K + 1)`.

    Sums are float64, in an order that follows from the numbers `start`, `stop` and `width` alone.
    """
    count = len(experts) + 1
    every, lanes = np.empty((count, CHUNK), np.float32), np.empty(LANES)
    at = start
    while at < stop:
        row = at // width
        n = min(CHUNK, stop - at, (row + 1) * width - at)
        differences(base, base_code, experts, codes, at, n, every[0], every[1:])
        for i in range(count):
            for j in range(i + 1):
                out[row, i, j] += _dot(every[i], every[j], n, lanes)
                out[row, j, i] = out[row, i, j]
        at += n


@kept_on_disk(kernel, signature="void(int64, int64, int64[::1], int64[::1], int64, int64, int64, float64[:, ::1])")
def column_grams(base, base_code, experts, codes, start, stop, period, out):  # type: ignore[no-untyped-def]
    """Add inner products over elements that lie `period` apart to `out`, `((K + 1)(K + 2) / 2, period)`.

    Its rows are the pairs (0, 0), (1, 0), (1, 1), (2, 0) ... of base and task vectors; sums are float64, in order.
    """
    count = len(experts) + 1
    every = np.empty((count, CHUNK), np.float32)
    at = start
    while at < stop:
        column = at % period
        n = min(CHUNK, stop - at, period - column)
        differences(base, base_code, experts, codes, at, n, every[0], every[1:])
        pair = 0
        for i in range(count):
            for j in range(i + 1):
                a, b, sums = every[i], every[j], out[pair]
                for c in range(n):
                    sums[column + c] += np.float64(a[c]) * np.float64(b[c])
                pair += 1
        at += n


@kept_on_disk(kernel, signature="void(uint64[:, ::1], uint8[:, ::1])")
def place_ranks(ordered, out):  # type: ignore[no-untyped-def]
    """Write each entry's rank in its row, from 0 for the least to 255 for the largest, rounded, to `out`.

    The lower 32 bits of `ordered` `(rows, n)` are the entries' places in their rows, ascending by magnitude.
    """
    rows, n = ordered.shape
    for row in range(rows):
        for rank in range(n):
            place = ordered[row, rank] & np.uint64(0xFFFFFFFF)
            out[row, place] = (510 * rank + n - 1) // (2 * (n - 1)) if n > 1 else 255


@kept_on_disk(kernel, signature="void(float32[::1], int64[::1], float64[::1])")
def sums_above(ascending, above, out):  # type: ignore[no-untyped-def]
    """Write the sum of the `above[j]` largest of `ascending`, more with each j, to `out[j]`; float64, largest first."""
    total, taken = 0.0, 0
    for j in range(len(above)):
        while taken < above[j]:
            taken += 1
            total += np.float64(ascending[len(ascending) - taken])
        out[j] = total
