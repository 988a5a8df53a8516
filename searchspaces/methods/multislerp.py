"""What is Multi-SLERP? The direction of the weighted mean of directions, at the mean length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from searchspaces.algebra import span
from searchspaces.composition import Composition
from searchspaces.facts.facts import Facts
from searchspaces.option import Flag, Option, Spec
from searchspaces.row import Row


class MultiSlerp(span.InSpan):
    """`W = sum_k w_k |v_k| m`, m the direction of `sum_k w_k u_k` (Goddard 2024).

    mergekit goes on from m by a step on the sphere, `exp_m(sum_k w_k (u_k - <u_k, m> m))`; that sum is 0, as m is the
    direction of the mean itself. `u_k` are the directions of tensors `v_k`: experts, or with `task_vectors` their task
    vectors, the base then being added (mergekit given a base). w are the coefficients, over their sum with
    `normalize_weights`. Where directions cancel, W is `sum_k w_k v_k` (mergekit: of two experts; of more it refuses).
    One expert alone is that expert, whatever its weight, but coefficients that are all 0, or sum to 0 where that is
    divided by, give the base.
    """

    summary: ClassVar[str] = "weighted mean of the experts' directions on the sphere, at their mean length"
    options: ClassVar[Mapping[str, Spec]] = {
        "task_vectors": Flag(
            False, says="Whether directions are those of task vectors, and not of the experts themselves."
        ),
        "normalize_weights": Flag(True, says="Whether coefficients are divided by their sum."),
    }
    experts: ClassVar[tuple[int, int | None]] = (1, None)

    def __init__(self, options: Mapping[str, Option]) -> None:
        if not options["normalize_weights"]:
            self.sweep = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)

    def compose(self, row: Row, facts: Facts) -> Composition:
        """One weight a model, for all of a tensor."""
        weights, total = row.coefficients, float(row.coefficients.sum())
        normalize, task_vectors = row.flag("normalize_weights"), row.flag("task_vectors")
        if not weights.any() or (normalize and total == 0.0):
            return span.nothing(facts.count)
        vectors = span.experts(facts.count, task_vectors)
        if facts.count == 1:
            return span.composition(vectors[0], task_vectors)
        weights = weights / total if normalize else weights
        return span.composition(span.direction_mean(vectors, facts.gram(), weights), task_vectors)
