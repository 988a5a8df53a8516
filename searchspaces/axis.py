"""What are one option's coordinates? From them to the option's value, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from searchspaces.domain import Kind
from searchspaces.errors import RecipeError
from searchspaces.option import Option

Per: TypeAlias = Literal["model", "expert", "group", "both"]


@dataclass(frozen=True, eq=False)
class Axis:
    """An option that is searched: one coordinate, or one by expert, by free group, or by free group and expert.

    Where there are `values`, a coordinate is the place of one in that list. Groups that are not free have the start.
    """

    name: str  # as the job says it: an option, or `method.option`
    option: str
    methods: tuple[str, ...]  # whose option it is
    per: Per
    kind: Kind
    low: float
    high: float
    start: float
    values: tuple[Option, ...]  # in ascending order where they are numbers
    whole: bool
    groups: tuple[str, ...]
    free: NDArray[np.int64]  # numbers of the free groups
    experts: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """What the coordinates are called."""
        # an expert may be called like an option: then `group|name` would be a coefficient's name too
        name = f"option {self.name}" if self.name in (*self.experts, *self.groups) else self.name
        groups = [self.groups[g] for g in self.free]
        return {
            "model": [name],
            "expert": [f"{name}|{e}" for e in self.experts],
            "group": [f"{g}|{name}" for g in groups],
            "both": [f"{g}|{name}|{e}" for g in groups for e in self.experts],
        }[self.per]

    @property
    def labels(self) -> tuple[str, ...]:
        """What codes mean, where a coordinate is one."""
        return tuple(told(value) for value in self.values)

    def decode(self, block: NDArray[np.float64]) -> Option:
        """The option's value for its coordinates `(n,)`: plain, or float64 `(G, K)` or `(G, 1)` where it may differ."""
        if self.per == "model":
            return self._value(float(block[0]))
        table = self._table(block)
        if table.size and (table == table.flat[0]).all():  # a plain number, in the option's own type
            return int(table.flat[0]) if self.whole else float(table.flat[0])
        return table

    def encode(self, value: Option) -> NDArray[np.float64]:
        """The coordinates that decode to a value whose arrays are over this space's groups and experts.

        Raises RecipeError where none do.
        """
        if self.per == "model":
            if isinstance(value, np.ndarray):
                raise self._refused(value, "one value for the whole model")
            return np.array([self._code(value)])
        wanted = np.broadcast_to(np.asarray(value, dtype=np.float64), (len(self.groups), len(self.experts)))
        entries = {"expert": wanted[:1], "group": wanted[self.free, :1], "both": wanted[self.free]}[self.per]
        block = np.array([self._code(entry) for entry in entries.ravel().tolist()])
        if not np.array_equal(np.broadcast_to(self._table(block), wanted.shape), wanted):
            raise self._refused(value, f"values that differ by {PER[self.per]} alone, held groups at their start")
        return block

    def _table(self, block: NDArray[np.float64]) -> NDArray[np.float64]:
        found = np.array([self._value(c) for c in block.tolist()], dtype=np.float64)
        groups, experts = len(self.groups), len(self.experts)
        if self.per == "expert":
            return np.tile(found, (groups, 1))
        table = np.full((groups, 1 if self.per == "group" else experts), self._value(self.start), dtype=np.float64)
        table[self.free] = found.reshape(len(self.free), -1)
        return table

    def _value(self, code: float) -> Option:
        if self.values:
            return self.values[int(code)]
        if self.kind == "integer":
            return int(code)
        return min(max(code, self.low), self.high)  # rounding alone lies outside: the space has looked

    def _code(self, value: Option) -> float:
        """The code, or the number itself, of one value. Raises RecipeError for one that no coordinate has."""
        if self.values:
            if value not in self.values:
                raise self._refused(value, f"one of {', '.join(self.labels)}")
            return float(self.values.index(value))
        number = float(value)
        if not self.low <= number <= self.high or (self.kind == "integer" and number != int(number)):
            raise self._refused(
                value, f"{'a whole number' if self.whole else 'one'} from {self.low:g} to {self.high:g}"
            )
        return number

    def _refused(self, value: Option, expected: str) -> RecipeError:
        said = f"an array of {value.shape}" if isinstance(value, np.ndarray) else told(value)
        return RecipeError(
            f"the recipe's {self.option} is {said}; this space has {expected}: see space.options.{self.name}"
        )


PER: dict[Per, str] = {"model": "nothing", "expert": "expert", "group": "group", "both": "group and expert"}


def told(value: object) -> str:
    """A value as a job file says it."""
    return (
        ("true" if value else "false")
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
