"""Which options of a space are fixed, and which are coordinates? What a job says of each, checked."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from searchspaces import methods
from searchspaces.axis import PER, Axis, Per, told
from searchspaces.domain import Kind
from searchspaces.errors import RecipeError
from searchspaces.option import Choice, Flag, Number, Option, Spec, unknown

SEARCH = "search"
KEYS = ("low", "high", "per", "start", "values")
"""Of a mapping that says how an option is searched; any other maps experts to numbers."""

Specs = Mapping[str, Mapping[str, Spec]]  # method -> option -> what it may be


@dataclass
class Options:
    """By method its options, defaults filled in and those that are searched at their start; and these."""

    start: dict[str, dict[str, Option]]
    axes: list[Axis] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        said: Mapping[str, Any],
        specs: Specs,
        groups: Sequence[str],
        free: NDArray[np.int64],
        experts: Sequence[str],
    ) -> Options:
        """What is `said` of options: a value, `search`, a mapping of `KEYS`, or one of experts to numbers.

        A name is that of an option, of all methods that have it, or `method.option`, of that one alone. Raises
        RecipeError for names, values and bounds that do not fit.
        """
        made = cls({method: {n: spec.default for n, spec in table.items()} for method, table in specs.items()})
        for name, value in said.items():
            option, whose = _whose(name, specs, said)
            mine = {method: specs[method][option] for method in whose}
            if _searched(value, mine):
                axis = Axis(name, option, whose, *_range(name, value, mine), tuple(groups), free, tuple(experts))
                made.axes.append(axis)
                found: dict[str, Option] = dict.fromkeys(whose, axis.decode(np.full(len(axis.names), axis.start)))
            else:
                found = {
                    m: _fixed(f"method {m}: option {option}", value, spec, len(groups), experts)
                    for m, spec in mine.items()
                }
            for method in whose:
                made.start[method][option] = found[method]
        return made

    def encode(self, method: str, options: Mapping[str, Option]) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Of a method's complete options, the coordinates of each axis that is searched, by the axis' number.

        Raises RecipeError where no coordinates decode to them.
        """
        start, searched = self.start[method], set()
        if options.keys() != start.keys():
            odd = min(options.keys() ^ start.keys())
            raise RecipeError(f"the recipe's options and those of {method} differ in {odd!r}; another version made it")
        for i, axis in enumerate(self.axes):
            if method in axis.methods:
                searched.add(axis.option)
                yield i, axis.encode(options[axis.option])
        for name in start.keys() - searched:
            one, other = np.broadcast_arrays(options[name], start[name])
            if not np.array_equal(one, other):
                raise RecipeError(
                    f"the recipe's option {name} of {method} is {options[name]}, in this space it is {start[name]}; "
                    "search it, or make a space of the recipe's method and options"
                )

    def of_method(self, method: str) -> list[Axis]:
        """What is searched of one method."""
        return [axis for axis in self.axes if method in axis.methods]


def _whose(name: str, specs: Specs, said: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The option that a name means, and the methods it is said of."""
    having = [method for method, table in specs.items() if name in table]
    if having:
        left = tuple(method for method in having if f"{method}.{name}" not in said)
        if not left:
            raise RecipeError(
                f"space.options.{name} is said of {', '.join(having)} by itself already; remove one of the two"
            )
        return name, left
    method, _, option = name.partition(".")
    if option in specs.get(method, {}):
        return option, (method,)
    raise RecipeError(f"space.options.{name}: {_no_such(name, specs)}")


def _no_such(name: str, specs: Specs) -> str:
    """Why no option has this name, and what to do."""
    method, _, option = name.partition(".")
    if method in specs and option:
        return unknown(method, option, specs[method])
    if option and method in methods.table():
        return f"space.method does not list {method}, but {', '.join(specs)}; list it too, or remove its option"
    owners = [other for other in methods.METHODS if name in methods.load(other).options]
    whose = f" ({name} is an option of {', '.join(owners)})" if owners else ""
    if len(specs) == 1:
        return unknown(*next((only, name, table) for only, table in specs.items())) + whose
    every = sorted({option for table in specs.values() for option in table})
    near = difflib.get_close_matches(name.lower().replace("-", "_"), every, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    known = ", ".join(f"{o} ({', '.join(m for m, table in specs.items() if o in table)})" for o in every) or "none"
    return f"none of the methods {', '.join(specs)} has an option {name!r}; {hint}there are: {known}{whose}"


def _searched(value: object, specs: Mapping[str, Spec]) -> bool:
    if isinstance(value, Mapping):
        return not value or not value.keys().isdisjoint(KEYS)
    return value == SEARCH and not any(isinstance(s, Choice) and SEARCH in s.among for s in specs.values())


def _fixed(what: str, value: Any, spec: Spec, groups: int, experts: Sequence[str]) -> Option:
    if not isinstance(value, Mapping):
        return spec.check(what, value)
    if odd := [name for name in value if name not in experts]:
        raise RecipeError(
            f"{what} names {odd[0]!r}, which is no expert ({', '.join(experts)}); expected a value, numbers by expert, "
            f"{SEARCH!r}, or a mapping with some of: {', '.join(KEYS)}"
        )
    if not isinstance(spec, Number) or spec.per != "expert" or spec.prepared:
        raise RecipeError(f"{what} is the same for all experts, got one for each; give one value")
    row = [spec.check(f"{what} of {e}", value[e]) if e in value else spec.default for e in experts]
    if len(set(row)) == 1:
        return row[0]
    return np.tile(np.array(row, dtype=np.float64), (groups, 1))


Range = tuple[Per, Kind, float, float, float, tuple[Option, ...], bool]  # an axis' per, kind, low, high, start, ...


def _range(name: str, value: Any, specs: Mapping[str, Spec]) -> Range:
    """Where an option's coordinates may go. `specs` are those of the methods that share it."""
    where = f"space.options.{name}"
    said: dict[str, Any] = dict(value) if isinstance(value, Mapping) else {}
    if isinstance(value, Mapping) and (odd := sorted(value.keys() - set(KEYS), key=str) or ([] if value else ["{}"])):
        raise RecipeError(f"{where}: {odd[0]!r} is none of its keys; there are: {', '.join(KEYS)}")
    first, every = next(iter(specs.values())), list(specs.values())
    if any(type(s) is not type(first) or getattr(s, "whole", False) != getattr(first, "whole", False) for s in every):
        raise RecipeError(
            f"{where} means other things to {' and to '.join(specs)}; say it of each alone: {next(iter(specs))}.{name}"
        )
    prepared, per = any(s.prepared for s in every), _per(where, said.get("per", "model"), specs)
    if "values" in said or not isinstance(first, Number):
        return _listed(where, said, per, specs, prepared)
    if prepared:
        raise RecipeError(
            f"{where} decides how task vectors are processed, once for each of its values: list those to choose from, "
            f"as {where}: {{values: [{told(first.default)}, ...]}}"
        )
    low, high = _ends(where, said, specs)
    start = said.get("start", min(max(first.default, low), high))
    start = first.check(f"{where}.start", start)
    if not low <= start <= high:
        raise RecipeError(f"{where}.start is {start:g}, outside [{low:g}, {high:g}]; set it inside")
    return per, "integer" if first.whole else "real", float(low), float(high), float(start), (), first.whole


def _per(where: str, said: object, specs: Mapping[str, Spec]) -> Per:
    per = next((per for per in PER if per == said), None)
    if per is None:
        raise RecipeError(f"{where}.per is {said!r}, expected one of: {', '.join(PER)}")
    for method, spec in specs.items():
        allowed = ["model"]
        if isinstance(spec, Number) and not spec.prepared:
            allowed = list(PER) if spec.per == "expert" else ["model", "group"]
        if per not in allowed:
            raise RecipeError(f"{where}.per is {per!r}, which {method} cannot do; expected: {' or '.join(allowed)}")
    return per


def _ends(where: str, said: Mapping[str, Any], specs: Mapping[str, Spec]) -> tuple[float, float]:
    """Of a number's range: as said, else what is worth searching for all methods that share it."""
    numbers = {m: s for m, s in specs.items() if isinstance(s, Number)}
    known = [s.search for s in numbers.values() if s.search is not None]
    low = said.get("low", max((s[0] for s in known), default=None))
    high = said.get("high", min((s[1] for s in known), default=None))
    if low is None or high is None:
        raise RecipeError(
            f"{where}: no range of it is worth more than another; say from where to where: {{low: , high: }}"
        )
    for method, spec in numbers.items():
        low, high = (
            spec.check(f"{where}: the {end} bound (of {method})", value)
            for end, value in (("lower", low), ("upper", high))
        )
    if not low < high:
        raise RecipeError(f"{where} goes from {low:g} to {high:g}; expected the lower first, and two that differ")
    return low, high


def _listed(where: str, said: Mapping[str, Any], per: Per, specs: Mapping[str, Spec], prepared: bool) -> Range:
    """A choice among values: numbers in their order, which a driver may follow, all others in none."""
    first = next(iter(specs.values()))
    if "low" in said or "high" in said:
        what = "it is searched by values" if isinstance(first, Number) else "it is no number"
        raise RecipeError(f"{where}: {what}, and has no low and no high; remove them")
    if "values" not in said and prepared:
        raise RecipeError(
            f"{where} decides how task vectors are processed, once for each of its values: list those to choose from "
            "under values"
        )
    values: Any = said["values"] if "values" in said else _all(specs)
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise RecipeError(f"{where}.values is {values!r}, expected a list")
    for method, spec in specs.items():
        values = [spec.check(f"{where}.values (of {method})", v) for v in values]
    if isinstance(first, Number):
        values = sorted(values)
    if len(values) < 2 or len(set(values)) < len(values):
        raise RecipeError(
            f"{where}.values is {values}, expected two at least, each once; a single value is said plainly"
        )
    number = isinstance(first, Number)
    if "start" in said:
        start = first.check(f"{where}.start", said["start"])
        if start not in values:
            raise RecipeError(f"{where}.start is {told(start)}, expected one of: {', '.join(map(told, values))}")
    elif number:
        start = min(values, key=lambda v: abs(v - first.default))
    else:
        start = first.default if first.default in values else values[0]
    code, whole = float(values.index(start)), isinstance(first, Number) and first.whole
    return per, "integer" if number else "choice", 0.0, len(values) - 1.0, code, tuple(values), whole


def _all(specs: Mapping[str, Spec]) -> list[bool] | list[str]:
    """All values of a flag, or of a choice those that every method knows."""
    if any(isinstance(s, Flag) for s in specs.values()):
        return [False, True]
    tables = [s.among for s in specs.values() if isinstance(s, Choice)]
    return [word for word in tables[0] if all(word in table for table in tables)]
