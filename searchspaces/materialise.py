"""How does a recipe become weights? One resident model rewritten in place, or tensors streamed for an export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces.accelerator import Accelerated, Hold, Limit
from searchspaces.errors import NonFinite, PoolError
from searchspaces.gradient import Slope, check_finite, cosines
from searchspaces.layout import Place
from searchspaces.loading import copied_targets, input_device, load_base, targets
from searchspaces.loading import load_model as load_model
from searchspaces.merger import Mapped, Merged, Merger
from searchspaces.pool import Pool
from searchspaces.recipe import Recipe
from searchspaces.scales import Scales, rule_of
from searchspaces.spread import Where

T = TypeVar("T")
R = TypeVar("R")


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
    ) -> None:
        """Load the model on a device, or on several; no remote code is run, and nothing is fetched.

        Each tensor is merged on the device that it lives on. `hold` says whether base and experts are copied to those
        devices, or streamed there for every candidate; auto copies them where they fit in `limit`, and reads mapped
        pages on the CPU. Raises PoolError where transformers has no such architecture, or loads a merged tensor as
        something else, and where what is to live on a device has no room there. Parameters that the base does not store
        (a pooler, say) are NaN: what they touch is refused, never random.
        """
        self.model: Any = load_base(pool, device, dtype)
        self._pool = pool
        places = targets(pool, self.model)
        self._merged = [Merged.of(pool, name, _room(place)) for name, place in places.items()]
        # what a model keeps in another order than it is stored is merged aside, and copied in
        self._aside = [(places[t.name], t.out) for t in self._merged if places[t.name].flat is None]
        self._threads = ThreadPoolExecutor(threads, "merge") if threads > 1 else None
        self._mergers = self._made(hold, limit, threads)
        self._kept = copied_targets(pool, self.model)
        self._expert = False  # the weights are an expert's
        self._slopes = [Slope(t.name, t.sources, places[t.name]) for t in self._merged if places[t.name].trained]

    @torch.no_grad()
    def write(self, recipe: Recipe) -> None:
        """Make the model's weights those of the recipe, in place, in the model's dtype; sums are fp32.

        Raises RecipeError where the recipe is not of this pool, and NonFinite, naming the tensor, where a weight came
        out NaN or infinite: the model then is no candidate until the next `write`.
        """
        scales = Scales.of(self._pool, recipe)
        self._restore()
        bad = [name for merger in self._mergers.values() for name in merger.write(scales)]
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
        for t in self._merged:
            t.out.copy_(expert.tensor(t.name).reshape(-1))
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
        by_tensor = self._products()
        found = self._by_group(scales, by_tensor[:, :-1])
        pulled = rule_of(recipe).pull(recipe.coefficients, (found[:, -1], self._ordered(recipe, found[:, :-1])))
        return np.ascontiguousarray(pulled)

    def cosines(self, recipe: Recipe) -> NDArray[np.float64]:
        """The sum over each group's tensors of `cos(dL/dW_t, theta_kt)`, `(G, K)`, otherwise as `gradient`."""
        scales = Scales.of(self._pool, recipe)
        by_tensor = cosines(self._slopes, self._products())
        return self._ordered(recipe, self._by_group(scales, by_tensor))

    def sizes(self, recipe: Recipe) -> NDArray[np.float64]:
        """The sum over each group's elements of `|theta_k - theta_0|`, `(G, K)` as in `gradient`."""
        scales = Scales.of(self._pool, recipe)
        by_tensor = np.array(list(self._map(Slope.sizes, self._slopes)))
        return self._ordered(recipe, self._by_group(scales, by_tensor))

    @property
    def device(self) -> torch.device:
        """Where the model's inputs belong."""
        return input_device(self.model)

    def placement(self) -> dict[str, list[str]]:
        """Device -> the merged tensors that live there, in the model's order."""
        found: dict[str, list[str]] = {}
        for tensor in self._merged:
            found.setdefault(str(tensor.out.device), []).append(tensor.name)
        return found

    def reads(self) -> dict[str, str]:
        """Device -> where what is merged there is read from, for people."""
        return {str(device): merger.describe() for device, merger in self._mergers.items()}

    def _made(self, hold: Hold, limit: Limit | None, threads: int) -> dict[torch.device, Merger]:
        """What merges the tensors of each device."""
        by_device: dict[torch.device, list[Merged]] = {}
        for tensor in self._merged:
            by_device.setdefault(tensor.out.device, []).append(tensor)
        return {
            device: Mapped(tensors, self._map)
            if device.type == "cpu" and hold == "auto"
            else Accelerated(device, tensors, hold, limit, threads)
            for device, tensors in by_device.items()
        }

    def _products(self) -> NDArray[np.float64]:
        """`gradient.products` of all tensors; raises NonFinite, naming the tensor."""
        homes = [slope.parameter.parts[0].view.device for slope in self._slopes]
        out = np.zeros((len(self._slopes), len(self._pool.names) + 2))
        for device, merger in self._mergers.items():
            if rows := [row for row, home in enumerate(homes) if home == device]:
                out[rows] = merger.products([self._slopes[row] for row in rows])
        check_finite(self._slopes, out)
        return out

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
        if not Merged.of(pool, info.name, out.view(-1)).write(scales, 0, out.numel()):
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
