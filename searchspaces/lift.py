"""What is a recipe of coarser groups in finer ones? Each finer group takes what the one has that holds its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from searchspaces.errors import RecipeError
from searchspaces.groups import group_tensors
from searchspaces.recipe import Recipe


class Lift:
    """From numbers by a recipe's groups to numbers by `groups` (name -> tensors), whose blocks these are.

    Where they are by expert too, `experts` says in which order they are to be: the recipe's, in another. Raises
    RecipeError where the recipe's groups are not those of these tensors.
    """

    def __init__(
        self, recipe: Recipe, groups: Mapping[str, Sequence[str]], blocks: Sequence[str], experts: Sequence[str]
    ) -> None:
        self._granularity, self._groups = recipe.granularity, groups
        self._order = [recipe.experts.index(e) for e in experts]
        self._row: dict[str, int] | None = None  # tensor -> group of the recipe; none where groups are the same
        if recipe.groups == tuple(groups):
            return
        every = [t for tensors in groups.values() for t in tensors]
        coarse = group_tensors(every, recipe.granularity, blocks)
        if set(coarse) != set(recipe.groups):
            raise RecipeError("the recipe's groups are not those of these tensors; it is of another pool")
        self._row = {t: recipe.groups.index(group) for group, tensors in coarse.items() for t in tensors}

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """From `(groups of the recipe, n)` to `(groups, n)`, n being 1 or the number of experts.

        Raises RecipeError where a group would have several.
        """
        if values.shape[1] == len(self._order):
            values = values[:, self._order]
        if self._row is None:
            return values
        lifted = np.empty((len(self._groups), values.shape[1]))
        for g, (name, tensors) in enumerate(self._groups.items()):
            rows = values[sorted({self._row[t] for t in tensors})]
            if (rows != rows[0]).any():
                raise RecipeError(
                    f"the recipe gives the tensors of group {name!r} different coefficients or options; "
                    f"a space of granularity {self._granularity} can hold it"
                )
            lifted[g] = rows[0]
        return lifted
