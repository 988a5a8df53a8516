"""What does a driver see of a search space? Names, bounds, a start, and the block shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Point: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Domain:
    """A box in natural units. Every array is read-only float64 of shape `(dim,)`; `shape` is `(groups, experts)`.

    Coordinate `g * experts + k` belongs to free group g and expert k, and is called `group|expert`. `layers` names, for
    each free group, the group of granularity `layer` that its tensors belong to (`model` where all are one group).

    `base` is the point whose weights are the base's, `uniform` that of the experts' average, and `vertices`, shape
    `(experts, dim)`, those at which one expert stands alone; they may lie outside the bounds. Where weights are not
    affine in the point there are no vertices; where no point is the base, or none from which it can be left (a
    normalised average), there is no base.
    """

    names: tuple[str, ...]
    low: Point
    high: Point
    start: Point
    shape: tuple[int, int]
    layers: tuple[str, ...]
    base: Point | None
    uniform: Point
    vertices: Point | None

    def __post_init__(self) -> None:
        for array in (self.low, self.high, self.start, self.base, self.uniform, self.vertices):
            if array is not None:
                array.setflags(write=False)
