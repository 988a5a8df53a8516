"""Which facts will a space's candidates ask for, and how much room do they take? Told from headers, nothing is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces import methods
from searchspaces.facts.columns import bytes_of, period_of, rows_of
from searchspaces.facts.process import plan, processing
from searchspaces.models.pool import Pool
from searchspaces.option import Option
from searchspaces.row import Row
from searchspaces.space import CoefficientSpace

ENTRIES = 4096
"""Of the stand-in for a tensor: so many that a share of them worth asking for is one at least."""


class Asked:
    """`facts.Facts` of a tensor that there is not: notes in `kinds` what is asked, and answers something."""

    name = "stand-in"

    def __init__(self, dimensions: int, count: int) -> None:
        self.shape = (round(ENTRIES ** (1 / max(1, dimensions))),) * dimensions
        self.size, self.count = math.prod(self.shape), count
        self.kinds: set[str] = set()

    def magnitude(self, k: int, rank: int) -> float:
        self.kinds.add("magnitudes")
        return 1.0 / rank

    def tied(self, k: int, magnitude: float) -> tuple[int, int]:
        self.kinds.add("magnitudes")
        return 0, 1

    def mass(self, k: int, least: float, most: float) -> tuple[float, float]:
        self.kinds.add("magnitudes")
        return 1.0, 1.0

    def ranks(self, k: int) -> torch.Tensor:
        self.kinds.add("ranks")
        return torch.zeros(self.size, dtype=torch.uint8)

    def spread(self, share: float) -> tuple[float, float]:
        self.kinds |= {"variances"} if share < 1 else set()
        return 1.0, 1.0

    def energies(self, spread: float) -> NDArray[np.float64]:
        self.kinds.add("variances")
        return np.ones(self.count)

    def gram(self) -> NDArray[np.float64]:
        self.kinds.add("grams")
        return np.eye(self.count + 1)

    def row_grams(self, columns: bool = False) -> NDArray[np.float64]:
        self.kinds.add("column_grams" if columns else "row_grams")
        grams = (period_of if columns else rows_of)(self.shape)
        return np.tile(np.eye(self.count + 1), (grams, 1, 1))

    def key(self, k: int | None, seeded: bool = True) -> int:
        return 0


def room(pool: Pool, space: CoefficientSpace) -> dict[str, int]:
    """How many bytes of the cache a space's candidates may come to need, by kind: tables, and processed task vectors.

    Of what is searched both ends of each option are tried, and each of its values, all else being at its start. What
    the cache holds already is counted too.
    """
    count = len(pool.names)
    kinds: set[str] = set()
    for method, options in chain(space.prepared, space.ends()):
        kinds |= _kinds(pool, space, method, options)
    found = {kind: sum(bytes_of(kind, info, count) for info in pool.merged) for kind in kinds}
    sizes = [sum(spec.bytes for spec in plan(pool, method)) for method in combinations(space).values()]
    return {**({"processed": sum(sizes)} if sizes else {}), **dict(sorted(found.items()))}


def combinations(space: CoefficientSpace) -> dict[str, str]:
    """All that a space's methods may do to task vectors, each kept by itself: the text of it -> the method."""
    found = {processing(method, options): method for method, options in space.prepared}
    return {what: method for what, method in found.items() if what}


def _kinds(pool: Pool, space: CoefficientSpace, method: str, options: Mapping[str, Option]) -> set[str]:
    """The kinds of tables that a method asks for with these options, of tensors of all their dimensions."""
    kind = methods.load(method)
    found: set[str] = set()
    rule = kind(options)
    coefficients = np.full((len(space.groups), len(pool.names)), rule.unit / len(pool.names))
    if kind.picks:
        coefficients[:] = np.eye(len(pool.names))[0]
    differs = any(isinstance(value, np.ndarray) for value in options.values())
    for dimensions in {len(info.shape) for info in pool.merged}:
        for g in range(len(space.groups) if differs else 1):
            asked = Asked(dimensions, len(pool.names))
            with np.errstate(all="ignore"):
                rule.compose(Row.of(kind.options, coefficients, options, g), asked)
            found |= asked.kinds
    return found
