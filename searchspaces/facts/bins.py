"""Which entries vary about so much? Compiled loops that note it beside each entry, and find them again."""

from __future__ import annotations

import numpy as np
from numba import njit

from searchspaces.cache.compiled import kept_on_disk
from searchspaces.facts import streams
from searchspaces.facts.streams import differences, variances
from searchspaces.weights import kernel
from searchspaces.weights.kernel import CHUNK, DIFFERENCE, NOTHING, floats, halves, wide

ON_KNOT = 0xFFFF
"""The bin of entries whose variance is a knot's, or NaN; another entry's is the place of the first knot below it."""

BLOCK = 64  # bins that are looked through at a time

_SORT = (
    "void(int64, int64, int64[::1], int64[::1], int64, int64, uint32[::1], int64[::1], float64[:, ::1], uint16[::1])"
)


@kept_on_disk(kernel, streams, signature=_SORT)
def sort_into_bins(base, base_code, experts, codes, start, stop, knots, larger, squares, bins):  # type: ignore[no-untyped-def]
    """Find the first of `knots` that is at most an entry's variance (see `fill`), for elements `start` to `stop`.

    Adds the entry's `tau_k^2` to `squares[j]`, `(m, K)`, j being that knot's place, unless its variance is NaN; and
    writes its bin to `bins`, `(stop - start,)`. `knots` are the bits of numbers, `(m,)`, descending; one of them is at
    most any entry's. `larger[p]` is how many of them have upper halves of at least p, `(65537,)`.
    """
    origin, mean = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    taus, numbers = np.empty((len(experts), CHUNK), np.float32), np.empty(CHUNK, np.float32)
    bits, places = numbers.view(np.uint32), np.empty(CHUNK, np.int64)
    for at in range(start, stop, CHUNK):
        n = min(CHUNK, stop - at)
        differences(base, base_code, experts, codes, at, n, origin, taus)
        variances(taus, n, mean, numbers)
        for i in range(n):
            upper = bits[i] >> 16
            j, end = larger[upper + 1], larger[upper]
            while j < end:
                middle = (j + end) >> 1
                if knots[middle] > bits[i]:
                    j = middle + 1
                else:
                    end = middle
            places[i] = j
            aside = knots[j] == bits[i] or numbers[i] != numbers[i]
            bins[at - start + i] = ON_KNOT if aside else j
        for k in range(len(experts)):
            tau = taus[k]
            for i in range(n):
                if numbers[i] == numbers[i]:
                    squares[places[i], k] += np.float64(tau[i]) * np.float64(tau[i])


@njit(nogil=True)
def _load_some(address, code, places, n, out):  # type: ignore[no-untyped-def]
    if code == 1:
        narrow = halves(address, 0, places[n - 1] + 1)
        for i in range(n):
            out[i] = wide(narrow[places[i]])
    else:
        full = floats(address, 0, places[n - 1] + 1)
        for i in range(n):
            out[i] = full[places[i]]


@njit(nogil=True)
def _some_differences(base, base_code, experts, codes, places, n, origin, taus):  # type: ignore[no-untyped-def]
    # as `streams.differences`: one loop for both would be given a function, and such code is not kept on the disk
    _load_some(base, base_code, places, n, origin)
    for k in range(len(experts)):
        tau = taus[k]
        if codes[k] == NOTHING:
            tau[:n] = 0
        else:
            _load_some(experts[k], codes[k], places, n, tau)
            if codes[k] != DIFFERENCE:
                for i in range(n):
                    tau[i] -= origin[i]


@njit(nogil=True)
def _places_of(bins, wanted, at, stop, first, places, count):  # type: ignore[no-untyped-def]
    # most blocks have none, which a loop without a way out tells fastest
    for i in range(at, stop, BLOCK):
        block, hit = bins[i : min(i + BLOCK, stop)], np.uint16(0)
        for j in range(len(block)):
            hit |= np.uint16(block[j] == wanted)
        if hit:
            for j in range(len(block)):
                if block[j] == wanted:
                    places[count] = first + i + j
                    count += 1
    return count


_WITHIN = (
    "int64(int64, int64, int64[::1], int64[::1], int64, int64, "
    "Array(uint16, 1, 'C', readonly=True), uint16, uint32, uint32, float32[::1], float32[:, ::1], int64)"
)


@kept_on_disk(kernel, streams, signature=_WITHIN)
def within(base, base_code, experts, codes, start, stop, bins, wanted, low, high, numbers, taus, found):  # type: ignore[no-untyped-def]
    """Write variances and task vectors of the entries in a bin to `numbers` `(n,)` and `taus` `(n, K)`, `found` on.

    In the order of the elements. `bins` are those of elements `start` to `stop`; the weights of entries in other bins
    are not read. Returns how many there are then; -1 where there is no room for all, or where the bits of a variance
    are not above `low` and below `high`.
    """
    origin, mean = np.empty(2 * CHUNK, np.float32), np.empty(2 * CHUNK, np.float32)
    near, varied = np.empty((len(experts), 2 * CHUNK), np.float32), np.empty(2 * CHUNK, np.float32)
    bits, places, count = varied.view(np.uint32), np.empty(2 * CHUNK, np.int64), 0
    for at in range(0, stop - start, CHUNK):
        end = min(at + CHUNK, stop - start)
        count = _places_of(bins, wanted, at, end, start, places, count)
        if count == 0 or (count <= CHUNK and end < stop - start):
            continue
        _some_differences(base, base_code, experts, codes, places, count, origin, near)
        variances(near, count, mean, varied)
        for i in range(count):
            if found == len(numbers) or not low < bits[i] < high:
                return -1
            numbers[found], taus[found] = varied[i], near[:, i]
            found += 1
        count = 0
    return found
