"""Whose entries go into the sum, in a chunk? Compiled loops over what is left of several experts' task vectors."""

from __future__ import annotations

import numpy as np
from numba import njit

from searchspaces.weights.packed import LARGEST
from searchspaces.weights.sparse import SPARE, fill, line

# Rows are fp32 of n elements. As in `sparse`, each loop writes one or two arrays and reads few, so that it vectorises.


@njit(nogil=True, inline="always")
def _positive(value):  # type: ignore[no-untyped-def]
    return np.float32(0) if value <= 0 else value  # NaN stays: it is to be seen


@njit(nogil=True, inline="always")
def _counted(value, divisor):  # type: ignore[no-untyped-def]
    return np.float32(0) if value <= 0 else divisor


@njit(nogil=True)
def _elect_four(vote, a, b, c, d, n, w, x, y, z, sums):  # type: ignore[no-untyped-def]
    # sums of the elected sign's, turned positive
    for i in range(n):
        sign = np.float32(1) if vote[i] >= 0 else np.float32(-1)
        e, f, g, h = _positive(sign * a[i]), _positive(sign * b[i]), _positive(sign * c[i]), _positive(sign * d[i])
        sums[i] = (((sums[i] + w * e) + x * f) + y * g) + z * h


@njit(nogil=True)
def _count_four(vote, a, b, c, d, n, p, q, r, s, parts):  # type: ignore[no-untyped-def]
    for i in range(n):
        sign = np.float32(1) if vote[i] >= 0 else np.float32(-1)
        first = (parts[i] + _counted(sign * a[i], p)) + _counted(sign * b[i], q)
        parts[i] = (first + _counted(sign * c[i], r)) + _counted(sign * d[i], s)


@njit(nogil=True)
def _close_four(a, b, c, d, n, w, x, y, z, scale, sums, total):  # type: ignore[no-untyped-def]
    # the last experts' part of `sums`, and their sign
    for i in range(n):
        sign = np.float32(1) if total[i] >= 0 else np.float32(-1)
        e, f, g, h = _positive(sign * a[i]), _positive(sign * b[i]), _positive(sign * c[i]), _positive(sign * d[i])
        total[i] = sign * ((((sums[i] + w * e) + x * f) + y * g) + z * h) * scale


@njit(nogil=True, error_model="numpy")
def _close_four_divided(a, b, c, d, n, w, x, y, z, p, q, r, s, scale, sums, parts, total):  # type: ignore[no-untyped-def]
    for i in range(n):
        sign = np.float32(1) if total[i] >= 0 else np.float32(-1)
        j, k, t, m = sign * a[i], sign * b[i], sign * c[i], sign * d[i]
        e, f, g, h = _positive(j), _positive(k), _positive(t), _positive(m)
        value = sign * ((((sums[i] + w * e) + x * f) + y * g) + z * h)
        part = (((parts[i] + _counted(j, p)) + _counted(k, q)) + _counted(t, r)) + _counted(m, s)
        total[i] = value / (part if part != 0 else np.float32(1)) * scale


@njit(nogil=True)
def _leave_agreeing(vote, row, n, divisor, parts):  # type: ignore[no-untyped-def]
    for i in range(n):
        sign = np.float32(1) if vote[i] >= 0 else np.float32(-1)
        value = sign * row[i]
        row[i] = sign * _positive(value)
        parts[i] += _counted(value, divisor)


@njit(nogil=True, inline="always")
def _beats(size, best):  # type: ignore[no-untyped-def]
    return (best == best) & (not (size <= best))  # the first of equals, and of NaN


@njit(nogil=True)
def _find_largest_of_four(a, b, c, d, n, best):  # type: ignore[no-untyped-def]
    for i in range(n):
        e, f, g, h, most = abs(a[i]), abs(b[i]), abs(c[i]), abs(d[i]), best[i]
        most = e if _beats(e, most) else most
        most = f if _beats(f, most) else most
        most = g if _beats(g, most) else most
        best[i] = h if _beats(h, most) else most


@njit(nogil=True, inline="always")
def _is_largest(value, best):  # type: ignore[no-untyped-def]
    return (abs(value) == best) | (value != value)  # where anything is NaN, the largest is


@njit(nogil=True)
def _name_four(a, b, c, d, k, n, best, who):  # type: ignore[no-untyped-def]
    e, f, g, h = np.float32(k), np.float32(k + 1), np.float32(k + 2), np.float32(k + 3)
    for i in range(n):
        number, most = who[i], best[i]
        number = h if _is_largest(d[i], most) else number
        number = g if _is_largest(c[i], most) else number
        number = f if _is_largest(b[i], most) else number
        who[i] = e if _is_largest(a[i], most) else number


@njit(nogil=True)
def _choose_four(a, b, c, d, k, n, who, w, x, y, z, total):  # type: ignore[no-untyped-def]
    e, f, g, h = np.float32(k), np.float32(k + 1), np.float32(k + 2), np.float32(k + 3)
    for i in range(n):
        number, value = who[i], total[i]
        value = w * a[i] if number == e else value
        value = x * b[i] if number == f else value
        value = y * c[i] if number == g else value
        total[i] = z * d[i] if number == h else value


@njit(nogil=True)
def _count_chosen(k, n, who, divisor, parts):  # type: ignore[no-untyped-def]
    number = np.float32(k)
    for i in range(n):
        parts[i] = divisor if who[i] == number else parts[i]


@njit(nogil=True)
def _leave_chosen(row, k, n, who):  # type: ignore[no-untyped-def]
    number = np.float32(k)
    for i in range(n):
        row[i] = row[i] if who[i] == number else np.float32(0)


@njit(nogil=True, error_model="numpy")
def divide(total, parts, n, divided, scale):  # type: ignore[no-untyped-def]
    """`total = total / parts * scale`, not divided where parts are 0, or nowhere."""
    for i in range(n):
        value = total[i]
        if divided:
            value /= parts[i] if parts[i] != 0 else np.float32(1)
        total[i] = value * scale


@njit(nogil=True, inline="always")
def combine(home, rows, experts, count, n, vote, total):  # type: ignore[no-untyped-def]
    """Replace `total`, the sum of kept task vectors, by the weighted sum of what agrees, divided and scaled.

    The `count` task vectors are the scratch rows from `rows`, zeros behind them up to a multiple of four, as are
    `experts`, of `packed.EXPERT`; `vote` is a `packed.Vote` of WEIGHTED, EQUAL or LARGEST.
    """
    parts = line(home, SPARE, n)
    if vote.divided:
        fill(parts, n, np.float32(0))
    if vote.consensus == LARGEST:
        _combine_largest(home, rows, experts, count, n, vote, total, parts)
        if vote.divided or vote.scale != 1:
            divide(total, parts, n, vote.divided, vote.scale)
    else:
        _combine_agreeing(home, rows, experts, count, n, vote, total, parts)


@njit(nogil=True, inline="always")
def _combine_agreeing(home, rows, experts, count, n, vote, total, parts):  # type: ignore[no-untyped-def]
    sums, last = line(home, SPARE + 1, n), (count - 1) // 4 * 4
    fill(sums, n, np.float32(0))
    for k in range(0, last + 1, 4):
        row, p, q, r, s = rows + k, experts[k], experts[k + 1], experts[k + 2], experts[k + 3]
        a, b, c, d = line(home, row, n), line(home, row + 1, n), line(home, row + 2, n), line(home, row + 3, n)
        w, x, y, z = p.weight, q.weight, r.weight, s.weight
        e, f, g, h = p.divisor, q.divisor, r.divisor, s.divisor
        if k < last:
            _elect_four(total, a, b, c, d, n, w, x, y, z, sums)
            if vote.divided:
                _count_four(total, a, b, c, d, n, e, f, g, h, parts)
        elif vote.divided:
            _close_four_divided(a, b, c, d, n, w, x, y, z, e, f, g, h, vote.scale, sums, parts, total)
        else:
            _close_four(a, b, c, d, n, w, x, y, z, vote.scale, sums, total)


@njit(nogil=True, inline="always")
def _combine_largest(home, rows, experts, count, n, vote, total, parts):  # type: ignore[no-untyped-def]
    who = line(home, SPARE + 2, n)
    _name_all(home, rows, count, n, line(home, SPARE + 1, n), who)
    fill(total, n, np.float32(0))
    for k in range(0, count, 4):
        row, p, q, r, s = rows + k, experts[k], experts[k + 1], experts[k + 2], experts[k + 3]
        a, b, c, d = line(home, row, n), line(home, row + 1, n), line(home, row + 2, n), line(home, row + 3, n)
        _choose_four(a, b, c, d, k, n, who, p.weight, q.weight, r.weight, s.weight, total)
    if vote.divided:
        for k in range(count):
            _count_chosen(k, n, who, experts[k].divisor, parts)


@njit(nogil=True, inline="always")
def _name_all(home, rows, count, n, best, who):  # type: ignore[no-untyped-def]
    # from the last to the first, so that the first of equals is named in the end
    fill(best, n, np.float32(-1))
    fill(who, n, np.float32(-1))
    last = rows + (count + 3) // 4 * 4
    for row in range(rows, last, 4):
        a, b, c, d = line(home, row, n), line(home, row + 1, n), line(home, row + 2, n), line(home, row + 3, n)
        _find_largest_of_four(a, b, c, d, n, best)
    for row in range(last - 4, rows - 1, -4):
        a, b, c, d = line(home, row, n), line(home, row + 1, n), line(home, row + 2, n), line(home, row + 3, n)
        _name_four(a, b, c, d, row - rows, n, best, who)


@njit(nogil=True, inline="always")
def leave(home, rows, experts, count, n, vote, total, parts):  # type: ignore[no-untyped-def]
    """Zero what does not agree in each row, and write the sum of divisors of those that do to `parts`.

    Rows, experts and total are as in `combine`; but `vote` is EQUAL or LARGEST.
    """
    best, who = line(home, SPARE, n), line(home, SPARE + 1, n)
    fill(parts, n, np.float32(0))
    if vote.consensus == LARGEST:
        _name_all(home, rows, count, n, best, who)
    for k in range(count):
        row = line(home, rows + k, n)
        if vote.consensus == LARGEST:
            _leave_chosen(row, k, n, who)
            _count_chosen(k, n, who, experts[k].divisor, parts)
        else:
            _leave_agreeing(total, row, n, experts[k].divisor, parts)


@njit(nogil=True)
def _add_four(a, b, c, d, n, w, x, y, z, total):  # type: ignore[no-untyped-def]
    for i in range(n):
        total[i] = (((total[i] + w * a[i]) + x * b[i]) + y * c[i]) + z * d[i]


@njit(nogil=True, inline="always")
def weigh(home, raws, experts, count, n, total):  # type: ignore[no-untyped-def]
    """Write the sum of scratch rows from `raws`, each times its expert's gain, to `total`; zeros behind as above."""
    fill(total, n, np.float32(0))
    for k in range(0, count, 4):
        row, p, q, r, s = raws + k, experts[k], experts[k + 1], experts[k + 2], experts[k + 3]
        a, b, c, d = line(home, row, n), line(home, row + 1, n), line(home, row + 2, n), line(home, row + 3, n)
        _add_four(a, b, c, d, n, p.gain, q.gain, r.gain, s.gain, total)
