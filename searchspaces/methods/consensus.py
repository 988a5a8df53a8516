"""What is consensus merging? Task arithmetic on the entries that several tasks need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from searchspaces.composition import Composition
from searchspaces.facts.facts import Facts
from searchspaces.method import LAMBDA, OnTaskVectors
from searchspaces.option import Number, Spec
from searchspaces.row import Row


class Consensus(OnTaskVectors):
    """`W = theta_0 + lambda * m * sum_k c_k tau_k`, m = 1 where at least `least` experts' masks are.

    An expert's TALL mask is where `|tau_k| > threshold |sum_j tau_j - tau_k|` (Wang et al., ICML 2024, equation 5; m
    is of section 4.2, which has `least` 2 and tries thresholds of 0.2 to 0.6). Masks do not depend on the
    coefficients. More masks than experts are never asked for: one expert alone stays whole.
    """

    summary: ClassVar[str] = "task arithmetic on the entries that several experts need (TALL masks)"
    options: ClassVar[Mapping[str, Spec]] = {
        "threshold": Number(
            0.4,
            0.0,
            10.0,
            search=(0.1, 1.0),
            says="How large an entry is that its expert needs, in units of all others' sum there; more keeps fewer.",
        ),
        "least": Number(
            2,
            1,
            1000,
            search=(1, 3),
            whole=True,
            says="How many experts must need an entry for it to stay; more keeps fewer.",
        ),
        "lambda": LAMBDA,
    }
    restores = False

    def compose(self, row: Row, facts: Facts) -> Composition:
        return Composition(
            base=1.0,
            weights=row.coefficients,
            consensus="shared",
            threshold=row.number("threshold"),
            least=min(int(row.number("least")), facts.count),
            scale=row.number("lambda"),
        )
