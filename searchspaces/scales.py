"""By how much is each of base and experts scaled in a merge? A linear recipe's coefficients, as numbers by group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from searchspaces import methods
from searchspaces.errors import RecipeError
from searchspaces.method import Method
from searchspaces.pool import Pool
from searchspaces.process import processing
from searchspaces.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Scales:
    """A linear recipe's scales by group, and each merged tensor's group."""

    base: NDArray[np.float32]  # (G,)
    experts: NDArray[np.float32]  # (G, K), experts in the pool's order
    row: dict[str, int]  # tensor name -> group

    @classmethod
    def of(cls, pool: Pool, recipe: Recipe) -> Scales:
        """Raises RecipeError where the recipe is of another pool."""
        if set(recipe.experts) != set(pool.names) or len(recipe.experts) != len(pool.names):
            raise RecipeError(f"the recipe's experts are {list(recipe.experts)}, the pool's {list(pool.names)}")
        if pool.processing != (wanted := processing(recipe.method, recipe.options)):
            raise RecipeError(
                f"the recipe merges task vectors processed by {wanted or 'nothing'}, this pool's are processed by "
                f"{pool.processing or 'nothing'}; make the pool that it needs with searchspaces.processed"
            )
        groups = pool.groups(recipe.granularity)
        if tuple(groups) != recipe.groups:
            odd = min(set(groups) ^ set(recipe.groups), default=recipe.granularity)
            raise RecipeError(f"the recipe's groups are not this pool's ({odd!r}); it is of another pool")
        rule = rule_of(recipe)
        columns = [recipe.experts.index(name) for name in pool.names]
        with np.errstate(over="ignore"):  # beyond fp32: the weights become infinite, and are refused as such
            base, experts = (s.astype(np.float32) for s in rule.mix(recipe.coefficients))
        row = {t: g for g, tensors in enumerate(groups.values()) for t in tensors}
        return cls(base, np.ascontiguousarray(experts[:, columns]), row)

    def at(self, name: str) -> tuple[float, NDArray[np.float32]]:
        """The base's scale, and the experts' `(K,)`, of one merged tensor."""
        g = self.row[name]
        return float(self.base[g]), self.experts[g]


def rule_of(recipe: Recipe) -> Method:
    """The recipe's method, made from its options."""
    return methods.load(recipe.method)(recipe.options)
