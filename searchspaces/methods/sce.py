"""What is SCE? Select entries that vary, calculate a coefficient for each matrix, erase minority signs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from searchspaces.composition import Composition
from searchspaces.facts.facts import Facts
from searchspaces.method import LAMBDA, OnTaskVectors
from searchspaces.option import Number, Spec
from searchspaces.row import Row

LEAST = 1e-6  # mergekit's divisor is at least this


class Sce(OnTaskVectors):
    """`W = theta_0 + lambda * sum_k c_k e_k agree_k tau'_k / sum_j e_j agree_j` (Wan et al. 2024, FuseChat, section
    3.3).

    `tau'_k` keeps the share `select_topk` of entries whose variance over the experts is largest (of those where it is
    not 0; of entries that vary equally, draws by tensor and place say which), the same of every expert; `e_k` is the
    mean of `tau'_k^2` over the sum of all experts'; `agree_k` is 1 where `tau'_k` has the sign of `sum_j tau'_j`. All
    c = 1 is the published merge, and mergekit's. As in mergekit, `e` is 1/K where those means sum to less than `floor`
    (0 for the paper, whatever the scale); one expert alone varies nowhere, and stays whole with a `select_topk` of 1
    only.
    """

    summary: ClassVar[str] = "entries that vary, weighted by their energy in each tensor, without minority signs"
    options: ClassVar[Mapping[str, Spec]] = {
        "select_topk": Number(
            0.1,
            0.0,
            1.0,
            search=(0.05, 1.0),
            above=True,
            says="The share of entries that stay, those that vary most over experts; 1 keeps all.",
        ),
        "floor": Number(1e-6, 0.0, 1e-3, says="Experts weigh alike where the energies of a tensor sum to less."),
        "lambda": LAMBDA,
    }
    usual = 1.0  # the published merge
    restores = False

    def compose(self, row: Row, facts: Facts) -> Composition:
        """Weights c: shares of energy, which they do not touch, are gains and divisors."""
        spread, until = facts.spread(row.number("select_topk"))
        energies = facts.energies(spread)
        if until < 1:  # those of just that variance as often as they are drawn
            energies = until * energies + (1 - until) * facts.energies(float(np.nextafter(np.float32(spread), np.inf)))
        total = float(energies.sum())
        flat = total == 0.0 or total < row.number("floor")
        shares = np.full(facts.count, 1.0 / facts.count) if flat else energies / total
        return Composition(
            base=1.0,
            weights=row.coefficients,
            consensus="equal",
            divisors=shares,
            # where experts of hardly any energy are alone to agree, mergekit divides by `LEAST`
            gains=shares * np.minimum(1.0, shares / LEAST),
            spread=spread,
            until=until,
            key=facts.key(None, seeded=False) if until < 1 else 0,
            scale=row.number("lambda"),
        )
