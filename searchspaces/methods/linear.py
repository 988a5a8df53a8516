"""What is a linear merge? A weighted average of the experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from searchspaces.composition import Composition
from searchspaces.facts.facts import Facts
from searchspaces.option import Flag, Option, Spec
from searchspaces.row import Row


class Linear:
    """`W = sum_k c_k theta_k`, divided by `sum_k c_k` where `normalize` is true (Wortsman et al. 2022, Model Soups).

    Option `normalize` (true). With it, a group whose coefficients sum to 0 stays the base: an average of nothing moves
    nothing. Without it the base takes no part, and all coefficients 0 give all weights 0.
    """

    summary: ClassVar[str] = "average of the experts, weighted by their coefficients"
    options: ClassVar[Mapping[str, Spec]] = {
        "normalize": Flag(True, says="Whether coefficients are divided by their sum.")
    }
    linear: ClassVar[bool] = True
    random: ClassVar[bool] = False
    processes: ClassVar[bool] = False
    picks: ClassVar[bool] = False
    experts: ClassVar[tuple[int, int | None]] = (1, None)
    usual: float | None = None

    def __init__(self, options: Mapping[str, Option]) -> None:
        self._normalize = bool(options["normalize"])
        self.unit, self.restores = 1.0, True
        self.affine = not self._normalize
        self.grounded = self._normalize
        # a common factor cancels in a normalised average: a sweep of it would ask one candidate again and again
        self.sweep = () if self._normalize else (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)

    def compose(self, row: Row, facts: Facts) -> Composition:
        """`sum_k c_k theta_k = (sum_k c_k) theta_0 + sum_k c_k (theta_k - theta_0)`, and a normalised c sums to 1."""
        total = float(row.coefficients.sum())
        if not self._normalize:
            return Composition(total, row.coefficients)
        # a sum near 0 may overflow: the merged weights then are refused as not finite
        with np.errstate(over="ignore"):
            return Composition(1.0, row.coefficients / total if total else np.zeros_like(row.coefficients))

    def pull(self, row: Row, base: float, experts: NDArray[np.float64]) -> NDArray[np.float64]:
        """`d_k + d_base`; normalised, `(d_k - sum_j s_j d_j) / sum c` with s = c / sum c, and 0 where that sum is."""
        if not self._normalize:
            return experts + base
        total = row.coefficients.sum()
        if total == 0:
            return np.zeros_like(experts)
        share = row.coefficients / total
        return np.asarray((experts - share @ experts) / total)
