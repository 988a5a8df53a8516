"""What becomes of every tensor in one candidate? A recipe's compositions, experts in the pool's order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from searchspaces import methods
from searchspaces.composition import Composition
from searchspaces.errors import RecipeError
from searchspaces.facts.known_facts import KnownFacts
from searchspaces.facts.process import processing
from searchspaces.method import Method
from searchspaces.models.pool import Pool
from searchspaces.option import Option, complete
from searchspaces.recipe import Recipe
from searchspaces.row import Row
from searchspaces.weights.packed import Packed

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True, eq=False)
class Compositions:
    """A recipe's composition of each merged tensor, by name, and what they were made from."""

    method: Method
    rows: tuple[Row, ...]  # (G,), experts in the pool's order
    group: Mapping[str, int]  # tensor name -> group
    found: Mapping[str, Composition]
    shapes: Mapping[str, tuple[int, ...]]
    _packed: dict[str, Packed] = field(default_factory=dict)

    @classmethod
    def of(cls, pool: Pool, recipe: Recipe, facts: KnownFacts | None = None, map_: Map = map) -> Compositions:
        """`facts` are those of the pool for the recipe's seed; by default they are found, and looked for on the disk.

        Raises RecipeError where the recipe is of another pool.
        """
        _check(pool, recipe)
        method, rows = rule_of(recipe), _rows(pool, recipe)
        group = {t: g for g, tensors in enumerate(pool.groups(recipe.granularity).values()) for t in tensors}
        known = facts or KnownFacts(pool, recipe.models or None, recipe.seed)
        with np.errstate(over="ignore"):  # beyond fp32: the weights become infinite, and are refused as such
            made = list(map_(lambda name: method.compose(rows[group[name]], known.of(name)), group))
        return cls(method, rows, group, dict(zip(group, made, strict=True)), {t.name: t.shape for t in pool.merged})

    def at(self, name: str) -> Composition | Packed:
        """A tensor's composition: as it is where it is plain, else in the kernels' words, and packed once."""
        composition = self.found[name]
        if composition.plain:
            return composition
        if name not in self._packed:  # two threads may pack the same: no matter
            self._packed[name] = Packed.of(composition, self.shapes[name])
        return self._packed[name]

    def pull(self, base: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """From derivatives by base scales `(G,)` and weights `(G, K)` to those by the coefficients, `(G, K)`."""
        return np.array([self.method.pull(r, float(b), w) for r, b, w in zip(self.rows, base, weights, strict=True)])


def rule_of(recipe: Recipe) -> Method:
    """The recipe's method, made from its options."""
    kind = methods.load(recipe.method)
    return kind(complete(recipe.method, kind.options, recipe.options))


def _rows(pool: Pool, recipe: Recipe) -> tuple[Row, ...]:
    specs = methods.load(recipe.method).options
    options = complete(recipe.method, specs, recipe.options)
    columns = [recipe.experts.index(name) for name in pool.names]
    return tuple(
        Row.of(specs, recipe.coefficients[:, columns], {n: _ordered(v, columns) for n, v in options.items()}, g)
        for g in range(len(recipe.groups))
    )


def _ordered(value: Option, columns: list[int]) -> Option:
    """An option by expert in the pool's order."""
    return value[:, columns] if isinstance(value, np.ndarray) and value.shape[1] > 1 else value


def _check(pool: Pool, recipe: Recipe) -> None:
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
