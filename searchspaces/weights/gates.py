"""Which entries count at all, in a chunk? Compiled loops over raw task vectors: who needs it, how far it varies."""

from __future__ import annotations

import numpy as np
from numba import njit

from searchspaces.algebra.draws import UNIT
from searchspaces.weights.packed import SHARED
from searchspaces.weights.sparse import SPARE, cut, fill, line, seed_of, words_of

# Rows are fp32 of n elements. As in `sparse`, each loop writes one array and reads few, so that it vectorises.


@njit(nogil=True, inline="always")
def _marked(raw, total, threshold):  # type: ignore[no-untyped-def]
    return np.float32(0) if abs(raw) <= threshold * abs(total - raw) else np.float32(1)  # NaN is in every mask


@njit(nogil=True)
def _mark(raw, total, n, threshold, marks):  # type: ignore[no-untyped-def]
    for i in range(n):
        marks[i] += _marked(raw[i], total[i], threshold)


@njit(nogil=True)
def _mark_four(a, b, c, d, total, n, threshold, marks):  # type: ignore[no-untyped-def]
    for i in range(n):
        t = total[i]
        first = _marked(a[i], t, threshold) + _marked(b[i], t, threshold)
        marks[i] += first + (_marked(c[i], t, threshold) + _marked(d[i], t, threshold))


@njit(nogil=True)
def _add_squares(raw, total, n, inverse, squares):  # type: ignore[no-untyped-def]
    for i in range(n):
        apart = raw[i] - total[i] * inverse
        squares[i] += apart * apart


@njit(nogil=True)
def _add_squares_of_four(a, b, c, d, total, n, inverse, squares):  # type: ignore[no-untyped-def]
    for i in range(n):
        mean = total[i] * inverse
        e, f, g, h = a[i] - mean, b[i] - mean, c[i] - mean, d[i] - mean
        squares[i] = (((squares[i] + e * e) + f * f) + g * g) + h * h


@njit(nogil=True)
def _reach(values, n, factor, least, gate):  # type: ignore[no-untyped-def]
    for i in range(n):
        gate[i] = np.float32(0) if values[i] * factor < least else gate[i]


@njit(nogil=True, inline="always")
def open_gate(home, raws, count, n, vote, total, gate):  # type: ignore[no-untyped-def]
    """Write 1 to `gate` where entries count, 0 where they are nobody's.

    The `count` raw task vectors are the scratch rows from `raws`, `total` is their sum; `vote` is a `packed.Vote`.
    Where it draws, `sparse.begin` has been called for these places.
    """
    sums, fours = line(home, SPARE, n), count - count % 4
    fill(gate, n, np.float32(1))
    if vote.consensus == SHARED:
        fill(sums, n, np.float32(0))
        for k in range(raws, raws + fours, 4):
            a, b, c, d = line(home, k, n), line(home, k + 1, n), line(home, k + 2, n), line(home, k + 3, n)
            _mark_four(a, b, c, d, total, n, vote.threshold, sums)
        for k in range(raws + fours, raws + count):
            _mark(line(home, k, n), total, n, vote.threshold, sums)
        _reach(sums, n, np.float32(1), np.float32(vote.least), gate)
    if vote.spread > 0:
        inverse = np.float32(1.0 / count)
        fill(sums, n, np.float32(0))
        for k in range(raws, raws + fours, 4):
            a, b, c, d = line(home, k, n), line(home, k + 1, n), line(home, k + 2, n), line(home, k + 3, n)
            _add_squares_of_four(a, b, c, d, total, n, inverse, sums)
        for k in range(raws + fours, raws + count):
            _add_squares(line(home, k, n), total, n, inverse, sums)
        if vote.until < UNIT:
            words, until = words_of(home, n), np.int32(vote.until)
            cut(sums, words, n, inverse, seed_of(vote.key), vote.spread, vote.beyond, until, gate)
        else:
            _reach(sums, n, inverse, vote.spread, gate)


@njit(nogil=True)
def shut(gate, n, total):  # type: ignore[no-untyped-def]
    """Zero what the gate is shut for."""
    for i in range(n):
        total[i] = total[i] if gate[i] > 0 else np.float32(0)
