"""What is isotropic merging? The sum of task matrices with all its singular values made equal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch

from searchspaces.algebra.spectral import differences, directions, noise, shares, summed
from searchspaces.given import Given
from searchspaces.method import LAMBDA, OnProcessed
from searchspaces.option import Spec


class IsoC(OnProcessed):
    """`W = theta_0 + lambda * sum_k c_k tau'_k`, where all c = 1 give Iso-C: `theta_0 + lambda * mean(S) U V^T` of
    `U S V^T = sum_k tau_k` (Marczak et al., ICML 2025, 2502.04959; lambda is their alpha, searched for in (0, 3]).

    `tau'_k = mean(S) U diag(w_k) V^T` with `w_ki = u_i^T tau_k v_i / s_i`: each direction is parted among the experts
    by what they put into it. Shares sum to 1, and are above 1 or below 0 where experts pull against each other. What
    an expert does across directions, `u_i^T tau_k v_j`, cancels in the sum and is left out: parts that keep it (divided
    by the mean of s_i and s_j) are as exact, but several times larger, and learned coefficients gained nothing by them.

    As in the authors' code (danielm1405/iso-merging) embeddings are matrices like any other, and what is not a matrix
    is averaged, `tau'_k` being `tau_k / K` there: vectors, kernels of convolutions, a layer's experts stored as one
    tensor. Singular values that are float32's rounding count as none: directions without one have no weight, and the
    mean is over the others, so that task vectors of low rank stay so. One expert alone stays itself.
    """

    summary: ClassVar[str] = "sum of task matrices with equal singular values (Iso-C), split among the experts"
    options: ClassVar[Mapping[str, Spec]] = {"lambda": LAMBDA}
    cancels: ClassVar[bool] = True
    version: ClassVar[int] = 3
    sweep = (0.2, 0.4, 0.7, 1.0, 1.3, 1.6, 2.0)

    def process(self, given: Given) -> Iterator[torch.Tensor]:
        """`mean(S) U diag(w_k) V^T`, of `(n, m)`. Beside one of them U and V are held, or the sum in float64."""
        base, experts = given.base.float(), given.experts
        if base.dim() != 2 or len(experts) == 1:
            yield from given.averaged()
            return
        found = directions(summed(base, experts), noise(base, differences(base, experts)))
        mean = float(found.sizes.sum()) / max(1, len(found.sizes))
        for share in shares(base, experts, found):
            yield (found.left * (mean * share)) @ found.right.T
