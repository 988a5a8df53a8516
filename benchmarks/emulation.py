"""What would a candidate score? Told from recorded ones, item by item: to try searches in seconds, not to judge merges.

Per item a Gaussian process over coefficients, all with one length: of the candidates of recorded runs of one job, from
different seeds and drivers, that were scored on all calibration items. Beyond them it falls back to their mean. Base
and experts as they are, and held-out items, are still scored for real.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from optimizer.driver import Question
    from optimizer.executors.worker import Found, Worker

LENGTH, NOISE = math.sqrt(32.0), 1e-4  # of the processes: of coefficients, and of their variance
Array = NDArray[np.float64]


class Emulation:
    """Results `(N,)` of the objectives' metrics at any point."""

    def __init__(self, runs: Sequence[Path]) -> None:
        from optimizer import Run

        found = [Run(folder).results() for folder in runs]
        self.metrics = tuple(o.name for o in found[0].objectives)
        points: dict[bytes, Array] = {}
        rows: dict[bytes, list[NDArray[np.float32]]] = {}
        for results in found:
            whole = [c for c in results.scored if c.share == 1]
            items = results.items([c.number for c in whole], "calibration")
            for c in whole:
                key = np.round(c.point, 9).tobytes()
                points[key], rows[key] = c.point, [items[c.number][m] for m in self.metrics]
        self._points = np.array(list(points.values()))  # (R, dim)
        self._means, self._answers = [], []
        covariance = self._covariance(self._points) + NOISE * np.eye(len(self._points))
        for j in range(len(self.metrics)):
            results_ = np.array([row[j] for row in rows.values()], dtype=np.float64)  # (R, N)
            self._means.append(results_.mean(axis=0))
            self._answers.append(np.linalg.solve(covariance, results_ - self._means[-1]))

    def __call__(self, point: Array) -> dict[str, Array]:
        """By metric, of non-negative losses: none falls below 0."""
        k = self._covariance(point[None])[0]
        told = zip(self.metrics, self._means, self._answers, strict=True)
        return {name: np.maximum(mean + k @ answer, 0.0) for name, mean, answer in told}

    def _covariance(self, points: Array) -> Array:
        apart = ((points[:, None] - self._points) ** 2).sum(axis=2)
        return np.asarray(np.exp(-apart / (2 * LENGTH**2)))


@contextmanager
def emulated(runs: Sequence[Path]) -> Iterator[None]:
    """Workers of this process answer on calibration items by an emulation of these runs."""
    from evaluators.evaluator import Scores
    from evaluators.metrics import mean
    from optimizer.executors.worker import Worker

    emulation, real = Emulation(runs), Worker._answer_point

    def answer(self: Worker, question: Question, found: Found) -> None:
        if question.items.split != "calibration":
            real(self, question, found)
            return
        results = emulation(question.point)
        for i, evaluator in enumerate(self.problem.evaluators):
            mine = {m.rpartition(".")[2]: row for m, row in results.items() if m.rpartition(".")[0] == evaluator.name}
            rows = slice(None) if not question.items.places else list(question.items.places[i])
            values: dict[str, Any] = {m: row[rows].astype(np.float32) for m, row in mine.items()}
            found.scores[evaluator.name] = Scores({m: mean(row) for m, row in values.items()}, values)

    Worker._answer_point = answer  # type: ignore[method-assign]
    try:
        yield
    finally:
        Worker._answer_point = real  # type: ignore[method-assign]
