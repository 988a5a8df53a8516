"""How fine may moves be?"""

from __future__ import annotations

from collections.abc import Sequence

WINDOW, GAIN = 12, 0.01  # answers over which a level has to lengthen the volume's side by this share, or it is left
LEAST = 2.0  # answers a move before that
SCOUTS = 3  # every so many-th question is asked one level finer,
FIRST = 0.5  # once a level has had so many answers a move
COMPARED = 9  # of the last answers at a level, those of scouts are compared with the others,
ENOUGH = 3  # where there are so many of each,
QUICK = 0.004  # and the others lengthen the side by less than this share, each


class Depth:
    """The level of moves that a search is at after each answer; it only grows finer.

    Every third question is a scout: it is asked one level finer. A level is left when its other questions no longer
    lengthen the side of the volume quickly and its scouts do so more, or when nothing does any more. So how soon a
    search grows finer is told by what finer moves gain, on this very problem.

    What is a scout follows from a question's number and how many answers there were when it was thought out, so that
    a replay, which asks nothing, knows it too. An answer that comes when its level has been left counts for neither.
    """

    def __init__(self, sizes: Sequence[int], design: int = 0) -> None:
        self._sizes = list(sizes)  # moves that lead anywhere, by level
        self._levels = [0]  # by how many answers there are
        self._since = [design]  # with how many answers that level was come to; to the first, once the design is there
        self._sides: list[float] = []
        self._finer: list[int | None] = []  # of each answer how many levels finer than the search it was asked

    def at(self, count: int, number: int | None = None) -> int:
        """The level after `count` answers; of question `number`, which may be a scout, where one is asked then."""
        level = self._levels[count]
        return level if number is None else min(level + self._scout(count, number), len(self._sizes) - 1)

    def add(
        self,
        side: float,  # of a cube of the volume, with this answer: the same for any number of objectives
        asked: int | None,  # the level of its question, by `at`; None: neither a scout nor one to compare scouts with
    ) -> None:
        """Take an answer in."""
        self._finer.append(None if asked is None else asked - self._levels[-1])
        self._sides.append(side)
        count, level, since = len(self._sides), self._levels[-1], self._since[-1]
        if level + 1 < len(self._sizes) and (self._still(count - since, level) or self._outdone(count - since)):
            level, since = level + 1, count
        self._levels.append(level)
        self._since.append(since)

    def _still(self, answers: int, level: int) -> bool:
        """Whether a level that has had so many answers gains next to nothing."""
        if len(self._sides) <= WINDOW or answers < max(WINDOW, LEAST * self._sizes[level]):
            return False
        return self._sides[-1] - self._sides[-1 - WINDOW] <= GAIN * self._sides[-1]

    def _outdone(self, answers: int) -> bool:
        """Whether its scouts gain more than its other questions, and those not much, on average."""
        if answers < COMPARED or len(self._sides) <= COMPARED:
            return False
        gains = [b - a for a, b in zip(self._sides[-COMPARED - 1 :], self._sides[-COMPARED:], strict=False)]
        told = list(zip(gains, self._finer[-COMPARED:], strict=True))
        finer = [gain for gain, levels in told if levels is not None and levels > 0]
        others = [gain for gain, levels in told if levels == 0]
        if min(len(finer), len(others)) < ENOUGH:
            return False
        gained = sum(others) / len(others)
        return gained < QUICK * self._sides[-1] and sum(finer) / len(finer) > gained

    def _scout(self, count: int, number: int) -> bool:
        """Whether question `number` is a scout where so many answers are there."""
        answers = count - self._since[count]
        return number % SCOUTS == 0 and answers >= FIRST * self._sizes[self._levels[count]]
