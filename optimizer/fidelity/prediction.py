"""What will a candidate do on items that it has not seen? Its ability says, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from optimizer.fidelity.ability import Abilities
from optimizer.fidelity.estimator import Array, Seen
from optimizer.fidelity.items import Items, dotted, outer

FAR = 10.0  # squared abilities (known candidates have 1 on average) that are as odd as a squared error twice the usual
TRUSTED = 5.0  # items that count as having been as far off as expected, when it is asked whether the model fits


@dataclass(frozen=True, eq=False)
class Predicted:
    """Means over all items, their variances as the model has them, and how unlike the known they are, `(B,)`."""

    values: Array
    variances: Array
    abilities: Array  # (B, D)
    unlike: Array  # the largest of squared errors on seen items and squared ability, in units of what is usual


def predicted(items: Items, find: Abilities, seen: Seen, values: Array) -> Predicted:
    """p-IRT: the share of items seen times what was observed, and the rest times what is predicted.

    The variance is that of unseen results around what is predicted (each item is only known so well, too), and that of
    the ability by its covariance; more, where results on seen items are further off than they should be.
    """
    there = items.at(seen.items)
    abilities, cov = find(there, values)
    expected, own, _ = _results(there, abilities, cov)
    trusted = TRUSTED * own.mean(axis=1)
    misfits = (((values - expected) ** 2).sum(axis=1) + trusted) / (own.sum(axis=1) + trusted)
    unlike = np.maximum(misfits, (abilities**2).mean(axis=1) / FAR)
    rest = items.at(np.setdiff1d(np.arange(seen.of), seen.items))
    expected, own, slopes = _results(rest, abilities, cov)
    along = (slopes[..., None] * rest.mean[..., : rest.dims]).sum(axis=1)
    shaken = (along[:, None] @ cov @ along[..., None])[:, 0, 0]
    variances = (own.sum(axis=1) + shaken) / seen.of**2 * np.maximum(misfits, 1.0)
    return Predicted((values.sum(axis=1) + expected.sum(axis=1)) / seen.of, variances, abilities, unlike)


def _results(items: Items, abilities: Array, cov: Array) -> tuple[Array, Array, Array]:
    """Expected results, their variances but for the ability's, and the derivatives by eta: `(B, N)` each.

    The mean of a logistic of a normal variable is taken as `sigmoid(m / sqrt(1 + pi v / 8))` (MacKay 1992).
    """
    centre, spread = items.predicted(abilities, cov)
    if items.noise is None:
        flat = 1 / np.sqrt(1 + np.pi * spread / 8)
        chances = expit(centre * flat)
        varied = chances * (1 - chances)
        return chances, np.maximum(varied, 1e-9), varied * flat
    slopes = items.mean[..., : items.dims]
    seconds = outer(slopes).reshape(*slopes.shape[:-1], -1)
    own = spread - dotted(seconds, cov.reshape(len(cov), -1)) + items.noise
    return centre, np.maximum(own, items.noise), np.ones_like(centre)
