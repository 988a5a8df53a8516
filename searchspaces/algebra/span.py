"""What are lengths, angles and means of models, in the span of base and task vectors? Gram matrices alone say it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from searchspaces.composition import Composition
from searchspaces.option import Option

Array = NDArray[np.float64]
BLUR = 1e-6
"""What is left of unit vectors that cancel, and is no longer, counts as nothing: its square comes out of a Gram matrix,
so that its length is known to the root of float64's precision, 1.5e-8, times what sums over a tensor and experts add.
"""


class InSpan:
    """What methods share whose merge is `a_0 theta_0 + sum_k a_k tau_k` with `a` out of coefficients and, but for layer
    swapping, Gram matrices.

    Vectors here are their coordinates in `theta_0, tau_1, ... tau_K`, float64 `(K + 1,)`. Coefficients enter in other
    ways than linearly: there is no gradient.
    """

    linear: ClassVar[bool] = False
    random: ClassVar[bool] = False
    processes: ClassVar[bool] = False
    picks: ClassVar[bool] = False
    unit = 1.0
    restores = True
    affine = False
    grounded = True
    sweep: tuple[float, ...] = ()
    usual: float | None = None

    def __init__(self, options: Mapping[str, Option]) -> None:
        """Nothing: options enter where a tensor is composed."""


def experts(count: int, task_vectors: bool) -> Array:
    """Each expert's task vector, or the expert itself, as coordinates `(K, K + 1)`."""
    found = np.eye(count + 1)[1:]
    if not task_vectors:
        found[:, 0] = 1.0
    return found


def composition(merged: Array, task_vectors: bool, columns: bool = False) -> Composition:
    """Of a merged model, or of what is added to the base, by coordinates `(K + 1,)`, or each row's `(rows, K + 1)`."""
    base = merged[..., 0] + (1.0 if task_vectors else 0.0)
    return Composition(base if base.ndim else float(base), merged[..., 1:], columns=columns)


def nothing(count: int) -> Composition:
    """The base, bit for bit."""
    return Composition(1.0, np.zeros(count))


def inner(one: Array, gram: Array, other: Array) -> Array:
    """The inner products of vectors `(..., K + 1)` with a vector; of rows where grams are `(rows, K + 1, K + 1)`."""
    return np.asarray(np.einsum("...i,...ij,...j->...", one, gram, other))


def lengths(vectors: Array, gram: Array) -> Array:
    """Of vectors `(..., K + 1)`."""
    return np.sqrt(np.maximum(inner(vectors, gram, vectors), 0.0))


def arc(t: float, cosine: Array, straight: Array) -> tuple[Array, Array]:
    """The weights of two vectors on the arc between their directions, or on the line where that is `straight`.

    `sin((1 - t) a) / sin a` and `sin(t a) / sin a`, a being the angle between them (Shoemake 1985).
    """
    angle = np.arccos(np.where(straight, 0.0, np.clip(cosine, -1.0, 1.0)))
    first, second = (np.where(straight, s, np.sin(s * angle) / np.sin(angle)) for s in (1.0 - t, t))
    return first, second


def direction_mean(vectors: Array, gram: Array, weights: Array) -> Array:
    """The direction of the weighted mean of directions, at the weighted mean length; `(K + 1,)`.

    Where directions cancel it has none: the weighted sum of the vectors themselves.
    """
    sizes = lengths(vectors, gram)
    units = _units(vectors, sizes, 0.0)
    mean = weights @ units
    length = float(lengths(mean, gram))
    if length < BLUR:
        return np.asarray(weights @ vectors)
    return np.asarray(mean / length * (weights @ sizes))


def karcher_mean(vectors: Array, gram: Array, shares: Array, steps: int, tolerance: float) -> Array:
    """The point whose directions to all others, weighted, cancel, at the weighted mean length; `(K + 1,)`.

    At most `steps` steps of `exp_m(sum_k a_k log_m(u_k))`, until one is shorter than `tolerance`. Vectors that are
    shorter have no direction; where none has, or the shares of those that have sum to 0, it is the weighted sum of
    the vectors. A direction opposite to m has no way towards it, and does not pull.
    """
    sizes = lengths(vectors, gram)
    long = sizes > tolerance
    total = float(shares[long].sum())
    if total == 0.0:
        return np.asarray(shares @ vectors)
    units, parts = _units(vectors, sizes, tolerance)[long], shares[long] / total
    mean = parts @ units
    length = float(lengths(mean, gram))
    mean = units[0] if length < max(tolerance, BLUR) else mean / length
    for _ in range(steps):
        cosines = np.clip(inner(units, gram, mean), -1.0, 1.0)
        angles = np.arccos(cosines)
        way = (angles >= tolerance) & (math.pi - angles >= max(tolerance, BLUR)) & (angles > 0)
        pulls = np.divide(angles, np.sin(angles), out=np.zeros_like(angles), where=way)
        tangent = (parts * pulls) @ (units - cosines[:, None] * mean)
        angle = float(lengths(tangent, gram))
        if angle < tolerance or angle == 0.0:
            break
        mean = np.cos(angle) * mean + np.sin(angle) / angle * tangent
        mean /= float(lengths(mean, gram))
    return np.asarray(mean * (shares @ sizes))


def _units(vectors: Array, sizes: Array, least: float) -> Array:
    """Vectors by their lengths; no vector where that is at most `least`."""
    return np.divide(vectors, sizes[:, None], out=np.zeros_like(vectors), where=sizes[:, None] > least)
