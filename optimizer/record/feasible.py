"""Does a candidate meet the constraints, and if not, by how much? In units of what the anchors scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluators.evaluator import Measure
from optimizer.conditions import Condition
from optimizer.driver import unit_between

LEAST = 0.01  # of a bound: a unit of its metric is no less, however alike the anchors are


class Feasible:
    """What candidates scored on the metrics of constraints, in the order told; failed ones are left out.

    A violation is the sum over constraints of what is missing, each in units of its metric's range over the anchors so
    far, and at least a hundredth of the bound; where no two anchors differ, in units of the bound (of 1 where that is
    0); by rounding alone they do not. So it is a function of the record alone.
    """

    def __init__(self, constraints: Sequence[Condition]) -> None:
        self.constraints = tuple(constraints)
        self._missed: dict[int, NDArray[np.float64]] = {}  # (c,) each, in natural units
        self._anchors: list[list[float]] = []

    def learn(self, number: int, measures: Mapping[str, Measure], anchor: bool) -> float:
        """Take a candidate in; its violation, 0 where it meets all constraints."""
        if anchor:
            self._anchors.append([measures[c.name].value for c in self.constraints])
        self._missed[number] = self._missing(measures)
        return self.violation(measures)

    def meets(self, measures: Mapping[str, Measure]) -> bool:
        """Whether scores meet all constraints."""
        return not any(c.missed(measures[c.name].value) for c in self.constraints)

    def violation(self, measures: Mapping[str, Measure]) -> float:
        """That of these scores, in units of now."""
        return float((self._missing(measures) / self._units()).sum()) if self.constraints else 0.0

    def nearest(self) -> int | None:
        """The candidate of the least violation, of equals the first; None before the first candidate."""
        units = self._units()
        return min(self._missed, key=lambda n: float((self._missed[n] / units).sum()), default=None)

    def _missing(self, measures: Mapping[str, Measure]) -> NDArray[np.float64]:
        return np.array([c.missed(measures[c.name].value) for c in self.constraints], dtype=np.float64)

    def _units(self) -> NDArray[np.float64]:
        bounds = np.abs([c.bound for c in self.constraints])
        rows = np.array(self._anchors) if self._anchors else np.zeros((1, len(bounds)))
        units = unit_between(rows.min(axis=0), rows.max(axis=0), alike=np.where(bounds > 0, bounds, 1.0))
        return np.maximum(units, LEAST * bounds)
