"""How does a box become a simplex? The stick-breaking bijection that keeps uniform points uniform."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEEP = 0.99


def decode(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """From `[0, 1]^K` to `{c >= 0, sum c <= 1}`, row by row; u and the result are float64 of shape `(G, K)`.

    `c_i = rem_i (1 - (1 - u_i)^(1 / (K - i + 1)))` with `rem_i = 1 - sum_{j<i} c_j`: the quantile function of
    Beta(1, K - i + 1), so that uniform u gives c uniform on the set, which is Dirichlet(1, ..., 1) with K + 1 parts.
    """
    count = u.shape[1]
    with np.errstate(divide="ignore"):  # u = 1 breaks off the whole rest: log 0, whose exponential is 0 again
        kept_log = np.log1p(-u) / np.arange(count, 0, -1)
    rest = np.cumprod(np.exp(kept_log), axis=1)
    before = np.concatenate([np.ones((len(u), 1)), rest[:, :-1]], axis=1)
    return before * -np.expm1(kept_log) + 0.0


def encode(c: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `decode` to rounding; where nothing is left to break, u is 0. Shapes `(G, K)`."""
    count = c.shape[1]
    rest = np.maximum(1.0 - np.concatenate([np.zeros((len(c), 1)), np.cumsum(c, axis=1)[:, :-1]], axis=1), 0.0)
    share = np.clip(np.divide(c, rest, out=np.zeros_like(c), where=rest > 0), 0.0, 1.0)
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1(np.log1p(-share) * np.arange(count, 0, -1)), dtype=np.float64)


def pull(u: NDArray[np.float64], gradient: NDArray[np.float64]) -> NDArray[np.float64]:
    """The chain rule through `decode`: from a derivative by c to one by u, both `(G, K)`; finite on the faces.

    With `v_i = 1 - (1 - u_i)^(1 / n_i)`, `c_i = v_i prod_{j<i} (1 - v_j)`: `dc_i/dv_i = rem_i`, and for j > i
    `dc_j/dv_i = -c_j / (1 - v_i)`. Towards u_i = 1 the bijection has no bounded slope: above `STEEP` its own derivative
    is that at `STEEP`, so that one step from a face does not drown all that follow.
    """
    count = u.shape[1]
    inner = np.minimum(u, STEEP)
    n = np.arange(count, 0, -1)
    kept = np.exp(np.log1p(-inner) / n)  # 1 - v
    rest = np.cumprod(kept, axis=1)
    before = np.concatenate([np.ones((len(u), 1)), rest[:, :-1]], axis=1)
    weighed = gradient * before * (1.0 - kept)  # g_j c_j
    later = weighed.sum(axis=1, keepdims=True) - np.cumsum(weighed, axis=1)
    by_share = gradient * before - later / kept
    return np.asarray(by_share * kept / (n * (1.0 - inner)))
