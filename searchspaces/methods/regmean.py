"""What is RegMean? The weights whose outputs are nearest to every expert's on that expert's own inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch

from searchspaces.algebra.systems import grams_of
from searchspaces.errors import PoolError
from searchspaces.given import Given
from searchspaces.method import LAMBDA, OnProcessed
from searchspaces.option import Number, Option, Spec

ROUNDING = torch.finfo(torch.float32).eps
"""Of the Grams' entries, relative to their diagonal: a smaller ridge tells nothing apart from it."""


class RegMean(OnProcessed):
    """`W = theta_0 + lambda * sum_k c_k tau'_k` with `tau'_k = (sum_j G_j)^-1 G_k tau_k` for weights of linear layers.

    G_k is the Gram of the layer's inputs in expert k on its own calibration items, a mean over positions, and entries
    off its diagonal are multiplied by `scale` (Jin et al., ICLR 2023, 2212.09849). Biases, norms,
    embeddings and whatever else is no linear layer's are averaged, `tau_k / K`, and so is a linear layer's that no
    expert's data reached; an expert whose data alone did not reach it weighs nothing there. All coefficients 1 give the
    published merge.

    `ridge` adds that share of the experts' mean diagonal to each Gram, which is what a singular sum needs with `scale`
    1: what no expert's inputs tell apart is averaged. An input that is always 0 is averaged whatever the ridge. With
    `scale` below 1 the sum is never singular otherwise. Solved in float64 by Cholesky's factorisation.
    """

    summary: ClassVar[str] = "task arithmetic on task vectors weighted by the inputs of each layer in each expert"
    options: ClassVar[Mapping[str, Spec]] = {
        "lambda": LAMBDA,
        "scale": Number(
            0.9,
            0.0,
            1.0,
            prepared=True,
            says="What entries off the Grams' diagonals are multiplied by; 0 takes inputs for unrelated.",
        ),
        "ridge": Number(
            1e-6,
            0.0,
            1.0,
            prepared=True,
            says="The share of the Grams' mean diagonal that is added to each; more leans to the average.",
        ),
    }
    cancels: ClassVar[bool] = True
    version: ClassVar[int] = 2
    gathers: ClassVar[str] = "gram"
    usual = 1.0  # the published merge

    def __init__(self, options: Mapping[str, Option]) -> None:
        super().__init__(options)
        self._scale, self._ridge = float(options["scale"]), float(options["ridge"])

    def process(self, given: Given) -> Iterator[torch.Tensor]:
        """Raises PoolError where the sum of Grams is singular but for rounding, and for Grams that do not fit."""
        base, grams = given.base, grams_of(given, self._scale)
        if grams is None:
            yield from given.averaged()
            return
        ridge = self._ridge * grams.total.diagonal() / len(given.experts)
        total = grams.total + torch.diag(ridge * len(given.experts))
        factor, failed = torch.linalg.cholesky_ex(total)
        if failed or (self._ridge + 1 - self._scale < ROUNDING * len(total) and _singular(total)):
            raise PoolError(
                f"method regmean: the sum of the Grams of {given.name!r} is singular; set option scale below 1 (0.9 is "
                f"published), or raise ridge (now {self._ridge:g}, 1e-4 say)"
            )
        for expert, tensor in given.experts.items():
            tau = grams.inward(tensor.float() - base.float())
            weighed = grams.of(expert) @ tau + ridge[:, None] * tau
            yield grams.outward(torch.cholesky_solve(weighed, factor))


def _singular(total: torch.Tensor) -> bool:
    """Whether rounding of the entries of a sum of Grams, float64 `(n, n)`, may make it singular, or have hidden it.

    Of inputs of length 1, whatever theirs are: the least eigenvalue, which no pivot need be as small as.
    """
    scale = total.diagonal().rsqrt()
    least = torch.linalg.eigvalsh(scale[:, None] * total * scale)[0]
    return bool(least < ROUNDING * len(total))
