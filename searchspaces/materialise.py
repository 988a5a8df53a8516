"""How does a recipe become weights? One resident model rewritten in place, or tensors streamed for an export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces import methods
from searchspaces.errors import NonFinite, PoolError, RecipeError
from searchspaces.gradient import SLICE, Slope, cosines, products
from searchspaces.layout import Place
from searchspaces.loading import copied_targets, load_base, targets
from searchspaces.loading import load_model as load_model
from searchspaces.method import Method
from searchspaces.pool import Pool
from searchspaces.process import processing
from searchspaces.recipe import Recipe
from searchspaces.sources import Sources

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class _Job:
    """One merged tensor: where its values come from, and where the result goes, flat and contiguous."""

    name: str
    sources: Sources
    out: torch.Tensor

    @classmethod
    def of(cls, pool: Pool, name: str, out: torch.Tensor) -> _Job:
        return cls(name, Sources.of(pool, name), out)


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

    def run(self, job: _Job, start: int, stop: int) -> bool:
        g = self.row[job.name]
        return job.sources.merge(job.out, float(self.base[g]), self.experts[g], start, stop)


def rule_of(recipe: Recipe) -> Method:
    """The recipe's method, made from its options."""
    return methods.load(recipe.method)(recipe.options)


class Resident:
    """The base's transformers model, loaded once, whose weights `write` makes those of a recipe.

    Its derivative by the recipe's coefficients:

        resident.write(recipe)
        with resident.tracking():
            loss(resident.model).backward()  # any number of them: gradients add up
            slope = resident.gradient(recipe)

    `dtype` None keeps the base's. On the CPU the same recipe gives the same bits whatever the number of threads. The
    experts' pages belong to the system's cache and are shared by every process of the host.
    """

    def __init__(self, pool: Pool, device: str = "cpu", dtype: torch.dtype | None = None, threads: int = 1) -> None:
        """Load the model on a device; no remote code is run, and nothing is fetched.

        Raises PoolError where transformers has no such architecture, or loads a merged tensor as something else.
        Parameters that the base does not store (a pooler, say) are NaN: what they touch is refused, never random.
        """
        self.model: Any = load_base(pool, device, dtype)
        self._pool = pool
        places = targets(pool, self.model)
        self._jobs = [_Job.of(pool, name, _room(place)) for name, place in places.items()]
        # what a model keeps in another order than it is stored is merged aside, and copied in
        self._aside = [(places[job.name], job.out) for job in self._jobs if places[job.name].flat is None]
        self._slices = [
            (job, at, min(at + SLICE, len(job.out))) for job in self._jobs for at in range(0, len(job.out), SLICE)
        ]
        self._threads = ThreadPoolExecutor(threads, "merge") if threads > 1 and device == "cpu" else None
        self._kept = copied_targets(pool, self.model)
        self._expert = False  # the weights are an expert's
        self._slopes = [
            Slope(job.name, job.sources, places[job.name]) for job in self._jobs if places[job.name].trained
        ]

    @torch.no_grad()
    def write(self, recipe: Recipe) -> None:
        """Make the model's weights those of the recipe, in place, in the model's dtype; sums are fp32.

        Raises RecipeError where the recipe is not of this pool, and NonFinite, naming the tensor, where a weight came
        out NaN or infinite: the model then is no candidate until the next `write`.
        """
        scales = Scales.of(self._pool, recipe)
        self._restore()

        def one(part: tuple[_Job, int, int]) -> str | None:
            return None if scales.run(*part) else part[0].name

        found = self._map(one, self._slices)
        # the whole map is drained before anything is raised: no thread writes on after we return
        bad = [name for name in found if name is not None]
        if bad:
            raise _not_finite(bad[0])
        self._place()

    @torch.no_grad()
    def write_expert(self, name: str, heads: bool = False) -> None:
        """Make the model that expert, as it was opened, whatever merges do to it; the next `write` undoes it.

        What merges take from the base is the expert's too where it has its own. So are its heads with `heads`; else
        they stay the base's, for evaluators that bring them. Raises KeyError for a name that is no expert's, and
        PoolError where the model has no place for a head.
        """
        expert = self._pool.original.experts[name]
        for job in self._jobs:
            job.out.copy_(expert.tensor(job.name).reshape(-1))
        self._place()
        own = self._pool.heads.get(name, {})
        if heads and (homeless := sorted(own.keys() - self._kept.keys())):
            raise PoolError(
                f"expert {name!r} has a head {homeless[0]!r} of its own, for which the base's model has no place (it "
                "ties its output layer, say): its outputs as a teacher cannot be computed; save base and experts alike"
            )
        for tensor, out in self._kept.items():
            found = expert.tensors.get(tensor)
            if found is not None and found.shape == out.shape and (heads or tensor not in own):
                out.write(expert.tensor(tensor))
        self._expert = True

    @contextmanager
    def tracking(self) -> Iterator[None]:
        """Inside, merged parameters require gradients; none of it is left afterwards. No dropout: eval mode stays."""
        try:
            for slope in self._slopes:
                slope.parameter.requires_grad_(True)
            yield
        finally:
            self.forget()
            for slope in self._slopes:
                slope.parameter.requires_grad_(False)

    def forget(self) -> None:
        """Drop the gradients that backward passes have added up."""
        for slope in self._slopes:
            slope.parameter.forget()

    def gradient(self, recipe: Recipe) -> NDArray[np.float64]:
        """dL/dc, `(G, K)` in the recipe's groups and experts; L is what was differentiated inside `tracking`.

        For a group's scales it is `<dL/dW, theta_k - theta_0>` (and `<dL/dW, theta_0>` for the base's), then the chain
        rule through the method. The same bits whatever the number of threads. Raises NonFinite, naming the tensor.
        """
        scales = Scales.of(self._pool, recipe)
        by_tensor = products(self._slopes, self._map)
        found = self._by_group(scales, by_tensor[:, :-1])
        pulled = rule_of(recipe).pull(recipe.coefficients, (found[:, -1], self._ordered(recipe, found[:, :-1])))
        return np.ascontiguousarray(pulled)

    def cosines(self, recipe: Recipe) -> NDArray[np.float64]:
        """The sum over each group's tensors of `cos(dL/dW_t, theta_kt)`, `(G, K)`, otherwise as `gradient`."""
        scales = Scales.of(self._pool, recipe)
        by_tensor = cosines(self._slopes, products(self._slopes, self._map))
        return self._ordered(recipe, self._by_group(scales, by_tensor))

    def sizes(self, recipe: Recipe) -> NDArray[np.float64]:
        """The sum over each group's elements of `|theta_k - theta_0|`, `(G, K)` as in `gradient`."""
        scales = Scales.of(self._pool, recipe)
        by_tensor = np.array(list(self._map(Slope.sizes, self._slopes)))
        return self._ordered(recipe, self._by_group(scales, by_tensor))

    def _map(self, function: Callable[[T], R], over: Iterable[T]) -> Iterator[R]:
        """In the order of `over`, side by side where there are threads."""
        return self._threads.map(function, over) if self._threads else map(function, over)

    def _by_group(self, scales: Scales, by_tensor: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums over the tensors of each group, in the tensors' order: from `(tensors, n)` to `(G, n)`."""
        found = np.zeros((len(scales.base), by_tensor.shape[1]))
        np.add.at(found, [scales.row[slope.name] for slope in self._slopes], by_tensor)
        return found

    def _ordered(self, recipe: Recipe, found: NDArray[np.float64]) -> NDArray[np.float64]:
        """Columns from the pool's order of experts to the recipe's."""
        return found[:, [self._pool.names.index(name) for name in recipe.experts]]

    def _restore(self) -> None:
        """What `write_expert` changed beside the merged tensors."""
        if self._expert:
            for name, out in self._kept.items():
                out.write(self._pool.base.tensor(name))
            self._expert = False

    def _place(self) -> None:
        """Copy in what was merged aside."""
        for place, merged in self._aside:
            place.write(merged)


def merged_tensors(pool: Pool, recipe: Recipe, dtype: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the merged model by the base's names, one at a time, on the CPU; copied ones are the base's.

    `dtype` None keeps the base's; with the dtype of a `Resident` on the CPU, weights have its very bits. Raises as
    `Resident.write`.
    """
    scales = Scales.of(pool, recipe)
    for info in (*pool.merged, *pool.copied):
        if info.name not in scales.row:
            tensor = pool.base.tensor(info.name)
            yield info.name, tensor.to(dtype) if dtype and info.dtype.is_floating_point else tensor
            continue
        out = torch.empty(info.shape, dtype=dtype or info.dtype)
        if not scales.run(_Job.of(pool, info.name, out.view(-1)), 0, out.numel()):
            raise _not_finite(info.name)
        yield info.name, out


def _room(place: Place) -> torch.Tensor:
    """Where a tensor is merged, flat: in the model itself, or aside where the model keeps it in another order."""
    first = place.parts[0].view
    if place.flat is not None:
        return place.flat
    return torch.empty(place.shape, dtype=first.dtype, device=first.device).view(-1)


def _not_finite(name: str) -> NonFinite:
    return NonFinite(f"merged tensor {name!r} has NaN or infinity; the coefficients are too large for its dtype")
