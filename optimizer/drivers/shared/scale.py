"""In which units are losses of several objectives compared? By their range, or by a box that no outlier stretches.

Where a mean or a weighted sum is compared (`Criterion`, `Scalarised`), the range among the anchors does
(`Scale.ranging`): it only says how much of one objective is worth how much of another. Where volume is counted
(`auto`), the far end is the reference, beyond which a candidate adds nothing, and one broken expert would make the box
so large that all others look alike: so it is drawn to where the base is (`Scale.boxed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.driver import unit_between

Array = NDArray[np.float64]

USELESS, FAR = 0.1, 4.0  # of the way from the anchors' best to their median: how far from it the reference may be


@dataclass(frozen=True, eq=False)
class Scale:
    """Each objective's zero and unit."""

    ideal: Array  # (m,), the least loss that is known
    span: Array  # (m,), positive: what counts as one

    @classmethod
    def ranging(
        cls,
        known: Sequence[Array],  # each (m,)
        objectives: int,  # m
    ) -> Scale:
        """In units of the range among what is known; of nothing known, in the losses' own.

        An objective that is alike but for rounding counts in units of its own magnitude, as it does in the record.
        """
        if not known:
            return cls(np.zeros(objectives), np.ones(objectives))
        low, high = np.min(known, axis=0), np.max(known, axis=0)
        return cls(low, unit_between(low, high))

    @classmethod
    def boxed(
        cls,
        anchors: Sequence[Array],  # each (m,)
        base: Array | None,  # (m,), the base's, if it is one of them
        objectives: int,  # m
    ) -> Scale:
        """Where volume counts: the reference is 1.

        That is the base, or the worst anchor where there is none. One that is hardly worse than the best is replaced by
        the median, and one that is far worse than the median (an expert that is broken elsewhere, a constraint that is
        violated) is drawn nearer: the box would be too large for differences to show.
        """
        if not len(anchors):
            return cls(np.zeros(objectives), np.ones(objectives))
        ideal, middle, worst = np.min(anchors, axis=0), np.median(anchors, axis=0), np.max(anchors, axis=0)
        half = unit_between(ideal, middle, alike=0.0)
        reference = worst if base is None else base
        reference = np.where(reference - ideal < USELESS * half, middle, reference)
        reference = np.where(half > 0, np.minimum(reference, ideal + FAR * half), worst)
        return cls(ideal, unit_between(ideal, reference))

    def units(self, losses: Array) -> Array:
        """Losses `(..., m)` in those units: 0 is the least that was known."""
        return np.asarray((losses - self.ideal) / self.span)
