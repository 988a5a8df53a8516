"""Which average of the experts answers as each of them does? Differentiable adaptive merging."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from optimizer.driver import Domain, Point
from optimizer.drivers.walks import descent
from optimizer.drivers.walks.adam import AdamRule, Bounds
from optimizer.drivers.walks.descent import Descent


class DAM(Descent):
    """Adam on `W = sum_k c_k theta_k` from the average, on KL from the experts at temperature 2 (arXiv:2410.08371).

    To the loss comes `similarity` times the mean cosine between the experts' coefficients. The authors learn one
    coefficient for each column of a weight matrix; here there is one for each group of the space, `tensor` at finest.
    The weights are an average with method `linear`, and `theta_0 + sum_k c_k tau_k` with `task_arithmetic`.
    """

    class Options(descent.Options):
        lr: descent.Lr = 1e-3
        start: descent.Start = "average"
        similarity: float = Field(
            0.01,
            ge=0,
            description="The weight, beside the loss, of how alike the experts' coefficients are (their mean cosine);"
            " more keeps experts further apart. Published: 0.01.",
        )
        bounds: Bounds = "project"

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        def penalty(point: Point) -> NDArray[np.float64]:
            return options.similarity * similarity_slope(point.reshape(domain.shape)).ravel()

        super().__init__(
            *("dam", domain, objectives, options),
            lambda start: AdamRule(domain, start, options.lr, options.bounds, penalty=penalty),
        )


def similarity(
    coefficients: NDArray[np.float64],  # (G, K)
) -> float:
    """The mean cosine over pairs of different experts' coefficient vectors; 0 where there is one expert."""
    unit = _units(coefficients)[0]
    count = coefficients.shape[1]
    return float(((unit.T @ unit).sum() - (unit**2).sum()) / max(1, count * (count - 1)))


def similarity_slope(
    coefficients: NDArray[np.float64],  # (G, K)
) -> NDArray[np.float64]:
    """The derivative of `similarity`, `(G, K)`: of cos(a, b) by a it is `(b' - cos a') / |a|`, with unit a' and b'."""
    unit, norms = _units(coefficients)
    count = coefficients.shape[1]
    others = unit.sum(axis=1, keepdims=True) - unit
    along = (others * unit).sum(axis=0)
    slope = np.divide(others - along * unit, norms, out=np.zeros_like(unit), where=norms > 0)
    return np.asarray(2 * slope / max(1, count * (count - 1)))


def _units(coefficients: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    norms = np.linalg.norm(coefficients, axis=0)
    return np.divide(coefficients, norms, out=np.zeros_like(coefficients), where=norms > 0), norms
