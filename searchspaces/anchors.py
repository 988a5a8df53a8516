"""Which candidates are worth asking before any search? Base, experts, averages, a sweep; the best known first."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from searchspaces.method import Method

BASE = "base"


@dataclass(frozen=True, eq=False)
class Anchor:
    """The same coefficients `(K,)` in every free group. `tier`: what is known better is lower, and first in a tier."""

    label: str
    method: str
    row: NDArray[np.float64]
    tier: tuple[int, int]
    shared: bool = False  # the same model whichever method makes it


def anchors_of(rules: Mapping[str, Method], experts: Sequence[str]) -> Iterator[Anchor]:
    """Of each method, in the order of `rules`: the base, each expert by itself, uniform, and its sweep.

    In order of tiers they are: the base; of each method the coefficient of its sweep that is known best (`usual`, the
    published merge's; else the middle), or uniform where it has no sweep; the experts; what is uniform; the rest of the
    sweeps, from there outwards; one expert alone under a method that changes it.
    """
    count = len(experts)
    for method, rule in rules.items():
        if rule.grounded:
            yield Anchor(BASE, method, np.zeros(count), (0, 0), shared=True)
        # what a method makes of one expert alone need not be that expert: then it is not called so
        itself = rule.restores and not rule.processes
        what, tier = ("expert: ", 2) if itself else ("alone: ", 5)
        for k, name in enumerate(experts):
            yield Anchor(f"{what}{name}", method, rule.unit * np.eye(count)[k], (tier, k), shared=itself)
        if rule.picks:
            continue
        yield Anchor("uniform", method, np.full(count, rule.unit / count), (3 if rule.sweep else 1, 0))
        middle = len(rule.sweep) // 2 if rule.usual is None else rule.sweep.index(rule.usual)
        outwards = sorted(range(len(rule.sweep)), key=lambda i: abs(i - middle))
        for i, value in enumerate(rule.sweep):
            place = outwards.index(i)
            yield Anchor(f"global {value:g}", method, np.full(count, value), (4 if place else 1, place))


def best_known(found: Sequence[Anchor], most: int | None) -> Collection[int]:
    """The places of at most so many of them: tier by tier, and within one the methods in turn."""
    order = sorted(range(len(found)), key=lambda i: (found[i].tier, i))
    return set(order[:most])
