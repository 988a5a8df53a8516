"""What is isotropic merging with task-specific directions? The sum's largest, and each expert's, all made equal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch

from searchspaces.algebra.spectral import Directions, differences, directions, noise, polar, shares, summed
from searchspaces.given import Given
from searchspaces.method import LAMBDA, OnProcessed
from searchspaces.option import Number, Option, Spec


class IsoCTS(OnProcessed):
    """`W = theta_0 + lambda * sum_k c_k tau'_k`, where all c = 1 give Iso-CTS: `theta_0 + lambda * mean(S) U V^T`, U, S
    and V joined from the largest directions of the sum of task matrices and the largest of each expert in what those
    leave of its own, U and V then made orthonormal (Marczak et al., ICML 2025, 2502.04959, algorithm 2).

    `tau'_k = mean(S) (U_k V_k^T + U_0 diag(w_k) V_0^T)`: its own directions are an expert's alone, and of the common
    ones it has the shares w_k, as in `iso_c`. Option `common`: the share of the directions that are the sum's (0.8);
    the rest is parted equally, rounded as the authors' code does.

    What is not a matrix, rounding and one expert alone are as in `iso_c`.
    """

    summary: ClassVar[str] = "Iso-C with the sum's least directions replaced by some of each expert's (Iso-CTS)"
    options: ClassVar[Mapping[str, Spec]] = {
        "common": Number(
            0.8,
            0.0,
            1.0,
            prepared=True,
            says="The share of directions that are those of the sum; the others are parted among the experts.",
        ),
        "lambda": LAMBDA,
    }
    cancels: ClassVar[bool] = True
    version: ClassVar[int] = 3
    sweep = (0.2, 0.4, 0.7, 1.0, 1.3, 1.6, 2.0)

    def __init__(self, options: Mapping[str, Option]) -> None:
        super().__init__(options)
        self._common = float(options["common"])

    def process(self, given: Given) -> Iterator[torch.Tensor]:
        """`mean(S) (U_0 diag(w_k) V_0^T + U_k V_k^T)`, of `(n, m)`. Beside one of them U and V are held, twice."""
        base, experts = given.base.float(), given.experts
        if base.dim() != 2 or len(experts) == 1:
            yield from given.averaged()
            return
        parts = self._parts(base, experts)
        counts = [len(p.sizes) for p in parts]
        mean = float(torch.cat([p.sizes for p in parts]).sum()) / max(1, sum(counts))
        left, *lefts = torch.split(polar(torch.cat([p.left for p in parts], dim=1)), counts, dim=1)
        right, *rights = torch.split(polar(torch.cat([p.right for p in parts], dim=1)), counts, dim=1)
        for share, own_left, own_right in zip(shares(base, experts, parts[0]), lefts, rights, strict=True):
            yield ((left * share) @ right.T + own_left @ own_right.T).mul_(mean)

    def _parts(self, base: torch.Tensor, experts: Mapping[str, torch.Tensor]) -> list[Directions]:
        """The common directions, then those of each expert in what these leave of its task matrix."""
        short, count = min(base.shape), len(experts)
        # the authors' rounding, which makes the experts' shares equal; but no more than there is room for
        own = min(round((short - int(short * self._common)) / count), short // count)
        rounding = noise(base, differences(base, experts))
        common = directions(summed(base, experts), rounding, short - own * count)
        found = [common]
        for delta in differences(base, experts):
            rest = delta - common.left @ (common.left.T @ delta)
            found.append(directions(rest, noise(base, [delta]), own))
        return found
