"""What is a Karcher mean? The point on the sphere from which the ways to all experts cancel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from searchspaces.algebra import span
from searchspaces.composition import Composition
from searchspaces.facts.facts import Facts
from searchspaces.option import Number, Spec
from searchspaces.row import Row


class Karcher(span.InSpan):
    """`W = sum_k a_k |theta_k| m`, m with `sum_k a_k log_m(u_k) = 0` (Karcher 1977), `a = c / sum c`.

    `u_k` are the directions of the experts' tensors; m is what at most `max_iter` steps `exp_m(sum_k a_k log_m(u_k))`
    find from their mean, until one is shorter than `tol`. Equal coefficients are mergekit's `karcher`. Experts whose
    tensor is shorter than `tol` have no direction. Coefficients that sum to 0 give the base.
    """

    summary: ClassVar[str] = "Karcher mean of the experts on the sphere, weighted by coefficients"
    options: ClassVar[Mapping[str, Spec]] = {
        "max_iter": Number(
            *(10, 0, 1000),
            search=(1, 20),
            whole=True,
            says="Steps towards the mean at most; more come nearer to it.",
        ),
        "tol": Number(
            *(1e-5, 0.0, 0.01),
            says="The length of a step, in radians, at which it ends; shorter tensors have no direction.",
        ),
    }
    experts: ClassVar[tuple[int, int | None]] = (1, None)

    def compose(self, row: Row, facts: Facts) -> Composition:
        """One weight a model, for all of a tensor."""
        total = float(row.coefficients.sum())
        if total == 0.0:
            return span.nothing(facts.count)
        shares = row.coefficients / total
        vectors = span.experts(facts.count, task_vectors=False)
        steps, tolerance = int(row.number("max_iter")), row.number("tol")
        return span.composition(span.karcher_mean(vectors, facts.gram(), shares, steps, tolerance), task_vectors=False)
