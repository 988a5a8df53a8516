"""Which items of a task is a candidate scored on first?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from evaluators.evaluator import Indices
from optimizer.driver import random_stream
from optimizer.fidelity import CHOICES, Choice

TURNS = "turns"
"""Candidates take turns: each has its first rung on another block of items, until all blocks were had, and then anew.

The blocks of each such round come in an order drawn for it: else a driver that asks every third question of one kind,
or for one preference, would have the same few items for it for ever. So no search fits a few items. Where items are no
multiple of a block, those left over are on no first rung.
"""

ORDERS = (TURNS, *CHOICES)


def shuffled(size: int, seed: int, evaluator: str) -> Indices:
    """All places of an evaluator's items, `(N,)`, in a drawn order; a function of the run's seed."""
    return random_stream(seed, "rungs", evaluator).permutation(size)


def first_blocks(size: int, first: int, seed: int, evaluator: str) -> list[Indices]:
    """The places that candidates taking turns have on their first rung of so many items, turn by turn."""
    order = shuffled(size, seed, evaluator)
    return [order[start : start + first] for start in range(0, size - first + 1, first)]


class Order:
    """Of one evaluator: which of its N items come first, for each candidate.

    `known` gives results of the first candidates `(R, N)`, by which `clusters` and `herding` choose; it is asked once.
    """

    def __init__(
        self, choose: str, size: int, rungs: tuple[int, ...], seed: int, evaluator: str, known: Callable[[], np.ndarray]
    ) -> None:
        self._rungs, self._size, self._seed, self._evaluator = rungs, size, seed, evaluator
        self._choice: Choice | None = None
        if choose == TURNS:
            self._places = shuffled(size, seed, evaluator)
        else:
            draw = int(random_stream(seed, "rungs", evaluator).integers(2**31))
            self._choice = CHOICES[choose](known(), rungs[-1], draw)
            rest = np.setdiff1d(np.arange(size), self._choice.order)
            self._places = np.concatenate([self._choice.order, rest])

    def block(self, number: int, rung: int) -> tuple[int, ...]:
        """The places of a candidate's rung that those below do not have; after the last rung, the rest."""
        ends = (0, *self._rungs, self._size)
        first = 0 if self._choice is not None else self._rungs[0] * self._turn(number)
        return tuple(np.roll(self._places, -first)[ends[rung] : ends[rung + 1]].tolist())

    def _turn(self, number: int) -> int:
        """Which of the first blocks is a candidate's: a function of its number alone, as a resume needs it."""
        blocks = self._size // self._rungs[0]
        around, place = divmod(number, blocks)
        return int(random_stream(self._seed, TURNS, self._evaluator, around).permutation(blocks)[place])

    def weights(
        self,
        places: Indices,  # (n,), of whole rungs
    ) -> NDArray[np.float64] | None:
        """What share of all items each stands for, `(n,)`; None: all alike."""
        if self._choice is None:
            return None
        stands = np.zeros(self._size)
        stands[self._choice.items(len(places))] = self._choice.weights(len(places))
        return stands[places]
