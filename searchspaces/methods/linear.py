"""What is a linear merge? A weighted average of the experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from searchspaces.method import Mix, Option


class Linear:
    """`W = sum_k c_k theta_k`, divided by `sum_k c_k` where `normalize` is true (Wortsman et al. 2022, Model Soups).

    Option `normalize` (true). With it, a group whose coefficients sum to 0 stays the base: an average of nothing moves
    nothing. Without it the base takes no part, and all coefficients 0 give all weights 0.
    """

    summary: ClassVar[str] = "average of the experts, weighted by their coefficients"
    defaults: ClassVar[Mapping[str, Option]] = {"normalize": True}
    linear: ClassVar[bool] = True
    random: ClassVar[bool] = False
    processes: ClassVar[bool] = False

    def __init__(self, options: Mapping[str, Option]) -> None:
        self._normalize = bool(options["normalize"])
        self.unit = 1.0
        self.affine = not self._normalize
        # a common factor cancels in a normalised average: a sweep of it would ask one candidate again and again
        self.sweep = () if self._normalize else (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)

    def mix(self, coefficients: NDArray[np.float64]) -> Mix:
        """Scales of the base `(G,)` and of the task vectors `(G, K)`.

        `sum_k c_k theta_k = (sum_k c_k) theta_0 + sum_k c_k (theta_k - theta_0)`, and a normalised c sums to 1.
        """
        total = coefficients.sum(axis=1)
        if not self._normalize:
            return total, coefficients
        with np.errstate(over="ignore"):  # a sum near 0 may overflow: the merged weights then are refused as not finite
            scaled = np.divide(coefficients, total[:, None], out=np.zeros_like(coefficients), where=total[:, None] != 0)
        return np.ones(len(coefficients)), scaled

    def pull(self, coefficients: NDArray[np.float64], scales: Mix) -> NDArray[np.float64]:
        """`d_k + d_base`; normalised, `(d_k - sum_j s_j d_j) / sum c` with s = c / sum c, and 0 where that sum is."""
        base, experts = scales
        if not self._normalize:
            return np.asarray(experts + base[:, None])
        total = coefficients.sum(axis=1, keepdims=True)
        share = np.divide(coefficients, total, out=np.zeros_like(coefficients), where=total != 0)
        centred = experts - (share * experts).sum(axis=1, keepdims=True)
        return np.asarray(np.divide(centred, total, out=np.zeros_like(centred), where=total != 0))
