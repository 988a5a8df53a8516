"""Which metrics are traded off, and in which direction? Everything is minimised inside: the sign flips here alone."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evaluators.evaluator import Measure, Metric
from optimizer.conditions import Condition
from optimizer.errors import JobError


@dataclass(frozen=True)
class Objective:
    """One qualified metric (`spam.accuracy`) and which way is better."""

    name: str
    goal: Literal["max", "min"]

    @property
    def sign(self) -> float:
        """loss = sign x value, and value = sign x loss."""
        return -1.0 if self.goal == "max" else 1.0


def resolve(names: Sequence[str], offered: Mapping[str, Metric]) -> tuple[Objective, ...]:
    """The objectives that a job names, out of the metrics its evaluators offer. Raises JobError on an unknown one."""
    if repeated := sorted({n for n in names if list(names).count(n) > 1}):
        raise JobError(f"objectives: {repeated[0]!r} is listed twice; list each metric once")
    for name in names:
        if name not in offered:
            near = difflib.get_close_matches(name, offered, n=3) or sorted(offered)
            task, _, metric = name.rpartition(".")
            hint = f"; 'kl' is a metric of {task!r} where that evaluator names a `teacher`" if metric == "kl" else ""
            raise JobError(f"objectives: no evaluator reports {name!r}; there are: {', '.join(near)}{hint}")
    return tuple(Objective(name, offered[name].goal) for name in names)


def constrained(texts: Sequence[str], offered: Mapping[str, Metric]) -> tuple[Condition, ...]:
    """The constraints of a job. Raises JobError for a metric that no evaluator offers, and a bound that it cannot have.

    The metric need not be an objective.
    """
    found = tuple(Condition.parse(text) for text in texts)
    for c in found:
        if c.name not in offered:
            near = difflib.get_close_matches(c.name, offered, n=3) or sorted(offered)
            raise JobError(f"constraints: '{c}': no evaluator reports {c.name!r}; there are: {', '.join(near)}")
        low, high = offered[c.name].low, offered[c.name].high
        if not low <= c.bound <= high:
            between = f"between {low:g} and {high:g}" if isfinite(high) else f"{low:g} or more"
            share = c.bound / 100
            hint = f", such as {share:g} for {c.bound:g} %" if high == 1 and low <= share <= high else ""
            raise JobError(f"constraints: '{c}': {c.name} is {between}; give a bound in there{hint}")
    return found


def losses(
    objectives: Sequence[Objective], measures: Mapping[str, Measure]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Losses and their standard errors (NaN: not known), both of shape `(m,)`, in the objectives' order."""
    return (
        np.array([o.sign * measures[o.name].value for o in objectives], dtype=np.float64),
        np.array([measures[o.name].stderr for o in objectives], dtype=np.float64),  # None becomes NaN
    )


def values(objectives: Sequence[Objective], point_losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Losses `(..., m)` back in the metrics' natural units."""
    signs = np.array([o.sign for o in objectives])
    return np.asarray(point_losses * signs)
