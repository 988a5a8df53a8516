"""How many digits does a picture need? Columns of numbers for the page, as short as they may be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Column = list[float | None]
VALUES, ERRORS = 6, 3  # significant digits


def rounded(
    numbers: NDArray[np.float64],  # (n,)
    digits: int = VALUES,
) -> Column:
    """To so many significant digits; None for what is not finite."""
    found = significant(numbers, digits)
    known = np.isfinite(found)
    if known.all():
        return list(found.tolist())
    return [x if k else None for x, k in zip(found.tolist(), known.tolist(), strict=True)]


def significant(numbers: NDArray[np.float64], digits: int = VALUES) -> NDArray[np.float64]:
    """The same numbers, whose shortest decimals have so many significant digits."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        size = np.floor(np.log10(np.abs(numbers)))
        places = np.where(np.isfinite(size), digits - 1 - size, 0.0)
        up, down = 10.0 ** np.clip(places, 0, 300), 10.0 ** np.clip(-places, 0, 300)
        return np.asarray(np.where(np.isfinite(numbers), np.round(numbers * up / down) * down / up, numbers)) + 0.0
