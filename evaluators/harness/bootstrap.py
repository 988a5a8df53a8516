"""How sure is a metric whose standard error has no formula? The harness's own resamples, a thousand in one step."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""From drawn places of items `(resamples, n)` to the metric of each resample `(resamples,)`."""


@contextlib.contextmanager
def here() -> Iterator[None]:
    """While this is open, the harness resamples in this process and without its progress bars: it would fork a pool
    from each worker."""
    from lm_eval.api import metrics

    theirs = metrics.bootstrap_stderr
    metrics.bootstrap_stderr = standard_error
    try:
        yield
    finally:
        metrics.bootstrap_stderr = theirs


def standard_error(metric: Any, items: Sequence[Any], iters: int) -> float:
    """The harness's bootstrapped standard error of `metric(items)`, from its own draws.

    Metrics that are functions of sums or counts are computed for a thousand resamples at once; those of texts are
    asked for each, by the harness's own code.
    """
    from lm_eval.api import metrics

    known: dict[Any, Callable[[Sequence[Any]], Statistic | None]] = {
        metrics.perplexity: _perplexity,
        metrics.matthews_corrcoef: _matthews,
        metrics.f1_score: _f1,
        metrics.median: _median,
        metrics.nanmean: _nanmean,
    }
    statistic = known[metric](items) if metric in known else None
    if statistic is None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return float(metrics.sample_stddev(metrics._bootstrap_internal_no_mp(metric, items, iters)))
    return float(np.concatenate([statistic(drawn) for drawn in _draws(len(items), iters)]).std(ddof=1))


def _draws(count: int, iters: int) -> Iterator[NDArray[np.int64]]:
    """The places that the harness draws, `(step, count)`, a step for each of its seeds.

    `random.Random(i).choices` draws `floor(random() * n)` from a Mersenne twister, which NumPy's `RandomState` is too:
    from the same state it gives the same numbers.
    """
    step = min(1000, iters)
    twister = np.random.RandomState()
    for seed in range(iters // step):
        *key, place = random.Random(seed).getstate()[1]
        twister.set_state(("MT19937", np.array(key, dtype=np.uint32), int(place), 0, 0.0))
        yield np.floor(twister.random_sample((step, count)) * count).astype(np.int64)


def _perplexity(items: Sequence[Any]) -> Statistic:
    values = np.asarray(items, dtype=np.float64)
    return lambda drawn: np.exp(-values[drawn].mean(axis=1))


def _median(items: Sequence[Any]) -> Statistic:
    values, middle = np.asarray(items, dtype=np.float64), len(items) // 2
    return lambda drawn: np.partition(values[drawn], middle, axis=1)[:, middle]


def _nanmean(items: Sequence[Any]) -> Statistic:
    values = np.asarray(items, dtype=np.float64)
    there, filled = ~np.isnan(values), np.nan_to_num(values)

    def statistic(drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        counts = there[drawn].sum(axis=1)
        return np.where(counts > 0, filled[drawn].sum(axis=1) / np.maximum(counts, 1), np.nan)

    return statistic


def _matthews(items: Sequence[Any]) -> Statistic:
    """Matthews' correlation of (gold, predicted) pairs from the counts of a confusion matrix, for any classes."""
    names, codes = np.unique(np.array([list(pair) for pair in items]), return_inverse=True)
    gold, predicted = codes.reshape(-1, 2).T
    right = gold == predicted

    def counts(of: NDArray[Any], drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        """How often each class is in each resample `(resamples, classes)`."""
        cells = of[drawn] + np.arange(len(drawn))[:, None] * len(names)
        return np.bincount(cells.ravel(), minlength=len(drawn) * len(names)).reshape(len(drawn), -1).astype(float)

    def statistic(drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        n = drawn.shape[1]
        true, said = counts(gold, drawn), counts(predicted, drawn)
        both = right[drawn].sum(axis=1) * n - (true * said).sum(axis=1)
        spread = (n**2 - (true**2).sum(axis=1)) * (n**2 - (said**2).sum(axis=1))
        return np.where(spread > 0, both / np.sqrt(np.maximum(spread, 1)), 0.0)

    return statistic


def _f1(items: Sequence[Any]) -> Statistic | None:
    """F1 of class 1 of (gold, predicted) pairs; None where there are classes other than 0 and 1."""
    if {value for pair in items for value in pair} - {0, 1}:
        return None
    gold, predicted = np.array([[bool(value) for value in pair] for pair in items]).T

    def statistic(drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        both = (gold & predicted)[drawn].sum(axis=1)
        either = gold[drawn].sum(axis=1) + predicted[drawn].sum(axis=1)
        return np.where(either > 0, 2 * both / np.maximum(either, 1), 0.0)

    return statistic
