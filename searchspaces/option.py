"""What can be set of a method? Numbers, which may be coordinates of a search, flags and choices, with their bounds."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from searchspaces.errors import RecipeError

Option: TypeAlias = bool | int | float | str | NDArray[np.float64]
"""A value. An array is a number that differs: `(G, K)` by group and expert, or `(G, 1)` by group."""


@dataclass(frozen=True)
class Number:
    """A number: fixed, or a coordinate. `low` and `high` are what is accepted, `search` what is worth searching.

    `above`: the value `low` itself is not accepted. `per`: what it may differ by, `expert` meaning group and expert.
    `whole` ones are integers. `prepared` ones decide how task vectors are processed: each value is processed and kept
    by itself, so that a search may choose among listed values only, the same for all groups and experts. `says` is what
    it is, for users: its units, and what a larger one does.
    """

    default: float
    low: float
    high: float
    search: tuple[float, float] | None = None
    per: Literal["group", "expert"] = "group"
    above: bool = False
    whole: bool = False
    prepared: bool = False
    says: str = ""

    def check(self, what: str, value: object) -> float | int:
        """The value in its type. Raises RecipeError for another type, and outside the bounds."""
        if type(value) not in ((int,) if self.whole else (int, float)) or not finite(value):
            raise RecipeError(
                f"{what} must be a {'whole' if self.whole else 'finite'} number, got {value!r}{no_number(value)}"
            )
        number: float | int = value if self.whole else float(value)  # type: ignore[arg-type, assignment]
        if not self.low <= number <= self.high or (self.above and number == self.low):
            least = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
            raise RecipeError(f"{what} is {number:g}, expected {least} and at most {self.high:g}")
        return number


@dataclass(frozen=True)
class Flag:
    """Yes or no; `prepared` and `says` as of a number."""

    default: bool
    prepared: bool = False
    says: str = ""

    def check(self, what: str, value: object) -> bool:
        if type(value) is not bool:
            raise RecipeError(f"{what} must be true or false, got {value!r}")
        return value


@dataclass(frozen=True)
class Choice:
    """One of several words; `prepared` and `says` as of a number."""

    default: str
    among: tuple[str, ...]
    prepared: bool = False
    says: str = ""

    def check(self, what: str, value: object) -> str:
        if not isinstance(value, str) or value not in self.among:
            raise RecipeError(f"{what} is {value!r}, expected one of: {', '.join(self.among)}")
        return value


Spec: TypeAlias = Number | Flag | Choice


def finite(value: object) -> bool:
    """Whether a number is finite as a float: a whole number may be too large for one."""
    try:
        return math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:
        return False


def no_number(value: object) -> str:
    """What to do about a text where a number belongs, as the end of a message; nothing for all else."""
    if not isinstance(value, str):
        return ""
    with contextlib.suppress(ValueError):
        float(value)
        return "; write it without quotes"
    return "; did you mean 'search'?" if difflib.get_close_matches(value.lower(), ["search"]) else ""


def unknown(method: str, name: str, specs: Mapping[str, Spec]) -> str:
    """That a method has no such option, which are near, and which there are."""
    near = difflib.get_close_matches(name.lower().replace("-", "_"), specs, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"method {method} has no option {name!r}; {hint}there are: {', '.join(sorted(specs)) or 'none'}"


def complete(method: str, specs: Mapping[str, Spec], options: Mapping[str, Option]) -> dict[str, Option]:
    """A method's options with its defaults filled in, arrays among them checked entry by entry.

    Raises RecipeError for unknown ones, wrong types, and values outside their bounds.
    """
    found: dict[str, Option] = {name: spec.default for name, spec in specs.items()}
    for name, value in options.items():
        if name not in specs:
            raise RecipeError(unknown(method, name, specs))
        spec, what = specs[name], f"method {method}: option {name}"
        if not isinstance(value, np.ndarray):
            found[name] = spec.check(what, value)
            continue
        if not isinstance(spec, Number):
            raise RecipeError(f"{what} is the same for all groups and experts, got an array of {value.shape}")
        if value.ndim != 2:
            raise RecipeError(f"{what} is an array of {value.shape}, expected (groups, experts) or (groups, 1)")
        if spec.per == "group" and value.shape[-1] != 1:
            raise RecipeError(
                f"{what} is the same for all experts, got an array of {value.shape}; give one of (groups, 1)"
            )
        for entry in value.ravel().tolist():
            spec.check(what, int(entry) if spec.whole and entry == int(entry) else entry)
        found[name] = value
    return found
