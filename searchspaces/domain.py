"""What does a driver see of a search space? Names, bounds, a start, kinds of coordinates, and the block shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from searchspaces.errors import RecipeError

Point: TypeAlias = NDArray[np.float64]
Kind: TypeAlias = Literal["real", "integer", "choice"]
SLACK = 1e-9  # of a bound's range: rounding of `low + (high - low) * u` is no error


@dataclass(frozen=True, eq=False)
class Domain:
    """A box in natural units. Every array is read-only float64 of shape `(dim,)`; `shape` is `(groups, experts)`.

    Coordinate `g * experts + k` belongs to free group g and expert k, and is called `group|expert`. `layers` names, for
    each free group, the group of granularity `layer` that its tensors belong to (`model` where all are one group).
    Coordinates of options, of groups that are one of the models (`group|pick`) and of the method follow that block,
    which is `(groups, 0)` where no method has coefficients.

    `kinds` says of each coordinate whether it is a `real` number, an `integer`, or a `choice`: one of the whole numbers
    from 0 to `high`, in no order. A point is one of the space where integers and choices are whole. `labels` says, for
    people, what the codes 0, 1, ... of a coordinate mean that is a choice, or a place in a list of numbers.

    `base` is the point whose weights are the base's, `uniform` that of the experts' average, and `vertices`, shape
    `(experts, dim)`, those at which one expert stands alone; they may lie outside the bounds. Where weights are not
    affine in the point there are no vertices; where no point is the base, or none from which it can be left (a
    normalised average), there is no base. What is no coefficient is at its start in these.
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
    kinds: tuple[Kind, ...]
    labels: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for array in (self.low, self.high, self.start, self.base, self.uniform, self.vertices):
            if array is not None:
                array.setflags(write=False)

    def told(self, i: int, value: float) -> str:
        """A coordinate's value for people: what its code means, else the number."""
        return self.labels[i][int(value)] if i in self.labels else f"{value:.6g}"

    def checked(self, point: Point) -> Point:
        """The point itself. Raises RecipeError where it is none of the space, rounding at its bounds apart."""
        if point.shape != self.low.shape:
            raise RecipeError(f"a point of this space has shape {self.low.shape}, got {point.shape}")
        inside = (point >= self.low - self._slack) & (point <= self.high + self._slack)
        if not inside.all():
            i = int(np.argmin(inside))
            where = "bounds" if i < self.shape[0] * self.shape[1] else "options"
            raise RecipeError(
                f"coordinate {self.names[i]} is {point[i]}, outside [{self.low[i]}, {self.high[i]}]; "
                f"widen space.{where}, or ask within them"
            )
        odd = self._exact & (point != np.rint(point))
        if odd.any():
            i = int(np.argmax(odd))
            meaning = f" ({', '.join(self.labels[i])})" if i in self.labels else ""
            raise RecipeError(
                f"coordinate {self.names[i]} is {point[i]}, expected a whole number from {self.low[i]:g} to "
                f"{self.high[i]:g}{meaning}; optimizer.driver.snapped makes one of any point"
            )
        return point

    @cached_property
    def _exact(self) -> NDArray[np.bool_]:
        return np.array([kind != "real" for kind in self.kinds])

    @cached_property
    def _slack(self) -> Point:
        return np.where(self._exact, 0.0, SLACK * (self.high - self.low))
