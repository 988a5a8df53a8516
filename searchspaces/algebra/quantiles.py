"""Which number has a given rank among more numbers than memory holds? Exact, from two passes over a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

CHUNK = 1 << 20  # elements looked at together
BINS = 1 << 16

Stream: TypeAlias = Callable[[], Iterable[Sequence[torch.Tensor]]]
"""Parts of K sequences of float32 numbers, K flat tensors of one length at a time: the same with every call."""


class Placed(NamedTuple):
    """The number at a place of a sequence sorted: `equal` are as large, `before` of them at places before it."""

    number: float
    before: int
    equal: int


def ranked(stream: Stream, places: Callable[[int], Sequence[int]]) -> list[list[Placed]]:
    """Of each of K sequences the numbers at these places of it sorted, `places(n)` for its length n, 0 being the least.

    A float32 number's bits, those of negative ones inverted, sort as the numbers do: a histogram of their upper halves
    finds the bin of a rank, and one of the lower halves of that bin's numbers the number itself. Memory is histograms
    for each of K, whatever the length. NaN has no rank: there must be none.
    """
    upper: list[NDArray[np.int64]] = []
    for parts in stream():
        upper = upper or [np.zeros(BINS, dtype=np.int64) for _ in parts]
        for histogram, part in zip(upper, parts, strict=True):
            histogram += np.bincount(_keys(part) >> 16, minlength=BINS)
    bins = [[_bin(histogram, place) for place in places(int(histogram.sum()))] for histogram in upper]
    lower = [{bin_: np.zeros(BINS, dtype=np.int64) for bin_, _ in row} for row in bins]
    for parts in stream():
        for histograms, part in zip(lower, parts, strict=True):
            keys = _keys(part)
            for bin_, histogram in histograms.items():
                histogram += np.bincount(keys[keys >> 16 == bin_] & 0xFFFF, minlength=BINS)
    return [
        [_placed(bin_, histograms[bin_], left) for bin_, left in row]
        for row, histograms in zip(bins, lower, strict=True)
    ]


def task_vectors(
    tensors: Iterable[tuple[str, torch.Tensor, Mapping[str, torch.Tensor]]],
) -> Iterator[list[torch.Tensor]]:
    """The K task vectors of merged tensors, a part of each at a time, float32 and flat."""
    for _, base, experts in tensors:
        flat = [expert.reshape(-1) for expert in experts.values()]
        for at in range(0, base.numel(), CHUNK):
            first = base.reshape(-1)[at : at + CHUNK].float()
            yield [expert[at : at + CHUNK].float() - first for expert in flat]


def _keys(part: torch.Tensor) -> NDArray[np.uint32]:
    bits = part.numpy().view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _placed(upper: int, histogram: NDArray[np.int64], place: int) -> Placed:
    lower, before = _bin(histogram, place)
    return Placed(_number(upper << 16 | lower), before, int(histogram[lower]))


def _number(key: int) -> float:
    bits = key ^ (1 << 31) if key >> 31 else key ^ 0xFFFFFFFF
    return float(np.array(bits, dtype=np.uint32).view(np.float32))


def _bin(histogram: NDArray[np.int64], place: int) -> tuple[int, int]:
    """The bin that holds the number at this place, and the place within that bin."""
    below = np.cumsum(histogram)
    found = int(np.searchsorted(below, place, side="right"))
    return found, place - (int(below[found - 1]) if found else 0)
