"""Which coordinates decide? Their importance for a metric, by Optuna's PED-ANOVA."""

from __future__ import annotations

import logging
import warnings
from collections import OrderedDict
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import JobError
from optimizer.record.results import Results
from optimizer.views.candidate_values import Importance

MOST = 400  # candidates that it is told by, evenly over the run: Optuna takes milliseconds for each
LEAST = 8
KEPT = 64  # answers that are remembered
STEP = 1.25  # an answer serves until there are so many times as many candidates

_kept: OrderedDict[tuple[object, ...], tuple[int, list[Importance]]] = OrderedDict()
_lock = Lock()  # of what is kept
_computing = Lock()  # one at a time: it takes all of a core


def importance(results: Results, metric: str | None = None) -> list[Importance]:
    """How much each coordinate decides of a metric, or of the mean over objectives, the most important first.

    PED-ANOVA (Watanabe et al. 2023): how far what the best tenth has of a coordinate is from what all have. Shares of
    1. Empty where too few were scored. Raises JobError for a metric that there is not.
    """
    if metric is not None and metric not in results.goals:
        raise JobError(f"no metric {metric!r} in this run; there are: {', '.join(sorted(results.goals))}")
    scored = len(results.front.numbers)
    key = _key(results, metric)
    if (known := _remembered(key, scored)) is not None:
        return known
    with _computing:
        if (known := _remembered(key, scored)) is None:
            known = _computed(results, metric)
            with _lock:
                _kept[key] = scored, known
                while len(_kept) > KEPT:
                    _kept.popitem(last=False)
    return known


def most_important(results: Results, count: int) -> list[str]:
    """So many coordinates, the most important of the mean first; the first ones where that is not known."""
    found = [i.name for i in importance(results)] or list(results.domain.names)
    return found[:count]


def _key(results: Results, metric: str | None) -> tuple[object, ...]:
    """Of this metric of this run: another of the same folder has other coordinates, or began at another time."""
    return str(results.folder), tuple(results.domain.names), results.times[0][1] if results.times else 0.0, metric


def _remembered(key: tuple[object, ...], scored: int) -> list[Importance] | None:
    """What is kept, where it is of about so many candidates."""
    with _lock:
        known = _kept.get(key)
        if known is None or not known[0] <= scored <= known[0] * STEP:
            return None
        _kept.move_to_end(key)
        return known[1]


def _computed(results: Results, metric: str | None) -> list[Importance]:
    rows = [results.candidates[n] for n in results.front.numbers]
    if metric is None:
        losses = np.array([results.front.mean(results.losses(c)) for c in rows])
    else:
        sign = results.objective(metric).sign
        losses = np.array([sign * c.measures[metric].value for c in rows])
    if len(rows) < LEAST or np.ptp(losses) == 0:
        return []
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(MOST, len(rows))).astype(int))
    found = _ped_anova(results, np.array([rows[i].point for i in chosen]), losses[chosen])
    total = sum(found.values()) or 1.0
    ordered = sorted(found.items(), key=lambda pair: -pair[1])
    return [Importance(name=name, importance=float(f"{value / total:.4g}")) for name, value in ordered]


def _ped_anova(
    results: Results,
    points: NDArray[np.float64],  # (n, dim)
    losses: NDArray[np.float64],  # (n,)
) -> dict[str, float]:
    import optuna
    from optuna.distributions import BaseDistribution, FloatDistribution
    from optuna.importance import PedAnovaImportanceEvaluator

    domain = results.domain
    free = [i for i in range(len(domain.names)) if domain.low[i] < domain.high[i]]
    distributions: dict[str, BaseDistribution] = {
        domain.names[i]: FloatDistribution(float(domain.low[i]), float(domain.high[i])) for i in free
    }
    inside = np.clip(points, domain.low, domain.high)
    optuna.logging.get_logger("optuna").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental
        study = optuna.create_study(direction="minimize")
        study.add_trials(
            [
                optuna.create_trial(
                    params={domain.names[i]: float(row[i]) for i in free}, distributions=distributions, value=float(v)
                )
                for row, v in zip(inside, losses, strict=True)
            ]
        )
        found = PedAnovaImportanceEvaluator().evaluate(study)
    return dict(found)
