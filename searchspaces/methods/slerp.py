"""What is SLERP? A point on the arc from the base to one expert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from searchspaces.algebra import span
from searchspaces.composition import Composition
from searchspaces.facts.facts import Facts
from searchspaces.option import Spec
from searchspaces.row import Row

STRAIGHT = 0.9995  # cosines above it in magnitude: a line, as in mergekit
SHORT = 1e-8  # a norm at most this is none


class Slerp(span.InSpan):
    """`W = sin((1 - t) a) / sin a theta_0 + sin(t a) / sin a theta_1` (Shoemake 1985), t being the expert's
    coefficient.

    a is the angle between base and expert, tensor by tensor. Where its cosine is above 0.9995 or below -0.9995, which
    is so of most fine-tuned models, W is on the line: `(1 - t) theta_0 + t theta_1`. A tensor of zeros is at a right
    angle to all others. One expert: `nuslerp` is between two, and `multislerp` and `karcher` among any number.
    """

    summary: ClassVar[str] = "on the arc from the base to one expert, as far as its coefficient says"
    options: ClassVar[Mapping[str, Spec]] = {}
    experts: ClassVar[tuple[int, int | None]] = (1, 1)
    sweep = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)

    def compose(self, row: Row, facts: Facts) -> Composition:
        """The same arc for all of a tensor."""
        gram = facts.gram()
        base, expert = np.eye(2)[0], span.experts(1, task_vectors=False)[0]
        sizes = span.lengths(np.stack([base, expert]), gram)
        cosine = span.inner(base, gram, expert) / np.where(sizes > SHORT, sizes, 1.0).prod()
        first, second = span.arc(row.coefficients[0], cosine, np.abs(cosine) > STRAIGHT)
        return span.composition(first * base + second * expert, task_vectors=False)
