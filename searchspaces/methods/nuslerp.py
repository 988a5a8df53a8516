"""What is NuSLERP? A point on the arc between two experts, or between their task vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from searchspaces.algebra import span
from searchspaces.composition import Composition
from searchspaces.facts.facts import Facts
from searchspaces.option import Choice, Flag, Spec
from searchspaces.row import Row

SHORT = 1e-7  # norms count as at least this much
FLAT = 1e-12  # squared sines at most this are those of one line
TINY = 1e-6  # a sum of coefficients below it means the middle


class NuSlerp(span.InSpan):
    """`W = sin((1 - t) a) / sin a v_1 + sin(t a) / sin a v_2`, t = c_2 / (c_1 + c_2): mergekit's `nuslerp`.

    a is the angle between v_1 and v_2: experts, or with `task_vectors` their task vectors, the base then being added
    (mergekit given a base). Option `along`: a tensor has one angle (`flat`), or each of its rows has its own (`rows`;
    all but its last dimension are rows), or each of what runs along its first dimension (`columns`). Where v_1 and v_2
    are on one line, so is W; a vector of zeros is at a right angle to all others. Coefficients whose sum is below 1e-6
    in magnitude mean the middle, but both 0 the base.
    """

    summary: ClassVar[str] = "on the arc between two experts, or between their task vectors"
    options: ClassVar[Mapping[str, Spec]] = {
        "along": Choice(
            "flat",
            ("flat", "rows", "columns"),
            says="What has an angle of its own: a tensor, each of its rows, or each of its columns.",
        ),
        "task_vectors": Flag(
            False, says="Whether the arc is between task vectors, and not between the experts themselves."
        ),
    }
    experts: ClassVar[tuple[int, int | None]] = (2, 2)

    def compose(self, row: Row, facts: Facts) -> Composition:
        """One pair of weights for the tensor, or one for each row or column."""
        if not row.coefficients.any():
            return span.nothing(2)
        total = float(row.coefficients.sum())
        t = 0.5 if abs(total) < TINY else float(row.coefficients[1]) / total
        along = row.word("along") if len(facts.shape) > 1 else "flat"
        gram = facts.gram() if along == "flat" else facts.row_grams(along == "columns")
        one, other = span.experts(2, row.flag("task_vectors"))
        sizes = [np.maximum(span.lengths(v, gram), SHORT) for v in (one, other)]
        cosine = np.clip(span.inner(one, gram, other) / (sizes[0] * sizes[1]), -1.0, 1.0)
        first, second = span.arc(t, cosine, 1.0 - cosine**2 <= FLAT)
        merged = first[..., None] * one + second[..., None] * other
        return span.composition(merged, row.flag("task_vectors"), columns=along == "columns")
