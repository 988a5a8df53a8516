"""What is task arithmetic? The base plus scaled task vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from searchspaces.errors import RecipeError
from searchspaces.method import Mix, Option


class TaskArithmetic:
    """`W = theta_0 + lambda * sum_k c_k (theta_k - theta_0)` (Ilharco et al., ICLR 2023).

    Option `lambda` (1.0) scales the sum, as mergekit's option of that name does. All coefficients 0 give the base.
    """

    summary: ClassVar[str] = "base + lambda * sum of coefficient * (expert - base)"
    defaults: ClassVar[Mapping[str, Option]] = {"lambda": 1.0}
    linear: ClassVar[bool] = True
    random: ClassVar[bool] = False
    processes: ClassVar[bool] = False

    def __init__(self, options: Mapping[str, Option]) -> None:
        self._scale = float(options["lambda"])
        if self._scale == 0.0:
            raise RecipeError("method task_arithmetic: lambda is 0, which makes every candidate the base; leave it out")
        self.unit = 1.0 / self._scale
        self.affine = True
        self.sweep = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)

    def mix(self, coefficients: NDArray[np.float64]) -> Mix:
        """Scales of the base, all 1, and of the task vectors, `lambda * c`."""
        return np.ones(len(coefficients)), self._scale * coefficients

    def pull(self, coefficients: NDArray[np.float64], scales: Mix) -> NDArray[np.float64]:
        """`lambda * d_k`; the base's scale does not depend on the coefficients."""
        return self._scale * scales[1]
