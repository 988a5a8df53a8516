"""How does a recipe become weights? One resident model rewritten in place, or tensors streamed for an export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces.errors import NonFinite, PoolError
from searchspaces.facts.process import processed, processing
from searchspaces.method import check_linear
from searchspaces.models.layout import Place
from searchspaces.models.loading import copied_targets, input_device, load_base, targets
from searchspaces.models.loading import load_model as load_model
from searchspaces.models.pool import Pool
from searchspaces.recipe import Recipe
from searchspaces.weights.accelerator import Accelerated, Hold, Limit
from searchspaces.weights.compositions import Compositions
from searchspaces.weights.gradient import Slope, cosines
from searchspaces.weights.merger import Mapped, Merged, Merger
from searchspaces.weights.merging import Merging
from searchspaces.weights.spread import Where

T = TypeVar("T")
R = TypeVar("R")

KEPT = (
    8  # pools of processed task vectors that stay open: mapped ones cost nothing, and others go where a device is full
)


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

    def __init__(
        self,
        pool: Pool,
        device: Where = "cpu",
        dtype: torch.dtype | None = None,
        threads: int = 1,
        hold: Hold = "auto",
        limit: Limit | None = None,
        pools: Callable[[Recipe], Pool] | None = None,
    ) -> None:
        """Load the model on a device, or on several; no remote code is run, and nothing is fetched.

        Each tensor is merged on the device that it lives on. `hold` says whether base and experts are copied to those
        devices, or streamed there for every candidate; auto copies them where they fit in `limit`, and reads mapped
        pages on the CPU. `pools` gives the pool that a recipe merges, by default what `processed` makes of this one.
        Raises PoolError where transformers has no such architecture, or loads a merged tensor as
        something else, and where what is to live on a device has no room there. Parameters that the base does not store
        (a pooler, say) are NaN: what they touch is refused, never random.
        """
        self.model: Any = load_base(pool, device, dtype)
        self._pool = pool.original
        self._places = targets(pool, self.model)
        self._rooms = {name: _room(place) for name, place in self._places.items()}
        self._threads = ThreadPoolExecutor(threads, "merge") if threads > 1 else None
        self._hold, self._limit, self._count = hold, limit, threads
        self._pools = pools or (lambda recipe: processed(pool, recipe.method, recipe.options, recipe.models or None))
        self._kept = copied_targets(pool, self.model)
        self._expert = False  # the weights are an expert's
        self._merging: dict[str, Merging] = {}  # by what was done to the task vectors, the last used last

    @torch.no_grad()
    def write(self, recipe: Recipe) -> None:
        """Make the model's weights those of the recipe, in place, in the model's dtype; sums are fp32.

        Raises RecipeError where the recipe is not of this pool, and NonFinite, naming the tensor, where a weight came
        out NaN or infinite: the model then is no candidate until the next `write`.
        """
        merging = self._of(recipe)
        compositions = merging.compositions(recipe)
        self._restore()
        bad = [name for merger in merging.mergers.values() for name in merger.write(compositions)]
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
        expert = self._pool.opened[name]
        self._restore()
        for tensor, room in self._rooms.items():
            room.copy_(expert.tensor(tensor).reshape(-1))
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

    @torch.no_grad()
    def write_base(self) -> None:
        """Make the model the base, bit for bit in the model's dtype, whatever a method makes of its coefficients."""
        self._restore()
        for tensor, room in self._rooms.items():
            room.copy_(self._pool.base.tensor(tensor).reshape(-1))
        self._place()

    def has_heads(self, name: str) -> bool:
        """Whether the model has a place for each head of an expert's own, so that `write_expert` can bring them."""
        return self._pool.heads.get(name, {}).keys() <= self._kept.keys()

    @contextmanager
    def tracking(self) -> Iterator[None]:
        """Inside, merged parameters require gradients; none of it is left afterwards. No dropout: eval mode stays."""
        try:
            for place in self._trained():
                place.requires_grad_(True)
            yield
        finally:
            self.forget()
            for place in self._trained():
                place.requires_grad_(False)

    def forget(self) -> None:
        """Drop the gradients that backward passes have added up."""
        for place in self._trained():
            place.forget()

    def gradient(self, recipe: Recipe) -> NDArray[np.float64]:
        """dL/dc, `(G, K)` in the recipe's groups and experts; L is what was differentiated inside `tracking`.

        By a composition's weights it is `<dL/dW, u_k>` (and `<dL/dW, theta_0>` by the base's), summed over a group's
        tensors; then the chain rule through the method. The same bits whatever the number of threads. Raises NonFinite,
        naming the tensor, and RecipeError where the method is not linear.
        """
        merging = self._of(recipe)
        compositions = merging.compositions(recipe)
        check_linear(recipe.method, compositions.method)
        found = merging.by_group(compositions, merging.products(compositions)[:, :-1])
        return self._ordered(recipe, compositions.pull(found[:, -1], found[:, :-1]))

    def cosines(self, recipe: Recipe) -> NDArray[np.float64]:
        """The sum over each group's tensors of `cos(dL/dW_t, theta_kt)`, `(G, K)`, otherwise as `gradient`."""
        merging = self._of(recipe)
        found = cosines(merging.slopes, merging.products(None))
        return self._ordered(recipe, merging.by_group(merging.compositions(recipe), found))

    def sizes(self, recipe: Recipe) -> NDArray[np.float64]:
        """The sum over each group's elements of `|theta_k - theta_0|`, `(G, K)` as in `gradient`."""
        merging = self._of(recipe)
        found = np.array(list(self._map(Slope.sizes, merging.slopes)))
        return self._ordered(recipe, merging.by_group(merging.compositions(recipe), found))

    def grams(self, recipe: Recipe, part: tuple[int, int] = (0, 1)) -> NDArray[np.float64]:
        """Of the task vectors, each row `(G, K)` as in `gradient`: inner products with each of them, then the sums of
        their entries, then how many these are; `(K + 2, G, K)`. Of part i of n, over every n-th tensor from the i-th.
        """
        merging, count = self._of(recipe), len(self._pool.names)
        found = np.zeros((len(merging.slopes), (count + 2) * count))
        ours = merging.slopes[part[0] :: part[1]]
        found[part[0] :: part[1]] = [rows.ravel() for rows in self._map(Slope.grams, ours)] or 0.0
        by_group = merging.by_group(merging.compositions(recipe), found).reshape(-1, count + 2, count)
        order = [self._pool.names.index(name) for name in recipe.experts]
        return by_group[:, [*order, count, count + 1]][:, :, order].transpose(1, 0, 2)

    @property
    def device(self) -> torch.device:
        """Where the model's inputs belong."""
        return input_device(self.model)

    def placement(self) -> dict[str, list[str]]:
        """Device -> the merged tensors that live there, in the model's order."""
        found: dict[str, list[str]] = {}
        for name, room in self._rooms.items():
            found.setdefault(str(room.device), []).append(name)
        return found

    def reads(self, recipe: Recipe) -> dict[str, str]:
        """Device -> where what a recipe merges there is read from, for people."""
        return {str(device): merger.describe() for device, merger in self._of(recipe).mergers.items()}

    def _of(self, recipe: Recipe) -> Merging:
        """What merges a recipe: made at the first of its kind. Those that it leaves no room for on a device go."""
        what = processing(recipe.method, recipe.options)
        found = self._merging.pop(what, None)
        if found is None:
            found = Merging(self._pools(recipe), self._places, self._rooms, self._merger, self._map, self._count)
            while self._merging and (len(self._merging) >= KEPT or not found.fits()):
                self._merging.pop(next(iter(self._merging)))
                torch.cuda.empty_cache()  # or what they held would count as taken; of no CUDA, nothing
        self._merging[what] = found
        return found

    def _merger(self, device: torch.device, tensors: Sequence[Merged]) -> Merger:
        if device.type == "cpu" and self._hold == "auto":
            return Mapped(tensors, self._map)
        return Accelerated(device, tensors, self._hold, self._limit, self._count)

    def _trained(self) -> list[Place]:
        return [place for place in self._places.values() if place.trained]

    def _map(self, function: Callable[[T], R], over: Iterable[T]) -> Iterator[R]:
        """In the order of `over`, side by side where there are threads."""
        return self._threads.map(function, over) if self._threads else map(function, over)

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
        for name, place in self._places.items():
            if place.flat is None:
                place.write(self._rooms[name])


def merged_tensors(pool: Pool, recipe: Recipe, dtype: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the merged model by the base's names, one at a time, on the CPU; copied ones are the base's.

    `dtype` None keeps the base's; with the dtype of a `Resident` on the CPU, weights have its very bits. Raises as
    `Resident.write`.
    """
    compositions = Compositions.of(pool, recipe)
    for info in (*pool.merged, *pool.copied):
        if info.name not in compositions.group:
            tensor = pool.base.tensor(info.name)
            yield info.name, tensor.to(dtype) if dtype and info.dtype.is_floating_point else tensor
            continue
        out = torch.empty(info.shape, dtype=dtype or info.dtype)
        if not Merged.of(pool, info.name, out.view(-1)).write(compositions, 0, out.numel()):
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
