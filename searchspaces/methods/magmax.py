"""What is MagMax? Of each entry the change of largest magnitude."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from searchspaces.composition import Composition
from searchspaces.facts.facts import Facts
from searchspaces.method import LAMBDA, OnTaskVectors
from searchspaces.option import Spec
from searchspaces.row import Row


class MagMax(OnTaskVectors):
    """`W = theta_0 + lambda * sum_k c_k agree_k tau_k` (Marczak et al., ECCV 2024, equation 2).

    `agree_k` is 1 where `|tau_k|` is the largest of all experts' (of equal ones the first's), whatever the
    coefficients. All c = 1 is the published merge, lambda being its scale (the authors' script of eight data
    sets has .5).
    """

    summary: ClassVar[str] = "of each entry the task vector of largest magnitude, times its expert's coefficient"
    options: ClassVar[Mapping[str, Spec]] = {"lambda": LAMBDA}
    restores = False

    def compose(self, row: Row, facts: Facts) -> Composition:
        return Composition(1.0, row.coefficients, consensus="largest", scale=row.number("lambda"))
