"""Which models should be merged next? The best with the best, and the best with whom it is least related to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from optimizer.driver import Domain, Outcome
from optimizer.drivers.shared.criterion import Criterion
from optimizer.drivers.shared.experts import average, checked_vertices, names
from optimizer.drivers.shared.rounds import Plan, Rounds, Wish

Array = NDArray[np.float64]
Metric = Literal["pearson", "cosine", "euclid"]


class Kinship(Rounds):
    """Top-k greedy merging with model kinship (Hu et al. 2024, arXiv:2410.12613).

    A generation averages each pair of the `best` models so far that has not been averaged, and the best one with the
    model that it is least related to: without that, the same few parents breed each other's like. It ends when the best
    are the same as before, or after `generations`. Experts are the first models, and averages are models too. Kinship
    is the similarity of two models' task vectors over all that is searched: Pearson's correlation, the cosine, or minus
    the Euclidean distance. Signed, opposite task vectors are the least related; without signs those that are orthogonal
    are (the authors' code takes the magnitude of the cosine, but the sign of Pearson's correlation). It follows, for
    averages too, from the inner products of the experts' task vectors, which one question asks for; where that fails,
    the best are merged without it. Better is less of the mean of the objectives, each in units of its range among the
    anchors (the experts where none was asked). Models that failed are left out.
    """

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        best: int = Field(
            3,
            ge=2,
            description="Models that a generation keeps, and averages by pairs; more look wider, for more merges.",
        )
        generations: int = Field(10, ge=1, description="Rounds of averages at most.")
        metric: Metric = Field(
            "pearson",
            description="How alike two task vectors are: Pearson's correlation (`pearson`), the `cosine`, or minus the"
            " Euclidean distance (`euclid`).",
        )
        escape: bool = Field(True, description="Also average the best with the model that it is least related to.")
        signed: bool = Field(
            True, description="Whether opposite is less related than unrelated; `metric: euclid` knows no sign."
        )

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        self._domain, self._count, self._options = domain, objectives, options
        self._vertices = checked_vertices("kinship", domain)
        super().__init__("kinship", domain, objectives, self._plan_of)

    def _plan_of(self, anchors: list[Array]) -> Plan:
        called = names(self._domain)
        first = [Wish("task vectors", self._domain.start, "grams")] if self._options.escape else []
        found = yield [*first, *(Wish(f"expert {called[k]}", v) for k, v in enumerate(self._vertices))]
        alone = found[len(first) :]
        known = [outcome.losses for outcome in alone if outcome.failure is None]
        criterion = Criterion.among(anchors or known, self._count)
        related = self._related(found[0]) if first and found[0].failure is None else None
        family = _Family(np.eye(len(called)), [criterion.of(outcome) for outcome in alone], self._options.best)
        before: list[int] = []
        for generation in range(1, self._options.generations + 1):
            best = family.best
            if best == before:
                return
            before = best
            mixes = [("pair", *pair) for pair in combinations(sorted(best), 2)]
            if related is not None and best and (far := family.farthest(best[0], related)) is not None:
                mixes.append(("the least related", best[0], far))
            if not (rows := family.averages(mixes)):
                return
            children = yield [
                Wish(f"generation {generation}, {what}", average(self._domain, self._vertices, row))
                for what, row in rows
            ]
            for (_, row), outcome in zip(rows, children, strict=True):
                family.add(row, criterion.of(outcome))

    def _related(self, outcome: Outcome) -> Callable[[Array, Array], float]:
        assert outcome.gradient is not None  # checked as it came
        groups, experts = self._domain.shape
        rows = (
            outcome.gradient[:, : groups * experts].reshape(-1, groups, experts).sum(axis=1)
        )  # (experts + 2, experts)
        related = kinship(rows[:experts], rows[experts], float(rows[experts + 1, 0]), self._options.metric)
        if self._options.signed or self._options.metric == "euclid":
            return related
        return lambda a, b: abs(related(a, b))


class _Family:
    """Models as averages of experts, `(experts,)` weights each, and how good they are; infinity is a failure."""

    def __init__(self, models: Array, values: Sequence[float], best: int) -> None:
        self._models, self._values, self._most = list(models), list(values), best
        self._merged: set[tuple[int, int]] = set()

    @property
    def best(self) -> list[int]:
        """The best models that there are, the very best first."""
        order = sorted(range(len(self._values)), key=lambda i: (self._values[i], i))
        return [i for i in order if np.isfinite(self._values[i])][: self._most]

    def farthest(self, one: int, related: Callable[[Array, Array], float]) -> int | None:
        """The model that this one has not been averaged with, and is least related to."""
        others = [
            i
            for i, value in enumerate(self._values)
            if i != one and np.isfinite(value) and (min(i, one), max(i, one)) not in self._merged
        ]
        return min(others, key=lambda i: (related(self._models[one], self._models[i]), i), default=None)

    def averages(self, mixes: Sequence[tuple[str, int, int]]) -> list[tuple[str, Array]]:
        """Of pairs that were not averaged before, what comes out that is no model yet."""
        found: list[tuple[str, Array]] = []
        for what, i, j in mixes:
            pair = (min(i, j), max(i, j))
            row = (self._models[i] + self._models[j]) / 2
            there = [*self._models, *(other for _, other in found)]
            if pair not in self._merged and not any(np.allclose(row, other, atol=1e-12) for other in there):
                found.append((what, row))
            self._merged.add(pair)
        return found

    def add(self, model: Array, value: float) -> None:
        self._models.append(model)
        self._values.append(value)


def kinship(
    products: Array,  # (K, K), of the experts' task vectors
    sums: Array,  # (K,), of their entries
    length: float,
    metric: Metric,
) -> Callable[[Array, Array], float]:
    """How related two averages of experts are, by their weights `(K,)`; more is more. 0 to what has not moved.

    An average's task vector is that of the experts', so its inner products are a bilinear form. Pearson's is the cosine
    of vectors less their mean.
    """
    form = products - np.outer(sums, sums) / length if metric == "pearson" and length else products

    def related(a: Array, b: Array) -> float:
        if metric == "euclid":
            return -math.sqrt(max(0.0, float((a - b) @ form @ (a - b))))
        sizes = max(0.0, float(a @ form @ a)) * max(0.0, float(b @ form @ b))
        return float(a @ form @ b) / math.sqrt(sizes) if sizes > 0 else 0.0

    return related
