"""What merges the recipes of one pool? Its sources, and the mergers of the devices that a model lies on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces.facts.known_facts import KnownFacts
from searchspaces.models.layout import Place
from searchspaces.models.pool import Pool
from searchspaces.recipe import Recipe
from searchspaces.weights.compositions import Compositions, Map
from searchspaces.weights.gradient import Slope, check_finite
from searchspaces.weights.merger import Merged, Merger

Make = Callable[[torch.device, Sequence[Merged]], Merger]


class Merging:
    """A pool as a method merges it, over a model: where each tensor's values come from, and where they go.

    `rooms` are where tensors are merged, flat, by name; `make` gives the merger of one device's; what is asked of the
    models for the first time is found on `threads` threads.
    """

    def __init__(
        self,
        pool: Pool,
        places: Mapping[str, Place],
        rooms: Mapping[str, torch.Tensor],
        make: Make,
        map_: Map,
        threads: int = 1,
    ) -> None:
        self.pool, self._map, self._threads = pool, map_, threads
        merged = [Merged.of(pool, name, room) for name, room in rooms.items()]
        by_device: dict[torch.device, list[Merged]] = {}
        for tensor in merged:
            by_device.setdefault(tensor.out.device, []).append(tensor)
        self.mergers = {device: make(device, tensors) for device, tensors in by_device.items()}
        self.slopes = [Slope(t.name, t.sources, places[t.name]) for t in merged if places[t.name].trained]
        self._facts: KnownFacts | None = None
        self._last: tuple[Recipe, Compositions] | None = None

    def compositions(self, recipe: Recipe) -> Compositions:
        """A recipe's compositions; those of the last one are kept, for what follows its writing."""
        if self._last is None or self._last[0] is not recipe:
            if self._facts is None or self._facts.seed != recipe.seed:
                self._facts = KnownFacts(self.pool, recipe.models or None, recipe.seed, self._threads)
            self._last = recipe, Compositions.of(self.pool, recipe, self._facts, self._map)
        return self._last[1]

    def fits(self) -> bool:
        """Whether what is to be held on devices has room there, now."""
        return all(merger.fits() for merger in self.mergers.values())

    def products(self, compositions: Compositions | None) -> NDArray[np.float64]:
        """`gradient.products` of all tensors that are trained; raises NonFinite, naming the tensor."""
        homes = [slope.parameter.parts[0].view.device for slope in self.slopes]
        out = np.zeros((len(self.slopes), len(self.pool.names) + 2))
        for device, merger in self.mergers.items():
            if rows := [row for row, home in enumerate(homes) if home == device]:
                out[rows] = merger.products([self.slopes[row] for row in rows], compositions)
        check_finite(self.slopes, out)
        return out

    def by_group(self, compositions: Compositions, by_tensor: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums over the tensors of each group, in the tensors' order: from `(slopes, n)` to `(G, n)`."""
        found = np.zeros((len(compositions.rows), by_tensor.shape[1]))
        np.add.at(found, [compositions.group[slope.name] for slope in self.slopes], by_tensor)
        return found
