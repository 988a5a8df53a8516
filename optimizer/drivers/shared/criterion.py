"""Which candidate is better, where several objectives count? The mean of their losses, each in units of its range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.driver import ANCHOR, Outcome, Point
from optimizer.drivers.shared.scale import Scale


@dataclass(frozen=True, eq=False)
class Criterion:
    """One number for the losses `(m,)` of a candidate; less is better."""

    scale: Scale

    @classmethod
    def among(
        cls,
        known: Sequence[NDArray[np.float64]],  # each (m,)
        objectives: int,  # m
    ) -> Criterion:
        """In units of the range among what is known, the anchors as a rule; of nothing known, in the losses' own."""
        return cls(Scale.ranging(known, objectives))

    def __call__(self, losses: NDArray[np.float64]) -> float:
        return float(np.mean(self.scale.units(losses)))

    def of(self, outcome: Outcome) -> float:
        """That of an answer's losses; infinity where it failed."""
        return float("inf") if outcome.failure is not None else self(outcome.losses)


def is_anchor(outcome: Outcome) -> bool:
    """Whether it is the answer of an anchor, and has losses."""
    return outcome.question.stage.startswith(ANCHOR) and outcome.failure is None


def promising(
    anchors: Sequence[Outcome],  # one at least
    box: Scale,
) -> Point:
    """The point of the anchor that dominates most of the box by itself; of several, or none, that of the best mean.

    So it is no expert alone, which is no better than useless at the other tasks, however good at its own.
    """

    def promise(anchor: Outcome) -> tuple[float, float, bytes]:
        units = box.units(anchor.losses)
        # the point decides between equals: who answered first depends on the workers
        return -float(np.prod(np.maximum(1.0 - units, 0.0))), float(units.mean()), anchor.question.point.tobytes()

    return min(anchors, key=promise).question.point
