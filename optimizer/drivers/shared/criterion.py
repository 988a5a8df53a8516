"""Which candidate is better, where several objectives count? The mean of their losses, each in units of its range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.driver import ANCHOR, Outcome


@dataclass(frozen=True, eq=False)
class Criterion:
    """One number for the losses `(m,)` of a candidate; less is better."""

    ideal: NDArray[np.float64]  # (m,), each objective's least loss
    span: NDArray[np.float64]  # (m,), its range; 1 where there is none

    @classmethod
    def among(
        cls,
        known: Sequence[NDArray[np.float64]],  # each (m,)
        objectives: int,  # m
    ) -> Criterion:
        """In units of the range among what is known, the anchors as a rule; of nothing known, in the losses' own."""
        if not known:
            return cls(np.zeros(objectives), np.ones(objectives))
        low, high = np.min(known, axis=0), np.max(known, axis=0)
        return cls(low, np.where(high > low, high - low, 1.0))

    def __call__(self, losses: NDArray[np.float64]) -> float:
        return float(np.mean(self.units(losses)))

    def of(self, outcome: Outcome) -> float:
        """That of an answer's losses; infinity where it failed."""
        return float("inf") if outcome.failure is not None else self(outcome.losses)

    def units(self, losses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Losses `(..., m)` in those units: 0 is the least that was known, 1 the largest."""
        return np.asarray((losses - self.ideal) / self.span)


def is_anchor(outcome: Outcome) -> bool:
    """Whether it is the answer of an anchor, and has losses."""
    return outcome.question.stage.startswith(ANCHOR) and outcome.failure is None
