"""What is TSV-Merge? Task arithmetic on task matrices of low rank, whose singular vectors were made orthogonal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch

from searchspaces.algebra.spectral import differences, directions, noise, polar
from searchspaces.given import Given
from searchspaces.method import LAMBDA, OnProcessed
from searchspaces.option import Number, Option, Spec


class TsvM(OnProcessed):
    """`W = theta_0 + lambda * sum_k c_k U'_k S_k V'_k^T` (TSV-Merge, Gargiulo et al., CVPR 2025, 2412.00081).

    Of each expert's task matrix the `r / K` largest singular values `S_k` are kept, r being its shorter side; the
    singular vectors of all experts, side by side, are replaced by the nearest orthonormal ones, their polar factor
    (section 4.2). All coefficients 1 are the authors' TSV-M, and lambda is their alpha (1). Option `share`: how many
    singular vectors an expert keeps, as a multiple of its equal share `r / K`, at most all; above 1 they are more than
    fit in orthonormal columns, and the factor is the nearest partial isometry (the authors' lossless variant).

    As in the authors' code (AntoAndGar/task_singular_vectors) embeddings are matrices like any other, and what is not a
    matrix is averaged, `tau'_k` being `tau_k / K` there: vectors, kernels of convolutions, a layer's experts stored as
    one tensor. A matrix whose shorter side is less than K stays the base's. Singular values that are float32's rounding
    count as none, and directions that several experts have, to float32's rounding, are shared by them. One expert alone
    stays itself, but for what a `share` below 1 cuts.
    """

    summary: ClassVar[str] = "task arithmetic on task matrices of low rank with orthogonalised singular vectors (TSV-M)"
    options: ClassVar[Mapping[str, Spec]] = {
        "lambda": LAMBDA,
        "share": Number(
            1.0,
            0.0,
            64.0,
            above=True,
            prepared=True,
            says="Singular vectors that an expert keeps, in units of its equal share of the rank; more is less cut.",
        ),
    }
    version: ClassVar[int] = 2
    usual = 1.0  # the published merge

    def __init__(self, options: Mapping[str, Option]) -> None:
        super().__init__(options)
        self._share = float(options["share"])

    def process(self, given: Given) -> Iterator[torch.Tensor]:
        """`U'_k S_k V'_k^T`, of `(n, m)`. Beside one of them what is kept of U and V is held, twice."""
        base, experts = given.base.float(), given.experts
        if base.dim() != 2:
            yield from given.averaged()
            return
        most = int(self._share * min(base.shape) / len(experts))
        kept = [directions(delta, noise(base, [delta]), most) for delta in differences(base, experts)]
        counts = [len(d.sizes) for d in kept]
        lefts = torch.split(polar(torch.cat([d.left for d in kept], dim=1)), counts, dim=1)
        rights = torch.split(polar(torch.cat([d.right for d in kept], dim=1)), counts, dim=1)
        for left, own, right in zip(lefts, kept, rights, strict=True):
            yield (left * own.sizes.float()) @ right.T
