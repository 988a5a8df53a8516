"""Which entries of one expert's task vector stay, in a chunk? Compiled loops over bands, draws and ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import carray, njit, types
from numba.extending import intrinsic

from searchspaces.algebra.draws import FIRST, SECOND, THIRD, UNIT
from searchspaces.weights.kernel import CHUNK, floats, pointer, wide
from searchspaces.weights.packed import BAND, RANKS, TIED

# A draw's first round is of the place alone, so that all experts share it.


@intrinsic
def _begun(typing_context: Any, i: Any, low: Any, upper: Any) -> Any:
    """The word of place `low + i`, of its lower 32 bits, by the seed of its upper bits."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        i, low, upper = args
        x = builder.xor(builder.add(builder.trunc(i, word), low), upper)
        x = builder.mul(builder.xor(x, builder.lshr(x, word(17))), word(FIRST))
        return builder.xor(x, builder.lshr(x, word(11)))

    return types.uint32(types.int64, types.uint32, types.uint32), build


@intrinsic
def _drawn(typing_context: Any, begun: Any, seed: Any) -> Any:
    """The draw of the place that has a word, by the seed of a key: a whole number below UNIT, int32."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        x = builder.mul(builder.xor(*args), word(SECOND))
        x = builder.mul(builder.xor(x, builder.lshr(x, word(15))), word(THIRD))
        return builder.lshr(x, word(8))

    return types.int32(types.uint32, types.uint32), build


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
def _tied_below(source, origin, n, words, seed, least, beyond, until, gain, row, total):  # type: ignore[no-untyped-def]
    """What stays of a band without an upper bound, where draws decide for what is as large as the lower one."""
    for i in range(n):
        difference = wide(source[i]) - origin[i]
        bound = least if _drawn(words[i], seed) < until else beyond
        value = np.float32(0) if abs(difference) < bound else gain * difference
        row[i] = value
        total[i] += value


@njit(nogil=True)
def _tied(source, origin, n, words, seed, least, beyond, most, short, until, after, gain, row, total):  # type: ignore[no-untyped-def]
    """What stays of a band, where draws decide for what is as large as its bounds."""
    for i in range(n):
        difference = wide(source[i]) - origin[i]
        size, drawn = abs(difference), _drawn(words[i], seed)
        low, high = least if drawn < until else beyond, short if drawn < after else most
        value = np.float32(0) if (size < low) | (size > high) else gain * difference
        row[i] = value
        total[i] += value


@njit(nogil=True)
def _thinned(source, origin, n, words, seed, share, gain, row, total):  # type: ignore[no-untyped-def]
    for i in range(n):
        value = gain * (wide(source[i]) - origin[i])
        value = value if _drawn(words[i], seed) < share else np.float32(0)
        row[i] = value
        total[i] += value


@njit(nogil=True, error_model="numpy")
def _thinned_by_rank(source, origin, n, words, seed, ranks, share, step, gain, divides, row, total):  # type: ignore[no-untyped-def]
    for i in range(n):
        chance = share + step * np.float32(ranks[i])
        value = gain * (wide(source[i]) - origin[i])
        if divides:
            value /= min(chance, np.float32(UNIT))
        value = value if np.float32(_drawn(words[i], seed)) < chance else np.float32(0)
        row[i] = value
        total[i] += value


@njit(nogil=True)
def _begin(words, low, upper, n):  # type: ignore[no-untyped-def]
    for i in range(n):
        words[i] = _begun(i, low, upper)


@njit(nogil=True)
def cut(values, words, n, factor, seed, least, beyond, until, gate):  # type: ignore[no-untyped-def]
    """Shut the gate where `values * factor` are below `least`, or equal to it and not drawn below `until`."""
    for i in range(n):
        bound = least if _drawn(words[i], seed) < until else beyond
        gate[i] = np.float32(0) if values[i] * factor < bound else gate[i]


# What follows passes addresses of scratch memory, and not arrays: these would count references at every step.

STRIDE = CHUNK + 272
"""Elements from one scratch row to the next; rows a multiple of a page apart would be mistaken for one another."""

ZEROS, SPARE, WORDS = 0, 1, 4
"""Scratch rows: one of zeros, three that any step may overwrite, and one of each place's word, uint32, for its draws.
"""


@njit(nogil=True, inline="always")
def line(home, number, n):  # type: ignore[no-untyped-def]
    """Scratch row `number` of those at address `home`."""
    return floats(home, number * STRIDE, n)


@njit(nogil=True)
def fill(row, n, value):  # type: ignore[no-untyped-def]
    """Set n elements to a value."""
    for i in range(n):
        row[i] = value


@njit(nogil=True, inline="always")
def _bytes(address, at, n):  # type: ignore[no-untyped-def]
    return carray(pointer(address + at, np.uint8), (n,))


@njit(nogil=True, inline="always")
def words_of(home, n):  # type: ignore[no-untyped-def]
    """The scratch row of words."""
    return carray(pointer(home + 4 * WORDS * STRIDE, np.uint32), (n,))


@njit(nogil=True)
def begin(home, at, n):  # type: ignore[no-untyped-def]
    """Write the words of places `at` to `at + n`, none of which crosses a multiple of 2 ** 32."""
    _begin(words_of(home, n), np.uint32(at & 0xFFFFFFFF), np.uint32(_mixed((at >> 32) + 0x9E3779B9)), n)


@njit(nogil=True)
def seed_of(key):  # type: ignore[no-untyped-def]
    """What a key brings into a draw."""
    return np.uint32(_mixed(key))


@njit(nogil=True, inline="always")
def keep(source, origin, at, n, expert, home, row, total):  # type: ignore[no-untyped-def]
    """Write what stays of `source - origin`, times its gain, to `row`, and add it to `total`; arrays of n elements.

    `source` is bf16 bits (uint16) or fp32, all others fp32, `at` the first element's place, `expert` a `packed.EXPERT`.
    Where anything is drawn, `begin` has been called for these places.
    """
    kind, gain = expert.kind, expert.gain
    if kind == 0:
        scaled(source, origin, n, gain, row, total)
    elif kind == BAND:
        _banded(source, origin, n, expert.least, expert.most, gain, row, total)
    elif kind & TIED:
        _keep_tied(source, origin, n, expert, home, row, total)
    elif kind & BAND:
        banded, spare = line(home, SPARE, n), line(home, SPARE + 1, n)
        _banded(source, origin, n, expert.least, expert.most, np.float32(1), banded, spare)
        _keep_drawn(banded, line(home, ZEROS, n), at, n, expert, home, row, total)
    else:
        _keep_drawn(source, origin, at, n, expert, home, row, total)


@njit(nogil=True, inline="always")
def _keep_tied(source, origin, n, expert, home, row, total):  # type: ignore[no-untyped-def]
    words, seed, until, after = words_of(home, n), seed_of(expert.key), np.int32(expert.until), np.int32(expert.after)
    least, beyond, most, short, gain = expert.least, expert.beyond, expert.most, expert.short, expert.gain
    if most == np.inf:
        _tied_below(source, origin, n, words, seed, least, beyond, until, gain, row, total)
    else:
        _tied(source, origin, n, words, seed, least, beyond, most, short, until, after, gain, row, total)


@njit(nogil=True, inline="always")
def _keep_drawn(source, origin, at, n, expert, home, row, total):  # type: ignore[no-untyped-def]
    words, seed, share, gain = words_of(home, n), seed_of(expert.key), expert.share, expert.gain
    if expert.kind & RANKS:
        ranks, step, divides = _bytes(expert.ranks, at, n), expert.step, expert.divides
        _thinned_by_rank(source, origin, n, words, seed, ranks, share, step, gain, divides, row, total)
    else:
        _thinned(source, origin, n, words, seed, np.int32(share), gain, row, total)
