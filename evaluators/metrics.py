"""How well, and how sure? Metrics of per-item results, each with its standard error. NumPy only, float64 inside."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.evaluator import Measure

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

RESAMPLES = 200
"""Bootstrap resamples: the standard error of a standard error is about 1 / sqrt(2 * 200) = 5 % of it."""


def mean(values: Floats) -> Measure:
    """Mean of per-item results of shape `(n,)`: `sum(x) / n`, standard error `sqrt(var / n)`.

    `var` is the sample variance, with n - 1 below; of a single item no standard error is known.
    With values 0 and 1 (right or wrong) this is accuracy, with negative log likelihoods it is cross-entropy in nats.
    """
    x = values.astype(np.float64)
    stderr = math.sqrt(float(x.var(ddof=1)) / len(x)) if len(x) > 1 else None
    return Measure(float(x.mean()), stderr, len(x))


def macro_f1(truth: Integers, predicted: Integers, classes: int) -> Measure:
    """Unweighted mean over classes of `F1_c = 2 TP_c / (2 TP_c + FP_c + FN_c)`; class numbers of shape `(n,)`.

    A class that is neither among the truth nor predicted has no F1 and is left out, as in scikit-learn. F1 is no mean
    over items, so the standard error is a bootstrap's: n items are drawn with replacement `RESAMPLES` times, which is a
    multinomial draw of the confusion counts, from a fixed seed; of a single item none is known.
    """
    cells, counts = np.unique(truth.astype(np.int64) * classes + predicted, return_counts=True)
    row, column = cells // classes, cells % classes
    value = _f1(counts[None, :], row, column, classes)[0]
    # The cells that occur and not the whole confusion matrix: at most n of them, however many classes there are.
    if len(truth) == 1:
        return Measure(float(value), None, 1)
    draws = np.random.default_rng(0).multinomial(len(truth), counts / len(truth), size=RESAMPLES)
    return Measure(float(value), float(_f1(draws, row, column, classes).std(ddof=1)), len(truth))


def _f1(draws: Integers, row: Integers, column: Integers, classes: int) -> NDArray[np.float64]:
    """Macro F1 of each of `(r, cells)` draws of confusion counts, whose cells lie at `(row, column)`: shape `(r,)`."""
    offset = np.arange(len(draws))[:, None] * classes

    def by_class(labels: Integers, weights: Integers) -> NDArray[np.float64]:
        size = len(draws) * classes
        flat = np.bincount((offset + labels).ravel(), weights=weights.ravel(), minlength=size)  # float64: weighted
        return flat.reshape(len(draws), classes).astype(np.float64, copy=False)

    twice_hit = 2 * by_class(row, draws * (row == column))
    total = by_class(row, draws) + by_class(column, draws)  # 2 TP + FN + FP
    f1 = np.divide(twice_hit, total, out=np.zeros_like(total), where=total > 0)
    result: NDArray[np.float64] = f1.sum(axis=1) / (total > 0).sum(axis=1)
    return result


def token_loss(nll: Floats, tokens: Integers) -> Measure:
    """Loss per token, in nats: `L = sum(s_i) / sum(t_i)` over documents with summed loss `s_i`, `t_i` tokens, `(n,)`.

    The tokens of a document are not independent, so documents are the clusters of a ratio estimator: its standard error
    is `sqrt(n / (n - 1) * sum((s_i - L t_i)^2)) / sum(t_i)` (Cochran, Sampling Techniques, 3rd ed., section 6.4), and
    not known of a single document. The count is of documents.
    """
    s, t = nll.astype(np.float64), tokens.astype(np.float64)
    loss = s.sum() / t.sum()
    n = len(s)
    spread = n / (n - 1) * float(((s - loss * t) ** 2).sum()) if n > 1 else None
    return Measure(float(loss), None if spread is None else math.sqrt(spread) / float(t.sum()), n)


def perplexity(loss: Measure) -> Measure:
    """`exp(L)` of a loss per token, standard error by the delta method: `exp(L) * stderr(L)`; infinite on overflow."""
    value = math.exp(loss.value) if loss.value < 700 else math.inf
    return Measure(value, value * loss.stderr if loss.stderr else loss.stderr, loss.count)
