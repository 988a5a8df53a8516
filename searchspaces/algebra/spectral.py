"""What are a matrix's singular directions, and its polar factor?

Both are read off Gram matrices in float64 over the shorter side: as exact as a singular value decomposition in float32,
for two products and one symmetric eigenproblem. One of 32,000 x 2,048 takes 7 s of one core, one of 150,000 x 4,096
about 2 minutes, and memory for itself, for what is returned, and for three float64 matrices of the shorter side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch

BLOCK = 1 << 22  # elements that are float64 together
EPSILON = torch.finfo(torch.float32).eps


class Directions(NamedTuple):
    """`left diag(sizes) right^T` is the matrix `(n, m)`: float32 `(n, r)`, float64 `(r,)` falling, float32 `(m, r)`."""

    left: torch.Tensor
    sizes: torch.Tensor
    right: torch.Tensor


def directions(matrix: torch.Tensor, noise: float, most: int | None = None) -> Directions:
    """The largest singular directions of a matrix `(n, m)`: at most `most` of them, and none of a size up to `noise`.

    What is left out as noise has no direction of its own: any orthonormal vectors would do, and a method that gave them
    weight would depend on the library. Signs come in pairs, and cancel in `left diag(x) right^T`.
    """
    if matrix.shape[0] < matrix.shape[1]:
        right, sizes, left = directions(matrix.T, noise, most)
        return Directions(left, sizes, right)
    squares, vectors = torch.linalg.eigh(gram(matrix))
    sizes, vectors = squares.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
    # a square is exact to float64's rounding of the largest one
    least = max(noise, EPSILON * float(sizes[0])) if len(sizes) else noise
    count = int((sizes > least).sum())
    kept = slice(0, count if most is None else min(count, most))
    return Directions(_times(matrix, vectors[:, kept] / sizes[kept]), sizes[kept], vectors[:, kept].float())


def polar(columns: torch.Tensor) -> torch.Tensor:
    """`X (X^T X)^(-1/2)` of float32 `(n, p)`: of all matrices with orthonormal columns the nearest to X.

    Where columns depend on each other, to float32's rounding of them, it is the partial isometry of X: two equal
    columns become one direction that they share, each with its length over sqrt(2).
    """
    squares, vectors = torch.linalg.eigh(gram(columns))
    # rounding p columns moves singular values by up to p epsilon of the largest; of their squares float64 knows more
    kept = squares > (columns.shape[1] * EPSILON) ** 2 * squares[-1:].clamp(min=EPSILON)  # of length 1, or none at all
    vectors, squares = vectors[:, kept], squares[kept]
    return _times(columns, (vectors / squares.sqrt()) @ vectors.T)


def noise(base: torch.Tensor, deltas: Iterable[torch.Tensor]) -> float:
    """How large a singular value float32's rounding can make in the sum of these task vectors of a base, `(n, m)` all.

    Rounding moves weights by up to `epsilon / 2` of themselves; n x m independent errors of size e have a largest
    singular value of about `e (sqrt n + sqrt m)`, at most twice their Frobenius norm over the root of the shorter side.
    """
    spread = 2 * float(torch.linalg.vector_norm(base, dtype=torch.float64)) / max(1, min(base.shape)) ** 0.5
    return EPSILON * math.fsum(spread + float(torch.linalg.vector_norm(d, dtype=torch.float64)) for d in deltas)


def differences(base: torch.Tensor, experts: Mapping[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    """The task vectors of one tensor, float32, one after the other; `base` is float32."""
    return (expert.float() - base for expert in experts.values())


def summed(base: torch.Tensor, experts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The sum of the task vectors of one tensor, float64, in which the order of experts rounds nothing away."""
    total = torch.zeros_like(base, dtype=torch.float64)
    for delta in differences(base, experts):
        total += delta
    return total


def gram(matrix: torch.Tensor) -> torch.Tensor:
    """`matrix^T matrix` of `(n, m)`, `(m, m)` float64."""
    total = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64)
    for part in _blocks(matrix):
        total.addmm_(part.T, part)
    return total


def _times(matrix: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """The product, in float64, of a matrix `(n, m)` and a float64 one `(m, p)`; float32."""
    out = torch.empty(matrix.shape[0], factor.shape[1])
    at = 0
    for part in _blocks(matrix):
        out[at : at + len(part)] = part @ factor
        at += len(part)
    return out


def _blocks(matrix: torch.Tensor) -> Iterable[torch.Tensor]:
    """Rows of a matrix, float64, so many at a time that float64 copies stay small."""
    rows = max(1, BLOCK // max(1, matrix.shape[1]))
    return (matrix[at : at + rows].double() for at in range(0, len(matrix), rows))


def shares(base: torch.Tensor, experts: Mapping[str, torch.Tensor], of: Directions) -> torch.Tensor:
    """How much of each singular direction of the sum of task vectors is each expert's: `u_i^T tau_k v_i / s_i`.

    `(K, r)` float32, of float32 `base`. They sum to 1 over experts; where experts pull against each other some are
    above 1 and some below 0, by as much as the sum is smaller than they are.
    """
    left = of.left.double()
    found = torch.stack([(left * _times(d, of.right.double())).sum(dim=0) for d in differences(base, experts)])
    return (found / found.sum(dim=0)).float()  # the sum is s_i, to rounding
