"""What is near what in a search space? A point's means over ever finer halves of a model, and all else that it has."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from optimizer.driver import Domain, steps

Array = NDArray[np.float64]

OWN = 8  # choices, and numbers, up to which each has a length scale of its own


@dataclass(frozen=True)
class Features:
    """Coordinates in which a process sees points of the unit cube.

    An expert's coefficients are seen as their mean over all groups, then as the difference of the means of both halves
    of the layers, of the quarters, and so on down to single groups: an orthogonal basis (Haar's, over a tree of layers
    and of groups within them), in units of a coefficient. `level` says of each such feature how fine it is: 0 is the
    mean over the model. What is no coefficient is of level 0; a choice is one feature for each of its values.
    `kind` numbers what shares a length scale: each expert's mean, each level from 1 on, and each other coordinate; but
    where there are many numbers (an option of each group), or choices (groups that pick a model), those share one.
    """

    domain: Domain
    tree: csr_array  # (groups, groups), orthogonal rows of length sqrt(groups): by which each expert's column is seen
    back: csr_array  # its transpose
    level: NDArray[np.int64]  # (features,)
    kind: NDArray[np.int64]  # (features,)
    reals: NDArray[np.int64]  # coordinates behind the block that are numbers
    choices: tuple[tuple[int, int], ...]  # coordinate, and how many values it has

    @classmethod
    def of(cls, domain: Domain) -> Features:
        """Those of a domain."""
        groups, experts = domain.shape
        tree, depth = halves(domain.layers if groups else ())
        counts = steps(domain).astype(int)
        further = range(groups * experts, len(domain.low))
        choices = tuple((i, int(counts[i])) for i in further if domain.kinds[i] == "choice")
        reals = np.array([i for i in further if domain.kinds[i] != "choice"], dtype=np.int64)
        own, apart = len(choices) <= OWN, len(reals) <= OWN
        values = [j if own else 0 for j, (_, count) in enumerate(choices) for _ in range(count)]
        level = np.concatenate([np.repeat(depth, experts), np.zeros(len(reals) + len(values), dtype=np.int64)])
        numbers = len(reals) if apart else 1
        first = experts + numbers + (len(choices) if own else 1)
        fine = np.repeat(depth, experts)
        kind = np.concatenate(
            [
                np.where(fine == 0, np.tile(np.arange(experts), len(depth)), first - 1 + fine),
                experts + (np.arange(len(reals)) if apart else np.zeros(len(reals), dtype=np.int64)),
                experts + numbers + np.array(values, dtype=np.int64),
            ]
        )
        return cls(domain, tree, csr_array(tree.T), level, kind.astype(np.int64), reals, choices)

    @property
    def depth(self) -> int:
        """The finest level."""
        return int(self.level.max(initial=0))

    def __call__(
        self,
        units: Array,  # (n, dim)
    ) -> Array:
        """The features `(n, features)` of points of the unit cube."""
        groups = max(self.tree.shape[0], 1)
        columns = [_across(self.tree, units[:, : self._block]) / groups, units[:, self.reals]]
        for i, count in self.choices:
            code = np.minimum((units[:, i] * count).astype(int), count - 1)
            columns.append(np.eye(count)[code])
        return np.hstack(columns)

    def pull(
        self,
        slopes: Array,  # (n, features)
    ) -> Array:
        """Derivatives `(n, dim)` with respect to the unit cube's point; choices have none."""
        found, block = np.zeros((len(slopes), len(self.domain.low))), self._block
        found[:, :block] = _across(self.back, slopes[:, :block]) / max(self.tree.shape[0], 1)
        found[:, self.reals] = slopes[:, block : block + len(self.reals)]
        return found

    def moves(self, finest: int) -> Moves:
        """Moves of a unit point that keep to levels up to `finest`."""
        experts = self.domain.shape[1]
        chosen = np.flatnonzero(self.level[: self._block : max(experts, 1)] <= finest)
        rows = csr_array(self.tree[chosen])
        if len(chosen):  # and no row is empty
            largest = np.maximum.reduceat(np.abs(rows.data), rows.indptr[:-1])
            rows.data /= np.repeat(largest, np.diff(rows.indptr))
        return Moves(rows, csr_array(rows.T), experts, self.reals, len(self.domain.low))

    @property
    def _block(self) -> int:
        return int(self.tree.shape[0] * self.domain.shape[1])


@dataclass(frozen=True)
class Moves:
    """Directions of the unit cube, none of whose entries is above 1: rows of parts for each expert, and numbers."""

    rows: csr_array  # (parts, groups)
    back: csr_array  # (groups, parts)
    experts: int
    reals: NDArray[np.int64]
    dim: int

    @property
    def parts(self) -> int:
        """Of the model, that an expert's coefficients move with."""
        return int(self.rows.shape[0])

    def __len__(self) -> int:
        return self._block + len(self.reals)

    @property
    def _block(self) -> int:
        return int(self.rows.shape[0] * self.experts)

    def __call__(
        self,
        taken: Array,  # (n, moves)
    ) -> Array:
        """Where so much of each leads, `(n, dim)`."""
        found, block = np.zeros((len(taken), self.dim)), self._block
        found[:, : self.rows.shape[1] * self.experts] = _across(self.back, taken[:, :block])
        found[:, self.reals] = taken[:, block:]
        return found

    def pull(
        self,
        slopes: Array,  # (n, dim)
    ) -> Array:
        """Derivatives `(n, moves)` with respect to how much is taken of each."""
        block = self.rows.shape[1] * self.experts
        return np.hstack([_across(self.rows, slopes[:, :block]), slopes[:, self.reals]])


def _across(rows: csr_array, columns: Array) -> Array:
    """`rows` `(parts, groups)` times each expert's part of `(n, groups * experts)`: `(n, parts * experts)`."""
    count, (parts, groups) = len(columns), rows.shape
    if not columns.size:
        return np.zeros((count, 0))
    flat = columns.reshape(count, groups, -1).swapaxes(0, 1).reshape(groups, -1)
    return np.asarray((rows @ flat).reshape(parts, count, -1).swapaxes(0, 1).reshape(count, -1))


def halves(layers: tuple[str, ...]) -> tuple[csr_array, NDArray[np.int64]]:
    """Haar's basis over groups, `(groups, groups)`, and each row's depth `(groups,)`; `layers` names each one's layer.

    Neighbouring layers are halved until one is left, then its groups are. Rows are orthogonal, of length sqrt(groups);
    coarse ones come first. Each depth has at most one entry a group: time and memory are `O(groups log groups)`.
    """
    count = len(layers)
    if not count:
        return csr_array((0, 0)), np.zeros(0, dtype=np.int64)
    order: dict[str, list[int]] = {}
    for g, layer in enumerate(layers):
        order.setdefault(layer, []).append(g)
    rows: list[tuple[int, list[int], list[int]]] = []  # depth, and the groups of both halves

    def halve(parts: list[list[int]], depth: int) -> None:
        if len(parts) == 1:
            if len(parts[0]) > 1:
                halve([[g] for g in parts[0]], depth)
            return
        cut = (len(parts) + 1) // 2
        left, right = (list(chain.from_iterable(half)) for half in (parts[:cut], parts[cut:]))
        rows.append((depth, left, right))
        halve(parts[:cut], depth + 1)
        halve(parts[cut:], depth + 1)

    halve(list(order.values()), 1)
    rows.sort(key=lambda row: row[0])
    columns, values = [np.arange(count)], [np.ones(count)]
    for _, left, right in rows:
        scale = np.sqrt(count / (1 / len(left) + 1 / len(right)))
        columns.append(np.array([*left, *right]))
        values.append(np.repeat([scale / len(left), -scale / len(right)], [len(left), len(right)]))
    ends = np.cumsum([0, *map(len, columns)])
    tree = csr_array((np.concatenate(values), np.concatenate(columns), ends), shape=(count, count))
    tree.sort_indices()
    return tree, np.array([0, *(depth for depth, _, _ in rows)], dtype=np.int64)
