"""Which candidates are not dominated, and how good is that set? Hypervolume and epsilon, by moocore."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from optimizer.driver import unit_between

Array = NDArray[np.float64]

EXACT_UP_TO = {5: 1000, 6: 250, 7: 100, 8: 50} | dict.fromkeys(range(9, 15), 15)
"""Points of which the exact hypervolume takes at most about 50 ms, by number of objectives; 4 and fewer: any number."""

EXACT_BEYOND = 12  # points, for more objectives than the table has: 1 ms; one more takes 0.3 s of 20 objectives
SAMPLES = 2**15  # directions of the approximation, which is deterministic


@dataclass(frozen=True, eq=False)
class Moment:
    """A front as it was once, for its measures alone, which are computed once, when they are asked for.

    Each has a lock of its own: of several threads that ask, one computes, and none waits for another moment's.
    """

    points: Array  # (n, m), losses
    box: tuple[Array, Array] | None
    anchors: tuple[Array, ...]
    _lock: Lock = field(default_factory=Lock, repr=False)
    _found: list[tuple[float, float, bool]] = field(default_factory=list, repr=False)  # none or one

    @property
    def known(self) -> bool:
        """Whether its measures were computed."""
        return bool(self._found)

    @property
    def measured(self) -> tuple[float, float, bool]:
        """(hypervolume, epsilon, whether the hypervolume is exact): see `Front`."""
        with self._lock:
            if not self._found:
                self._found.append(self._measured())
            return self._found[0]

    def _measured(self) -> tuple[float, float, bool]:
        if self.box is None or not (self.box[0] < self.box[1]).any():
            return 0.0, 0.0, True
        import moocore

        points = _scaled(self.points, self.box)
        volume, exact = _hypervolume(points)
        epsilon = 0.0
        if self.anchors and len(points):
            anchors = _scaled(np.array(self.anchors), self.box)
            epsilon = max(0.0, float(moocore.epsilon_additive(anchors, ref=points)))
        return volume, epsilon, exact


class Front:
    """The non-dominated candidates of a run. Losses are minimised; failed candidates are never added.

    Quality is measured in the anchors' box: objective by objective, 0 is the best loss of an anchor (ideal) and 1 the
    worst (reference). The box follows the anchors as they are answered, and is fixed once all are in. Where no
    candidate is an anchor, the box is that of all candidates so far. An objective on which all of them agree counts in
    units of its own magnitude. Candidates that violate a constraint are known, and anchors among them are part of the
    box; they are neither on the front nor the best.
    """

    def __init__(self, objectives: int) -> None:
        self._m = objectives
        self._numbers: list[int] = []
        self._losses: list[Array] = []  # (m,) each
        self._feasible: list[bool] = []
        self._anchors: list[Array] = []  # (m,) each
        self._met: list[Array] = []  # of those anchors, those that violate no constraint
        self._front_numbers: list[int] = []
        self._columns = np.empty((objectives, 0))  # losses of the front, by objective: a short axis reduces slowly
        self._box: tuple[Array, Array] | None = None  # ideal and reference, each (m,)
        self._moment: Moment | None = None  # until the front or the box changes

    def add(
        self,
        number: int,
        losses: Array,  # (m,)
        anchor: bool = False,
        feasible: bool = True,
    ) -> bool:
        """Take a candidate in; True when it joins the front. Candidates of equal losses are all on it.

        Raises ValueError on losses of another shape, or not finite.
        """
        losses = np.array(losses, dtype=np.float64)
        if losses.shape != (self._m,) or not np.isfinite(losses).all():
            raise ValueError(
                f"candidate {number}: expected {self._m} finite losses, got {losses.tolist()}; leave out what failed"
            )
        self._numbers.append(number)
        self._losses.append(losses)
        self._feasible.append(feasible)
        self._met += [losses] if anchor and feasible else []
        self._widen(losses, anchor)
        one = losses[:, None]
        below = (self._columns <= one).all(axis=0)
        if not feasible or (below.any() and (self._columns[:, below] < one).any()):
            return False
        kept = np.asarray(
            ~(one <= self._columns).all(axis=0) | below
        )  # what is no worse anywhere, and not dominating, is equal
        if not kept.all():
            self._columns = self._columns[:, kept]
            self._front_numbers = [n for n, k in zip(self._front_numbers, kept.tolist(), strict=True) if k]
        self._columns = np.hstack([self._columns, one])
        self._front_numbers.append(number)
        self._moment = None
        return True

    @property
    def _front(self) -> Array:
        """Losses of the front `(n, m)`, which nothing changes."""
        return self._columns.T

    def still(self) -> Front:
        """This front as it is now: what is added to the one is not in the other."""
        found = copy(self)
        found._numbers, found._losses = list(self._numbers), list(self._losses)
        found._feasible, found._anchors, found._met = list(self._feasible), list(self._anchors), list(self._met)
        found._front_numbers = list(self._front_numbers)
        return found

    @property
    def numbers(self) -> tuple[int, ...]:
        """All candidates, in the order added."""
        return tuple(self._numbers)

    @property
    def feasible(self) -> tuple[int, ...]:
        """The candidates that violate no constraint, in the order added."""
        return tuple(n for n, kept in zip(self._numbers, self._feasible, strict=True) if kept)

    @property
    def nondominated(self) -> tuple[int, ...]:
        """The candidates that violate no constraint, and that no other of those dominates, in the order added."""
        return tuple(self._front_numbers)

    @property
    def ideal(self) -> Array | None:
        """The best losses of the anchors, `(m,)`: 0 in the box. None before the first candidate."""
        return None if self._box is None else self._box[0].copy()

    @property
    def reference(self) -> Array | None:
        """The worst losses of the anchors, `(m,)`: 1 in the box. None before the first candidate."""
        return None if self._box is None else self._box[1].copy()

    @property
    def span(self) -> Array | None:
        """The unit of each objective, `(m,)`: the box's side, or the objective's own magnitude. None at first."""
        return None if self._box is None else _span(self._box)

    @property
    def now(self) -> Moment:
        """The front as it is now; what is added later does not change it."""
        if self._moment is None:
            self._moment = Moment(self._front, self._box, tuple(self._anchors))
        return self._moment

    @property
    def hypervolume(self) -> float:
        """Share of the box that the front dominates; 0 until two anchors differ. Better than ideal may exceed 1."""
        return self.now.measured[0]

    @property
    def anchors_hypervolume(self) -> float | None:
        """What `hypervolume` is of the anchors alone, so of what needs no search. None where no candidate is one."""
        if not self._anchors:
            return None
        return Moment(np.array(self._met).reshape(-1, self._m), self._box, ()).measured[0]

    @property
    def epsilon(self) -> float:
        """How far the anchors fall short of the front, in box units: the least shift by which their front covers it.

        Additive epsilon (Zitzler 2003): max over r in front, min over anchors a, max over j of a_j - r_j. 0 at first.
        """
        return self.now.measured[1]

    @property
    def exact(self) -> bool:
        """False where the hypervolume is approximated: exact would take seconds.

        It is then up to 0.3 % off in 7 objectives, some percent in 12, and in 20 of the right order at best where
        next to nothing of the box is dominated.
        """
        return self.now.measured[2]

    def by_mean(self) -> list[int]:
        """All candidates, the least mean of box units first; of equals the earliest; those that violate come last."""
        if not self._losses:
            return []
        sums = self._scaled(np.array(self._losses)) @ np.ones(self._m)
        order = np.lexsort((sums, ~np.array(self._feasible)))  # stable
        return [self._numbers[i] for i in order]

    def mean(self, losses: Array) -> float:
        """Mean of losses `(m,)` in box units, of whatever model. Raises ValueError before the first candidate."""
        if self._box is None:
            raise ValueError("no candidate has been scored yet, and there is no box to measure in")
        return float(self._scaled(np.asarray(losses, dtype=np.float64)).mean())

    def knee(self) -> int | None:
        """The candidate of the front that lies furthest below the plane through its extremes, in box units.

        An extreme is the best of one objective (of equals the one of least mean); of two objectives the plane is the
        chord (Das 1999, On characterizing the knee of the Pareto curve). Where the extremes lie in no plane that
        falls in every objective, it is that through the front's worst, objective by objective. An objective on which
        the front agrees counts for nothing. None where no candidate lies below it, so where there are fewer than
        three.
        """
        if len(self._front) < 3:
            return None
        place = {n: i for i, n in enumerate(self._numbers)}
        order = np.argsort([place[n] for n in self._front_numbers], kind="stable")
        points = self._scaled(self._front)[order]
        points = (points - points.min(axis=0))[:, np.ptp(points, axis=0) > 1e-12]
        if points.shape[1] < 2:
            return None
        means = points.sum(axis=1)
        extremes = np.array([points[np.lexsort((means, column))[0]] for column in points.T])
        normal = _normal(extremes, points.max(axis=0))
        below = (1 - points @ normal) / np.linalg.norm(normal)
        best = int(below.argmax())
        return self._front_numbers[order[best]] if below[best] > 1e-9 else None

    def against(self, reference: Array) -> tuple[float, float]:
        """How far this front falls short of another set of losses `(n, m)`, in box units: (IGD+, additive epsilon).

        IGD+ (Ishibuchi et al. 2015) is the mean over that set of the distance to what this front does not reach of it;
        epsilon the least shift by which this front covers it, below 0 where it does so anyway. Raises ValueError on
        another number of objectives, losses that are not finite, and before the first candidate.
        """
        import moocore

        reference = np.atleast_2d(np.asarray(reference, dtype=np.float64))
        if reference.ndim != 2 or reference.shape[1] != self._m or not np.isfinite(reference).all():
            raise ValueError(f"expected finite losses (n, {self._m}), got an array of shape {reference.shape}")
        if not len(self._front):
            raise ValueError("no candidate has been scored yet, and there is no front to measure")
        ours, theirs = self._scaled(self._front), self._scaled(reference)
        return float(moocore.igd_plus(ours, ref=theirs)), float(moocore.epsilon_additive(ours, ref=theirs))

    def best(self) -> Array | None:
        """Losses `(m,)` of the candidate of least mean in box units; None before one that violates no constraint."""
        return self._losses[self._numbers.index(self.by_mean()[0])] if any(self._feasible) else None

    def _widen(self, losses: Array, anchor: bool) -> None:
        """Bring the box up to date."""
        if self._anchors and not anchor:
            return
        if anchor and not self._anchors:
            self._box = None  # the first anchor: what was no anchor counts no more
        if anchor:
            self._anchors.append(losses)
        ideal, reference = (losses, losses) if self._box is None else self._box
        self._box = (np.minimum(ideal, losses), np.maximum(reference, losses))
        self._moment = None

    def _scaled(self, losses: Array) -> Array:
        """Losses `(n, m)` in box units."""
        assert self._box is not None  # there is one from the first candidate on
        return _scaled(losses, self._box)


def _span(box: tuple[Array, Array]) -> Array:
    """The unit of each objective, `(m,)`."""
    return unit_between(*box)


def _scaled(losses: Array, box: tuple[Array, Array]) -> Array:
    """Losses `(n, m)` in units of a box."""
    return np.asarray((losses - box[0]) / _span(box))


def _normal(
    extremes: Array,  # (m, m)
    worst: Array,  # (m,)
) -> Array:
    """w of the plane `w x = 1` through these points; where there is none with w > 0, through the worst on each axis."""
    try:
        found = np.linalg.solve(extremes, np.ones(len(extremes)))
    except np.linalg.LinAlgError:
        found = np.zeros(len(extremes))
    return np.asarray(found if (found > 1e-9).all() else 1 / worst)


def _hypervolume(points: Array) -> tuple[float, bool]:
    """Volume dominated by `points` `(n, m)` below the reference 1, and whether it is exact."""
    import moocore

    inside = points[(points < 1).all(axis=1)]
    n, m = inside.shape
    if n == 0:
        return 0.0, True
    if m == 1:
        return float(1 - inside.min()), True
    if m < min(EXACT_UP_TO) or n <= EXACT_UP_TO.get(m, EXACT_BEYOND):
        return float(moocore.hypervolume(inside, ref=1.0)), True
    return float(moocore.hv_approx(inside, ref=1.0, nsamples=SAMPLES, method="Rphi-FWE+")), False
