"""Where may coefficients go, where do they start, and which are held? What a job says by expert and by pattern."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from searchspaces.domain import SLACK
from searchspaces.errors import RecipeError

Bounds = tuple[float, float]
Start = float | Mapping[str, float | Mapping[str, float]]  # for all experts, or by expert; of each, also by group
T = TypeVar("T")
ALL = "*"  # of a start by group: whatever is not said otherwise, even where a group has that name

MOST = 1e38
"""Of a coefficient: merges are summed in fp32, and no range of coefficients is beyond what drivers can square."""


def bounds_of(
    experts: Sequence[str], bounds: Bounds | Mapping[str, Bounds], simplex: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each expert's least and largest coefficient, both `(K,)`. Raises RecipeError for bounds that are none."""
    table = _by_expert(experts, "bounds", bounds, (0.0, 1.0))
    for name, (low, high) in table.items():
        if not (abs(low) <= MOST and abs(high) <= MOST and low < high):
            raise RecipeError(
                f"bounds of {name} are [{low}, {high}]; expected numbers from {-MOST:g} to {MOST:g}, the lower first"
            )
        if simplex and (low, high) != (0.0, 1.0):
            raise RecipeError("a simplex has bounds of its own, [0, 1]; remove space.bounds")
    pairs = np.array(list(table.values()), dtype=np.float64)
    return pairs[:, 0].copy(), pairs[:, 1].copy()


def start_of(
    groups: Sequence[str],
    experts: Sequence[str],
    start: Start,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    simplex: bool,
) -> NDArray[np.float64]:
    """Each expert's coefficient at the start, `(G, K)`: one for all groups, or by patterns of their names.

    Raises RecipeError outside the bounds or the simplex, for a pattern that matches no group, and for a group that no
    pattern matches.
    """
    table: dict[str, float | Mapping[str, float]] = _by_expert(experts, "start", start, 0.3)
    for (name, said), least, most in zip(table.items(), low, high, strict=True):
        for value in said.values() if isinstance(said, Mapping) else (said,):
            if not least <= value <= most:
                raise RecipeError(
                    f"start of {name} is {value}, outside [{least}, {most}]; set space.start inside bounds"
                )
    values = np.array([_in_groups(groups, name, said) for name, said in table.items()], dtype=np.float64).T
    total = values.sum(axis=1).max()
    if simplex and total > 1 + SLACK:
        raise RecipeError(
            f"in a simplex starts sum to at most 1, these sum to {total:g}; "
            f"set space.start to {1 / len(experts):.3g} or less"
        )
    return values


def start_by_group(groups: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """An expert's coefficients, one a group, as a job says its start: the most frequent is what all others have."""
    ((usual, _),) = Counter(values).most_common(1)
    said = {name: value for name, value in zip(groups, values, strict=True) if value != usual}
    if ALL in said:  # a group of that very name
        alone = next(p for n in range(1, len(groups) + 2) if (p := f"[{ALL * n}]") not in groups)
        said[alone] = said.pop(ALL)
    return said | {ALL: usual}


def _in_groups(groups: Sequence[str], name: str, said: float | Mapping[str, float]) -> list[float]:
    """An expert's start in each group: that of the group's own name, else of the longest pattern that matches it.

    What is a group's own name says nothing of others, whatever it looks like; but `*` is always all the rest. The order
    says nothing: not everything that keeps a job keeps the order of its keys.
    """
    if not isinstance(said, Mapping):
        return [said] * len(groups)
    own = (set(groups) & set(said)) - {ALL}
    patterns = sorted(set(said) - own)
    for pattern in patterns:
        if not any(fnmatchcase(group, pattern) for group in groups):
            raise RecipeError(
                f"start of {name}: the pattern {pattern!r} matches no group; groups are for example "
                f"{', '.join(list(groups)[:3])}"
            )
    found = []
    for group in groups:
        fitting = [group] if group in own else [p for p in patterns if fnmatchcase(group, p)]
        if not fitting:
            raise RecipeError(f'start of {name} says nothing of group {group!r}; add "*": NUMBER, for all the rest')
        found.append(said[max(fitting, key=len)])
    return found


def first_picks(start: NDArray[np.float64]) -> NDArray[np.int64]:
    """Of each expert's start by group `(G, K)`, what a method that picks starts at, `(G,)`: the expert whose start is
    1, all others' 0, by its number from 1; else 0, the base.
    """
    alone = (np.isin(start, (0.0, 1.0)).all(axis=1)) & (start.sum(axis=1) == 1)
    return np.where(alone, start.argmax(axis=1) + 1, 0)


def free_groups(groups: Mapping[str, Sequence[str]], patterns: Sequence[str]) -> NDArray[np.int64]:
    """The numbers of the groups that no pattern names, by their own name or by one of their tensors'.

    What is the own name of a group, or of a tensor, is no pattern, whatever it looks like. Raises RecipeError for a
    pattern that matches nothing, and where nothing is left.
    """
    held: set[str] = set()
    names = {group: {group, *tensors} for group, tensors in groups.items()}
    for pattern in patterns:
        found = {group for group, own in names.items() if pattern in own}
        found |= {g for g, own in names.items() if not found and any(fnmatchcase(name, pattern) for name in own)}
        if not found:
            raise RecipeError(
                f"frozen pattern {pattern!r} matches no group and no tensor; groups are for example "
                f"{', '.join(list(groups)[:3])}"
            )
        held |= found
    if len(held) == len(groups):
        raise RecipeError(f"frozen patterns {list(patterns)} hold every group: nothing is left to search")
    return np.array([g for g, name in enumerate(groups) if name not in held], dtype=np.int64)


def _by_expert(experts: Sequence[str], what: str, value: T | Mapping[str, T], default: T) -> dict[str, T]:
    if not isinstance(value, Mapping):
        return {name: value for name in experts}
    if odd := value.keys() - set(experts):
        raise RecipeError(f"{what} names {min(odd)!r}, which is no expert; there are: {', '.join(experts)}")
    return {name: value.get(name, default) for name in experts}
