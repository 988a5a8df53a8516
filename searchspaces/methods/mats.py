"""What is MaTS? RegMean's equations solved by conjugate gradients, from a good merge and not to the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch

from searchspaces.algebra.systems import grams_of
from searchspaces.given import Given
from searchspaces.method import LAMBDA, OnProcessed
from searchspaces.option import Choice, Number, Option, Spec

SOLVED = 1e-5
"""Conjugate gradients end where the residual's norm is this share of `|sum_k A_k theta_k|`: scipy's own end for the
authors' system, whose unknowns are weights and not task vectors.

What is left in directions that inputs hardly have is rounding, which further iterations would blow up.
"""


class Mats(OnProcessed):
    """`W = theta_0 + lambda * sum_k c_k tau'_k`, where conjugate gradients make `sum_k tau'_k` nearly solve a system.

    It is `(sum_k A_k) X = sum_k A_k tau_k`, with so many `iterations` (Tam et al., TMLR 2024, 2312.04339), and A_k the
    Gram of a linear layer's inputs in expert k on its own calibration items, entries off its diagonal times `scale`:
    the authors' RegMean objective, not the one with gradients of outputs. `initial`, where they start: the `average` of
    the experts, the `base`, or `task_arithmetic` with 0.3 of each task vector (what the authors start from, with a
    coefficient that they chose for the pool). One run of iterations is over all of a weight's entries, in float64.

    The merge that all coefficients 1 give is the published one: its steps' lengths, which follow from all task vectors
    together, are kept, and each expert's part of the starting point and of the right side takes the same steps. So the
    parts sum to the whole, and the merge is linear in the coefficients. Iterations end early where the residual is 1e-5
    of `sum_k A_k theta_k`, as the authors' do: their system has weights for unknowns, `(sum_k A_k) W = sum_k A_k
    theta_k`. Its residuals are the same, its right side is larger.

    What no expert has a Gram of is averaged, as in `regmean`. Directions that no expert's inputs have stay where they
    start.
    """

    summary: ClassVar[str] = "task arithmetic on RegMean's equations solved by conjugate gradients, not to the end"
    options: ClassVar[Mapping[str, Spec]] = {
        "lambda": LAMBDA,
        "iterations": Number(
            100,
            0,
            10_000,
            whole=True,
            prepared=True,
            says="Steps of conjugate gradients at most; more come nearer to the solution.",
        ),
        "initial": Choice(
            "average",
            ("average", "base", "task_arithmetic"),
            prepared=True,
            says="Where they start: at the experts' average, the base, or 0.3 of each task vector added to it.",
        ),
        "scale": Number(
            1.0,
            0.0,
            1.0,
            prepared=True,
            says="What entries off the Grams' diagonals are multiplied by; 0 takes inputs for unrelated.",
        ),
    }
    cancels: ClassVar[bool] = True
    version: ClassVar[int] = 3
    gathers: ClassVar[str] = "gram"
    usual = 1.0  # the published merge

    def __init__(self, options: Mapping[str, Option]) -> None:
        super().__init__(options)
        self._iterations, self._initial = int(options["iterations"]), str(options["initial"])
        self._scale = float(options["scale"])

    def process(self, given: Given) -> Iterator[torch.Tensor]:
        """Twice over the experts: for the whole, and for each part. Raises PoolError for Grams that do not fit."""
        base, experts, grams = given.base, given.experts, grams_of(given, self._scale)
        if grams is None:
            yield from given.averaged()
            return
        start = {"average": 1 / len(experts), "base": 0.0, "task_arithmetic": 0.3}[self._initial]
        weighed = torch.zeros_like(grams.inward(base))  # sum_k A_k tau_k
        moved = weighed.clone()  # sum_k tau_k
        for expert, tensor in experts.items():
            tau = grams.inward(tensor.float() - base.float())
            weighed += grams.of(expert) @ tau
            moved += tau
        residual = weighed - start * (grams.total @ moved)
        right = weighed + grams.total @ grams.inward(base)  # sum_k A_k theta_k
        values, vectors = torch.linalg.eigh(grams.total)
        weights = (vectors.T @ residual).square().sum(1)
        reach = reach_of(values, weights, self._iterations, SOLVED * float(right.norm()))
        for expert, tensor in experts.items():
            tau = grams.inward(tensor.float() - base.float())
            # its part of right side minus left side at the start
            part = vectors.T @ (grams.of(expert) @ tau - start * (grams.total @ tau))
            yield grams.outward(start * tau + vectors @ (reach[:, None] * part))


def reach_of(values: torch.Tensor, weights: torch.Tensor, iterations: int, end: float) -> torch.Tensor:
    """How far conjugate gradients (Hestenes & Stiefel 1952) go along each eigenvector of a matrix, per residual there.

    All that they do is a polynomial of the matrix, the same whatever the basis: in that of the eigenvectors an
    iteration is as cheap as a vector. `values` `(n,)` are the eigenvalues, `weights` `(n,)` the squares of the residual
    at the start, summed by eigenvector; the result is `(n,)` too. They end early where the residual's norm is at most
    `end`, or the matrix is 0 along a direction.
    """
    left, direction, reach = torch.ones_like(values), torch.ones_like(values), torch.zeros_like(values)
    size = float((weights * left**2).sum())
    for _ in range(iterations):
        bend = float((weights * values * direction**2).sum())
        if size <= end**2 or bend <= 0:
            break
        alpha = size / bend
        reach += alpha * direction
        left -= alpha * values * direction
        before, size = size, float((weights * left**2).sum())
        direction = left + size / before * direction
    return reach
