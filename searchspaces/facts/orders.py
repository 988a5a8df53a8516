"""Which number has which rank? Exact order statistics, from a few knots and a look at what lies between two."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

KNOTS = 1 << 14
"""Of longer lists, so many order statistics are kept, at evenly spread ranks; shorter ones are kept whole."""

Between: TypeAlias = Callable[[int], NDArray[np.float32]]
"""The numbers that lie strictly between knots j and j + 1, ascending; asked for where there are any."""


@dataclass(frozen=True, eq=False)
class Order:
    """Knots of a list of n numbers >= 0, from the largest number to the least; each field is of shape `(m,)`."""

    values: NDArray[np.float32]
    above: NDArray[np.int64]  # how many numbers are larger than the knot
    until: NDArray[np.int64]  # how many are as large or larger
    sums: NDArray[np.float64]  # of the numbers that are larger

    @classmethod
    def of(cls, numbers: NDArray[np.float32]) -> Order:
        """Sorts `numbers` in place. Memory: the knots'."""
        from searchspaces.facts import streams

        numbers.view(np.uint32).sort()  # bits of such numbers sort as they do, and faster
        ranks = knots(len(numbers))
        values = numbers[len(numbers) - ranks]
        above = len(numbers) - np.searchsorted(numbers, values, side="right")
        until = len(numbers) - np.searchsorted(numbers, values, side="left")
        sums = np.empty(len(ranks))
        streams.sums_above(numbers, above, sums)
        return cls(values, above, until, sums)

    @property
    def positive(self) -> int:
        """How many numbers are not 0."""
        if not len(self.values):
            return 0
        return int(self.above[-1] if self.values[-1] == 0 else self.until[-1])

    def at(self, rank: int, between: Between) -> float:
        """The number of rank 1 (the largest) to n."""
        j = int(np.searchsorted(self.until, rank))
        if rank > self.above[j]:
            return float(self.values[j])
        return float(between(j - 1)[self.above[j] - rank])

    def placed(self, rank: int, between: Between) -> tuple[float, int, int]:
        """The number of rank 1 to n, how many are larger, and how many are equal to it."""
        j = int(np.searchsorted(self.until, rank))
        if rank > self.above[j]:
            return float(self.values[j]), int(self.above[j]), int(self.until[j] - self.above[j])
        found = between(j - 1)
        number = found[self.above[j] - rank]
        low, high = (int(np.searchsorted(found, number, side)) for side in ("left", "right"))
        return float(number), int(self.until[j - 1]) + len(found) - high, high - low

    def sum(self, least: float, between: Between, strictly: bool = False) -> float:
        """The sum of all numbers that are at least `least`, or larger with `strictly`; float64.

        Where two bounds enclose no number, their sums are equal to the bit.
        """
        bound = np.float64(least)  # or numpy would compare in fp32
        j = int(np.searchsorted(-self.values, -bound, side="left" if strictly else "right")) - 1
        if j < 0:
            return 0.0
        inside = float(self.sums[j]) + float(self.values[j]) * int(self.until[j] - self.above[j])
        if j + 1 == len(self.values) or self.empty(j) or self.values[j] == bound:
            return inside
        if self.values[j + 1] == bound:  # and so all that lie between are larger
            return float(self.sums[j + 1])
        found = between(j)
        taken = found[np.searchsorted(found, bound, side="right" if strictly else "left") :]
        return inside + math.fsum(taken.tolist())

    def count(self, number: float, between: Between) -> tuple[int, int]:
        """How many numbers are larger than a number, and how many are equal to it."""
        bound = np.float64(number)
        j = int(np.searchsorted(-self.values, -bound, side="right")) - 1
        if j >= 0 and self.values[j] == bound:
            return int(self.above[j]), int(self.until[j] - self.above[j])
        larger = int(self.until[j]) if j >= 0 else 0
        if j < 0 or j + 1 == len(self.values) or self.empty(j):
            return larger, 0
        found = between(j)
        low, high = (int(np.searchsorted(found, bound, side)) for side in ("left", "right"))
        return larger + len(found) - high, high - low

    def empty(self, j: int) -> bool:
        """Whether no number lies between knots j and j + 1."""
        return bool(self.until[j] >= self.above[j + 1])


def knots(count: int) -> NDArray[np.int64]:
    """The ranks of the knots of `count` numbers, ascending."""
    if count <= KNOTS:
        return np.arange(1, count + 1)
    return 1 + np.arange(KNOTS) * (count - 1) // (KNOTS - 1)
