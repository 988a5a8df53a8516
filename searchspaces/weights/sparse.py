"""Which entries of one expert's task vector stay, in a chunk? Compiled loops over bands, draws and ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import carray, njit, types
from numba.extending import intrinsic

from searchspaces.weights.kernel import CHUNK, floats, pointer, wide
from searchspaces.weights.packed import BAND, FIRST, RANKS, SECOND, THIRD, TIED, UNIT


@intrinsic
def _drawn(typing_context: Any, i: Any, low: Any, first: Any, second: Any) -> Any:
    """The draw of place `low + i`, of its lower 32 bits, by the two seeds of its key, as a whole fp32 number."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        i, low, first, second = args
        x = builder.xor(builder.add(builder.trunc(i, word), low), first)
        x = builder.mul(builder.xor(x, builder.lshr(x, word(17))), word(FIRST))
        x = builder.xor(builder.xor(x, builder.lshr(x, word(11))), second)
        x = builder.mul(x, word(SECOND))
        x = builder.mul(builder.xor(x, builder.lshr(x, word(15))), word(THIRD))
        x = builder.xor(x, builder.lshr(x, word(14)))
        return builder.sitofp(builder.lshr(x, word(8)), ir.FloatType())

    return types.float32(types.int64, types.uint32, types.uint32, types.uint32), build


@njit(nogil=True)
def _mixed(x):  # type: ignore[no-untyped-def]
    x = np.uint64(x) & np.uint64(0xFFFFFFFF)  # products of unsigned numbers may overflow
    x = ((x ^ (x >> np.uint64(17))) * np.uint64(FIRST)) & np.uint64(0xFFFFFFFF)
    x = ((x ^ (x >> np.uint64(11))) * np.uint64(SECOND)) & np.uint64(0xFFFFFFFF)
    x = ((x ^ (x >> np.uint64(15))) * np.uint64(THIRD)) & np.uint64(0xFFFFFFFF)
    return np.int64(x ^ (x >> np.uint64(14)))


# What stays of one expert's entries, in `row`, and added to `total`. Each loop writes two arrays and reads few: with
# more of them the compiler gives up proving that they do not overlap, and does not vectorise.


@njit(nogil=True)
def scaled(source, origin, n, gain, row, total):  # type: ignore[no-untyped-def]
    """What `keep` does where all entries stay."""
    for i in range(n):
        value = gain * (wide(source[i]) - origin[i])
        row[i] = value
        total[i] += value


@njit(nogil=True)
def _banded(source, origin, n, least, most, gain, row, total):  # type: ignore[no-untyped-def]
    for i in range(n):
        difference = wide(source[i]) - origin[i]
        size = abs(difference)
        # NaN is in every band: it is to be seen
        value = np.float32(0) if (size < least) | (size > most) else gain * difference
        row[i] = value
        total[i] += value


@njit(nogil=True)
def _tied(source, origin, n, low, first, second, least, most, until, after, gain, row, total):  # type: ignore[no-untyped-def]
    """What stays of a band, where draws decide for what is as large as its bounds."""
    for i in range(n):
        difference = wide(source[i]) - origin[i]
        size = abs(difference)
        drawn = _drawn(i, low, first, second)
        out = (size < least) | (size > most) | ((size == least) & (drawn >= until)) | ((size == most) & (drawn < after))
        value = np.float32(0) if out else gain * difference
        row[i] = value
        total[i] += value


@njit(nogil=True)
def _thinned(source, origin, n, low, first, second, share, gain, row, total):  # type: ignore[no-untyped-def]
    for i in range(n):
        value = gain * (wide(source[i]) - origin[i])
        value = value if _drawn(i, low, first, second) < share else np.float32(0)
        row[i] = value
        total[i] += value


@njit(nogil=True, error_model="numpy")
def _thinned_by_rank(source, origin, n, low, first, second, ranks, share, step, gain, divides, row, total):  # type: ignore[no-untyped-def]
    for i in range(n):
        chance = share + step * np.float32(ranks[i])
        value = gain * (wide(source[i]) - origin[i])
        if divides:
            value /= min(chance, np.float32(UNIT))
        value = value if _drawn(i, low, first, second) < chance else np.float32(0)
        row[i] = value
        total[i] += value


# What follows passes addresses of scratch memory, and not arrays: these would count references at every step.

STRIDE = CHUNK + 272
"""Elements from one scratch row to the next; rows a multiple of a page apart would be mistaken for one another."""

ZEROS, SPARE = 0, 1
"""Scratch rows: one of zeros, and three that any step may overwrite."""


@njit(nogil=True, inline="always")
def line(home, number, n):  # type: ignore[no-untyped-def]
    """Scratch row `number` of those at address `home`."""
    return floats(home, number * STRIDE, n)


@njit(nogil=True, inline="always")
def _bytes(address, at, n):  # type: ignore[no-untyped-def]
    return carray(pointer(address + at, np.uint8), (n,))


@njit(nogil=True, inline="always")
def keep(source, origin, at, n, expert, home, row, total):  # type: ignore[no-untyped-def]
    """Write what stays of `source - origin`, times its gain, to `row`, and add it to `total`; arrays of n elements.

    `source` is bf16 bits (uint16) or fp32, all others fp32, `at` the first element's place, `expert` a `packed.EXPERT`.
    """
    kind, gain = expert.kind, expert.gain
    if kind == 0:
        scaled(source, origin, n, gain, row, total)
    elif kind == BAND:
        _banded(source, origin, n, expert.least, expert.most, gain, row, total)
    elif kind & TIED:
        first, second, low = _seeds(expert.key, at)
        _tied(
            source,
            origin,
            n,
            low,
            first,
            second,
            expert.least,
            expert.most,
            expert.until,
            expert.after,
            gain,
            row,
            total,
        )
    elif kind & BAND:
        banded, spare = line(home, SPARE, n), line(home, SPARE + 1, n)
        _banded(source, origin, n, expert.least, expert.most, np.float32(1), banded, spare)
        _keep_drawn(banded, line(home, ZEROS, n), at, n, expert, row, total)
    else:
        _keep_drawn(source, origin, at, n, expert, row, total)


@njit(nogil=True)
def _seeds(key, at):  # type: ignore[no-untyped-def]
    """Two of the key and a place's upper bits, as a chunk does not cross a multiple of 2 ** 32, and its lower bits."""
    first = np.uint32(_mixed(key ^ _mixed((at >> 32) + 0x9E3779B9)))
    return first, np.uint32(_mixed(np.int64(first) + 0x85EBCA6B)), np.uint32(at & 0xFFFFFFFF)


@njit(nogil=True, inline="always")
def _keep_drawn(source, origin, at, n, expert, row, total):  # type: ignore[no-untyped-def]
    first, second, low = _seeds(expert.key, at)
    if expert.kind & RANKS:
        ranks = _bytes(expert.ranks, at, n)
        _thinned_by_rank(
            source,
            origin,
            n,
            low,
            first,
            second,
            ranks,
            expert.share,
            expert.step,
            expert.gain,
            expert.divides,
            row,
            total,
        )
    else:
        _thinned(source, origin, n, low, first, second, expert.share, expert.gain, row, total)
