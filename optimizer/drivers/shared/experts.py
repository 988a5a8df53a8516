"""Where in a space are its experts, and their averages? Checked vertices, and affine combinations of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from optimizer.driver import Domain, DriverError, Point


def checked_vertices(who: str, domain: Domain) -> NDArray[np.float64]:
    """The experts as points, `(experts, dim)`. Raises DriverError where there are none, or not inside the bounds."""
    if domain.vertices is None:
        raise DriverError(
            f"{who} needs merged weights that are affine in the coefficients, and nothing searched beside these; take "
            "method task_arithmetic, or set space.options.normalize: false; leave space.simplex out, and fix what else "
            "is searched (space.options)"
        )
    low, high = domain.vertices.min(axis=0), domain.vertices.max(axis=0)
    if (domain.low > low).any() or (domain.high < high).any():
        raise DriverError(
            f"{who} needs each expert alone, at coefficient {high.max():g}; widen space.bounds to hold "
            f"[0, {high.max():g}]"
        )
    return domain.vertices


def average(
    domain: Domain,
    corners: NDArray[np.float64],  # (n, dim)
    weights: NDArray[np.float64],  # (n,), summing to 1
) -> Point:
    """The point `(dim,)` whose weights are the average of those at the corners, which lie inside the bounds."""
    return np.clip(weights @ corners, domain.low, domain.high)  # rounding could leave them


def names(domain: Domain) -> list[str]:
    """What people call the experts: the last part of the names of a group's coordinates."""
    return [name.rpartition("|")[2] for name in domain.names[: domain.shape[1]]]
