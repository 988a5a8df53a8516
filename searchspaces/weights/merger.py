"""What merges the tensors of one device? A contract, and the compiled loops over mapped pages that keep it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces.models.pool import Pool
from searchspaces.weights.compositions import Compositions, Map
from searchspaces.weights.gradient import SLICE, Slope, products
from searchspaces.weights.sources import Sources


@dataclass(frozen=True, eq=False)
class Merged:
    """One merged tensor: where its values come from, and where the result goes, flat and contiguous."""

    name: str
    sources: Sources
    out: torch.Tensor

    @classmethod
    def of(cls, pool: Pool, name: str, out: torch.Tensor) -> Merged:
        return cls(name, Sources.of(pool, name), out)

    def write(self, compositions: Compositions, start: int, stop: int) -> bool:
        """Merge elements `start` to `stop`; says whether they are finite."""
        return self.sources.merge(self.out, compositions.at(self.name), start, stop)


class Merger(Protocol):
    """Writes the merged tensors of one device, and reads their gradients against base and experts.

    The same numbers from each, to fp32 rounding; from one of them the same bits every time.
    """

    def write(self, compositions: Compositions) -> list[str]:
        """Merge all tensors; the names of those that came out NaN or infinite."""
        ...

    def products(self, slopes: Sequence[Slope], compositions: Compositions | None) -> NDArray[np.float64]:
        """What `gradient.products` says, of tensors that live here."""
        ...

    def fits(self) -> bool:
        """Whether what is to be held here has room, now."""
        ...

    def describe(self) -> str:
        """Where base and experts are read from, for people."""
        ...


class Mapped:
    """Merges on the CPU, from the files' pages, with the kernels."""

    def __init__(self, tensors: Sequence[Merged], map_: Map) -> None:
        self._map = map_
        self._slices = [(t, at, min(at + SLICE, len(t.out))) for t in tensors for at in range(0, len(t.out), SLICE)]

    def write(self, compositions: Compositions) -> list[str]:
        def one(part: tuple[Merged, int, int]) -> str | None:
            tensor, start, stop = part
            return None if tensor.write(compositions, start, stop) else tensor.name

        # the whole map is drained before anything is raised: no thread writes on after we return
        return [name for name in self._map(one, self._slices) if name is not None]

    def products(self, slopes: Sequence[Slope], compositions: Compositions | None) -> NDArray[np.float64]:
        return products(slopes, compositions, self._map)

    def fits(self) -> bool:
        return True  # pages belong to nobody

    def describe(self) -> str:
        return "mapped from its files, shared by the workers of a host"
