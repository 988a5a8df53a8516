"""Is the tree of halves, which is kept sparse, the one that it would be row by row?"""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pytest
from driver_rows import Box
from numpy.typing import NDArray
from quadratics import domain

from optimizer.drivers.gaussian.features import Features, halves

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Layered(Box):
    """A domain whose groups lie in layers of these names."""

    named: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        return self.named


def layered(layers: tuple[str, ...], experts: int) -> Layered:
    box = domain(len(layers), experts)
    return Layered(box.low, box.high, box.start, box.shape, named=layers)


def naive(layers: tuple[str, ...]) -> tuple[Array, NDArray[np.int64]]:
    """The tree `(groups, groups)`, written out row by row, breadth first, and each row's depth."""
    count = len(layers)
    rows, depths = [np.ones(count)], [0]
    now = [[[g for g in range(count) if layers[g] == name] for name in dict.fromkeys(layers)]]
    depth = 1
    while now:
        following = []
        for parts in now:
            if len(parts) == 1:
                parts = [[g] for g in parts[0]]
            if len(parts) == 1:
                continue
            cut = (len(parts) + 1) // 2
            row = np.zeros(count)
            for half, sign in ((parts[:cut], 1.0), (parts[cut:], -1.0)):
                groups = [*chain.from_iterable(half)]
                row[groups] = sign / len(groups)
                following.append(half)
            rows.append(row / np.linalg.norm(row) * np.sqrt(count))
            depths.append(depth)
        now, depth = following, depth + 1
    return np.array(rows), np.array(depths)


LAYERS = [
    *(tuple(f"layer {g}" for g in range(count)) for count in (1, 2, 3, 5, 8, 33)),
    ("one",) * 7,
    tuple(f"layer {g // 7}" for g in range(91)),
    ("embeddings", *(f"layer {g // 3}" for g in range(12)), "head"),
    tuple(f"layer {g % 5}" for g in range(23)),  # groups of a layer apart
    ("a", "b", "b", "b", "b", "b", "c", "a", "d", "d"),
]


@pytest.mark.parametrize("layers", LAYERS)
def test_the_tree_and_its_moves_are_those_of_a_dense_one(layers: tuple[str, ...]) -> None:
    rows, depth = naive(layers)
    tree, found = halves(layers)
    assert tree.toarray() == pytest.approx(rows, rel=1e-13, abs=0) and (found == depth).all()
    for experts in (1, 3):
        features = Features.of(layered(layers, experts))
        assert features.depth == depth.max()
        for finest in range(features.depth + 1):
            kept = rows[depth <= finest]
            moves = features.moves(finest)
            expected = kept / np.abs(kept).max(axis=1, keepdims=True)
            assert moves.rows.toarray() == pytest.approx(expected, rel=1e-13, abs=0)
            assert (moves.back.toarray() == moves.rows.toarray().T).all() and moves.parts == len(kept)
        assert features.tree.toarray() == pytest.approx(rows, rel=1e-13, abs=0), "as it was"


def test_a_space_without_coefficients_has_no_parts() -> None:
    assert halves(())[0].shape == (0, 0)
    for groups, experts in ((0, 2), (0, 0), (3, 0)):
        moves = Features.of(domain(groups, experts)).moves(0)
        assert moves.parts == 0 and moves(np.zeros((2, 0))).shape == (2, 0)


def test_many_groups_take_no_memory_of_their_number_squared() -> None:
    groups = 2000
    where = domain(groups, 2)
    tracemalloc.start()
    features = Features.of(where)
    kept = [features.moves(finest) for finest in range(features.depth + 1)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kept[-1].rows.nnz == features.tree.nnz <= groups * (features.depth + 1)
    assert peak < groups * groups * 8 / 3, "a third of one dense tree"
