"""Which candidates can be reached? The map between a driver's points and recipes, with anchors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from searchspaces import methods, simplex
from searchspaces.domain import Domain, Point
from searchspaces.errors import RecipeError
from searchspaces.groups import group_tensors
from searchspaces.method import Option, complete
from searchspaces.recipe import Recipe

Bounds = tuple[float, float]
T = TypeVar("T")
SLACK = 1e-9  # of a bound's range: rounding of `low + (high - low) * u` is no error


class CoefficientSpace:
    """Layer-wise coefficients of a merge method, as a box that a driver can search.

    A point is float64 of shape `(dim,)`, group-major over the groups that are not frozen: coordinate `g * K + k`. In a
    free space it is the coefficients themselves. With `simplex` each group's coefficients are non-negative and sum to
    at most 1 (the rest stays with the base), and a point is their image in `[0, 1]^K` (see `searchspaces.simplex`).

    `tensors` are the merged tensors' names; `bounds` and `start` hold for all experts, or map expert to value; `frozen`
    are fnmatch patterns of groups or tensors whose groups keep their starting coefficients; `hashes` are the models',
    and `blocks` the pool's.
    Raises RecipeError for bounds upside down, a start outside them, patterns that match nothing, and nothing left.
    """

    def __init__(
        self,
        tensors: Sequence[str],
        experts: Sequence[str],
        method: str = "task_arithmetic",
        options: Mapping[str, Option] | None = None,
        granularity: str = "layer",
        bounds: Bounds | Mapping[str, Bounds] = (0.0, 1.0),
        start: float | Mapping[str, float] = 0.3,
        frozen: Sequence[str] = (),
        simplex: bool = False,
        seed: int = 0,
        hashes: Mapping[str, str] | None = None,
        blocks: Sequence[str] = (),
    ) -> None:
        kind = methods.load(method)
        self._made_from = {
            "tensors": list(tensors), "experts": list(experts), "method": method, "options": dict(options or {}),
            "granularity": granularity, "bounds": dict(bounds) if isinstance(bounds, Mapping) else bounds,
            "start": dict(start) if isinstance(start, Mapping) else start, "frozen": list(frozen), "simplex": simplex,
            "seed": seed, "hashes": dict(hashes or {}), **({"blocks": list(blocks)} if blocks else {}),
        }  # fmt: skip
        self.method = method
        self.options = complete(method, kind.defaults, options or {})
        self.granularity = granularity
        self.experts = tuple(experts)
        self.simplex = simplex
        self._rule = kind(self.options)
        self._seed = seed if kind.random else 0
        self._hashes = dict(hashes or {})
        self._blocks = tuple(blocks)
        self.groups = group_tensors(tensors, granularity, blocks)
        self._names = tuple(self.groups)
        if not self._names or not self.experts:
            raise RecipeError("a space needs merged tensors and experts; see models.experts and models.exclude")
        low, high = self._bounds(bounds)
        begin = self._start(start, low, high)
        held = self._frozen(frozen)
        self._free = np.array([g for g, name in enumerate(self._names) if name not in held], dtype=np.int64)
        if not len(self._free):
            raise RecipeError(f"frozen patterns {list(frozen)} hold every group: nothing is left to search")
        self._template = np.tile(begin, (len(self._names), 1))
        self.domain = self._domain(low, high)
        self._slack = SLACK * (self.domain.high - self.domain.low)

    def decode(self, point: Point) -> Recipe:
        """The recipe of a point; its values are taken as they are, never clamped.

        Raises RecipeError for another length than the domain's, for NaN, and for a coordinate outside its bounds.
        """
        point = np.asarray(point, dtype=np.float64)
        domain = self.domain
        if point.shape != domain.low.shape:
            raise RecipeError(f"a point of this space has shape {domain.low.shape}, got {point.shape}")
        inside = (point >= domain.low - self._slack) & (point <= domain.high + self._slack)
        if not inside.all():
            i = int(np.argmin(inside))
            raise RecipeError(
                f"coordinate {domain.names[i]} is {point[i]}, outside [{domain.low[i]}, {domain.high[i]}]; "
                "widen space.bounds, or ask within them"
            )
        block = point.reshape(domain.shape)
        # clipping undoes rounding of at most SLACK: outside [0, 1] the bijection has no value
        return self._recipe(simplex.decode(np.clip(block, 0.0, 1.0)) if self.simplex else block)

    def encode(self, recipe: Recipe) -> Point:
        """The point that decodes to a recipe, float64 `(dim,)`: the inverse of `decode`, to rounding in a simplex.

        A recipe of coarser groups is lifted: each finer group takes the coefficients of the one that holds its tensors.
        Raises RecipeError for another method, options, experts or models, and where frozen groups or bounds disagree.
        """
        if (recipe.method, dict(recipe.options)) != (self.method, self.options):
            raise RecipeError(
                f"the recipe is {recipe.method} {dict(recipe.options)}, "
                f"this space {self.method} {self.options}; make a space of the recipe's method"
            )
        if set(recipe.experts) != set(self.experts) or len(recipe.experts) != len(self.experts):
            raise RecipeError(f"the recipe's experts are {list(recipe.experts)}, this space's {list(self.experts)}")
        if self._hashes and recipe.models and dict(recipe.models) != self._hashes:
            raise RecipeError("the recipe was made from other models; encode it in a space over those")
        values = self._lift(recipe)[:, [recipe.experts.index(e) for e in self.experts]]
        held = np.setdiff1d(np.arange(len(self._names)), self._free)
        if not np.array_equal(values[held], self._template[held]):
            raise RecipeError("the recipe changes groups that this space holds at their start; unfreeze them")
        block = values[self._free]
        if self.simplex:
            if (block < 0).any() or (block.sum(axis=1) > 1 + SLACK).any():
                raise RecipeError("the recipe leaves the simplex: coefficients are >= 0 and sum to at most 1")
            block = simplex.encode(block)
        point = block.ravel()
        self.decode(point)  # refuses what lies outside the bounds
        return point

    def select(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of one number a group and expert, `(groups, experts)`, those that a point has: `(dim,)`."""
        return values[self._free].ravel()

    def pull(self, point: Point, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        """The chain rule through `decode`: from a derivative by coefficients `(groups, experts)` to one `(dim,)`."""
        if not self.simplex:
            return self.select(gradient)
        block = np.clip(np.asarray(point, dtype=np.float64).reshape(self.domain.shape), 0.0, 1.0)
        return simplex.pull(block, gradient[self._free]).ravel()

    def describe(self) -> dict[str, object]:
        """What `CoefficientSpace(**described)` makes this space from again, as JSON values; no models are needed."""
        return json.loads(json.dumps(self._made_from))  # type: ignore[no-any-return]

    def anchors(self) -> list[tuple[str, Point]]:
        """Points worth asking first, by label: base, each expert, uniform, and a sweep of one global coefficient.

        Those outside the bounds or the simplex are left out, and so are repetitions; frozen groups keep their start.
        """
        count, unit = len(self.experts), self._rule.unit
        wanted = [("base", np.zeros(count))] if self._has_base() else []
        wanted += [(f"expert: {name}", unit * np.eye(count)[k]) for k, name in enumerate(self.experts)]
        wanted += [("uniform", np.full(count, unit / count))]
        wanted += [(f"global {value:g}", np.full(count, value)) for value in self._rule.sweep]
        found: dict[bytes, tuple[str, Point]] = {}
        for label, row in wanted:
            try:
                point = self.encode(self._recipe(np.tile(row, (len(self._free), 1))))
            except RecipeError:
                continue
            found.setdefault(point.tobytes(), (label, point))
        return list(found.values())

    def _recipe(self, block: NDArray[np.float64]) -> Recipe:
        values = self._template.copy()
        values[self._free] = block
        return Recipe(
            self.method, self.options, self.granularity, self._names, self.experts, values, self._hashes, self._seed
        )

    def _domain(self, low: Point, high: Point) -> Domain:
        count = len(self._free)
        names = tuple(f"{self._names[g]}|{e}" for g in self._free for e in self.experts)
        begin = self._template[self._free]
        if self.simplex:
            low, high, begin = np.zeros_like(low), np.ones_like(high), simplex.encode(begin)
        box = (np.tile(low, count), np.tile(high, count), begin.ravel())
        shape, rule = (count, len(self.experts)), self._rule
        uniform = np.full(shape, rule.unit / shape[1])
        base = np.zeros(shape) if self._has_base() and rule.affine else None  # 0 is 0 in a simplex too
        vertices = None
        if rule.affine and not self.simplex:
            vertices = rule.unit * np.tile(np.eye(shape[1]), count)
        return Domain(
            *(names, *box, shape, self._layers()),
            base=None if base is None else base.ravel(),
            uniform=(simplex.encode(uniform) if self.simplex else uniform).ravel(),
            vertices=vertices,
        )

    def _has_base(self) -> bool:
        """Whether all coefficients 0 give the base."""
        base, experts = self._rule.mix(np.zeros((1, len(self.experts))))
        return bool(base[0] == 1 and not experts.any())

    def _layers(self) -> tuple[str, ...]:
        """Each free group's layer."""
        if self.granularity == "model":
            return ("model",)
        every = [t for tensors in self.groups.values() for t in tensors]
        layer = {t: name for name, tensors in group_tensors(every, "layer", self._blocks).items() for t in tensors}
        return tuple(layer[self.groups[self._names[g]][0]] for g in self._free)

    def _bounds(self, bounds: Bounds | Mapping[str, Bounds]) -> tuple[Point, Point]:
        table = self._by_expert("bounds", bounds, (0.0, 1.0))
        for name, (low, high) in table.items():
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise RecipeError(f"bounds of {name} are [{low}, {high}]; expected finite numbers, the lower first")
            if self.simplex and (low, high) != (0.0, 1.0):
                raise RecipeError("a simplex has bounds of its own, [0, 1]; remove space.bounds")
        pairs = np.array(list(table.values()), dtype=np.float64)
        return pairs[:, 0].copy(), pairs[:, 1].copy()

    def _start(self, start: float | Mapping[str, float], low: Point, high: Point) -> Point:
        table = self._by_expert("start", start, 0.3)
        for (name, value), least, most in zip(table.items(), low, high, strict=True):
            if not least <= value <= most:
                raise RecipeError(
                    f"start of {name} is {value}, outside [{least}, {most}]; set space.start inside bounds"
                )
        values = np.array(list(table.values()), dtype=np.float64)
        if self.simplex and values.sum() > 1 + SLACK:
            raise RecipeError(
                f"in a simplex starts sum to at most 1, these sum to {values.sum():g}; "
                f"set space.start to {1 / len(values):.3g} or less"
            )
        return values

    def _by_expert(self, what: str, value: T | Mapping[str, T], default: T) -> dict[str, T]:
        if not isinstance(value, Mapping):
            return {name: value for name in self.experts}
        if odd := value.keys() - set(self.experts):
            raise RecipeError(f"{what} names {min(odd)!r}, which is no expert; there are: {', '.join(self.experts)}")
        return {name: value.get(name, default) for name in self.experts}

    def _frozen(self, patterns: Sequence[str]) -> set[str]:
        held: set[str] = set()
        for pattern in patterns:
            found = {
                group
                for group, tensors in self.groups.items()
                if fnmatchcase(group, pattern) or any(fnmatchcase(t, pattern) for t in tensors)
            }
            if not found:
                raise RecipeError(
                    f"frozen pattern {pattern!r} matches no group and no tensor; groups are for example "
                    f"{', '.join(self._names[:3])}"
                )
            held |= found
        return held

    def _lift(self, recipe: Recipe) -> NDArray[np.float64]:
        """Coefficients `(groups, experts of the recipe)` over this space's groups."""
        if recipe.groups == self._names:
            return recipe.coefficients
        every = [t for tensors in self.groups.values() for t in tensors]
        coarse = group_tensors(every, recipe.granularity, self._blocks)
        if set(coarse) != set(recipe.groups):
            raise RecipeError("the recipe's groups are not those of these tensors; it is of another pool")
        row = {t: recipe.groups.index(group) for group, tensors in coarse.items() for t in tensors}
        lifted = np.empty((len(self._names), len(recipe.experts)))
        for g, tensors in enumerate(self.groups.values()):
            rows = recipe.coefficients[sorted({row[t] for t in tensors})]
            if (rows != rows[0]).any():
                raise RecipeError(
                    f"the recipe gives the tensors of group {self._names[g]!r} different coefficients; "
                    f"a space of granularity {recipe.granularity} can hold it"
                )
            lifted[g] = rows[0]
        return lifted
