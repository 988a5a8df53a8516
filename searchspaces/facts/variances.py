"""How much do experts differ, entry by entry? Variances of any rank, and what the task vectors above one weigh."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from searchspaces.facts.deltas import Piece
from searchspaces.facts.orders import Order

UPPER = 1 << 16  # numbers that the upper half of 32 bits may be


@dataclass(frozen=True, eq=False)
class Gap:
    """The n entries whose variances lie strictly between two knots, ascending by variance."""

    numbers: NDArray[np.float32]  # (n,): variances
    taus: NDArray[np.float32]  # (n, K): each expert's task vector


Look = Callable[[int], Gap]
"""What lies between knots j and j + 1; asked for where anything does."""


@dataclass(frozen=True, eq=False)
class Variances:
    """The variances over K experts of one tensor's entries, as m knots of their order; see `streams.fill`.

    An entry's bin says which knots it lies between. So those between two knots are found by reading two bytes of each
    entry, and weights of those entries alone.
    """

    order: Order
    squares: NDArray[np.float64]  # (m, K): sums of tau_k^2 over entries whose variance is at least the knot
    bins: NDArray[np.uint16]  # (elements,), see `bins`; none where knots are all that there is

    @classmethod
    def of(cls, numbers: NDArray[np.float32], pieces: Iterable[Piece], count: int) -> Variances:
        """Of all variances, sorted in place, and the weights of `count` experts that they are of, which are read."""
        from searchspaces.facts.bins import sort_into_bins

        order = Order.of(numbers)
        knots = order.values.view(np.uint32)
        squares, bins = np.zeros((len(knots), count)), np.empty(len(numbers), np.uint16)
        larger = np.searchsorted(~knots, ~(np.arange(UPPER + 1) << 16).astype(np.uint32), side="right")
        larger[UPPER] = 0  # which has no 32 bits
        for piece in pieces:
            sort_into_bins(*piece, knots, larger, squares, bins[piece[4] : piece[5]])
        whole = len(knots) == len(numbers)
        return cls(order, squares.cumsum(axis=0), bins[:0] if whole else bins)

    def at(self, share: float, look: Look) -> tuple[float, float]:
        """The variance that `int(share * n)` of the n entries with any have at least; infinity where that is none.

        And which share of the entries of just that variance is among so many.
        """
        rank = int(self.order.positive * share)
        if rank < 1:
            return math.inf, 1.0
        number, larger, equal = self.order.placed(rank, lambda j: look(j).numbers)
        return number, (rank - larger) / equal

    def energies(self, least: float, look: Look) -> NDArray[np.float64]:
        """Sums of `tau_k^2` over entries whose variance is at least `least`, `(K,)`, float64."""
        bound = np.float32(least)
        # as bits: where differences overflow, the first knots may be NaN
        j = int(np.searchsorted(~self.order.values.view(np.uint32), ~bound.view(np.uint32), side="right")) - 1
        if j < 0:
            return np.zeros(self.squares.shape[1])
        last = j + 1 == len(self.order.values)
        if last or self.order.empty(j) or self.order.values[j] == bound:
            return np.array(self.squares[j])
        gap = look(j)
        taken = gap.taus[np.searchsorted(gap.numbers, bound) :].astype(np.float64)
        return np.asarray(self.squares[j] + np.square(taken).sum(axis=0))

    def look(self, pieces: Iterable[Piece], j: int) -> Gap | None:
        """What lies between knots j and j + 1, found in the weights; None where that is not what the knots say."""
        from searchspaces.facts.bins import within

        order = self.order
        numbers = np.empty(int(order.above[j + 1] - order.until[j]), np.float32)
        taus, knots = np.empty((len(numbers), self.squares.shape[1]), np.float32), order.values.view(np.uint32)
        found = 0
        for piece in pieces:
            bins = self.bins[piece[4] : piece[5]]
            found = within(*piece, bins, j + 1, knots[j + 1], knots[j], numbers, taus, found)
            if found < 0:
                break
        if found != len(numbers):
            return None
        places = numbers.argsort(kind="stable")
        return Gap(numbers[places], taus[places])
