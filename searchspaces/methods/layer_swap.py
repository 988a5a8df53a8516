"""What is layer swapping? Each group of tensors comes whole from the base, or from one of the experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from searchspaces.algebra.span import InSpan
from searchspaces.composition import Composition
from searchspaces.errors import RecipeError
from searchspaces.facts.facts import Facts
from searchspaces.option import Spec
from searchspaces.row import Row


class LayerSwap(InSpan):
    """`W = theta_k` where a group's coefficient of expert k is 1, and `theta_0` where all are 0 (Bandarkar et al.
    2024).

    The paper takes the layers at both ends from a language's expert and those between from a task's; here each
    group's choice is a coordinate. Raises RecipeError for other coefficients than these.
    """

    summary: ClassVar[str] = "each group whole from the base or from one expert"
    options: ClassVar[Mapping[str, Spec]] = {}
    experts: ClassVar[tuple[int, int | None]] = (1, None)
    picks: ClassVar[bool] = True

    def compose(self, row: Row, facts: Facts) -> Composition:
        c = row.coefficients
        if not np.isin(c, (0.0, 1.0)).all() or c.sum() > 1:
            raise RecipeError(
                "method layer_swap takes each group from one model: expected coefficients that are all 0, or all but "
                f"one, which is 1; got {c.tolist()}"
            )
        return Composition(1.0, c)
