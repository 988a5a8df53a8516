"""Which methods are generalised task arithmetic? A table of rows: what stays of task vectors, and who agrees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from searchspaces.algebra.sparsify import DROP, MAGNITUDE_DROP, OUTLIERS, TRIM, WHOLE, Sparsifier
from searchspaces.composition import Composition, Consensus
from searchspaces.facts.facts import Facts
from searchspaces.method import LAMBDA, OnTaskVectors
from searchspaces.option import Flag, Option, Spec
from searchspaces.row import Row

TINY = 1e-8  # a sum of weights below it normalises nothing, as in mergekit
NORMALIZE = "Whether what is added is divided by the sum of the coefficients that have a part in it."
RESCALE = "Whether what stays of a task vector is scaled up for what was dropped."


class Generalised(OnTaskVectors):
    """`W = theta_0 + lambda * sum_k c_k agree_k tau'_k / N`: sparsify, elect, normalise, combine, entry by entry.

    `tau'_k` is what the row's sparsifier keeps of `tau_k`, rescaled with `rescale`. Where signs are elected,
    `agree_k` is 1 where `c_k tau'_k` has the sign of `sum_j c_j tau'_j` (a sum of 0 counts as positive), and W is not
    linear in c; elsewhere it is 1. N is `sum_j c_j agree_j` with `normalize`, or 1, and 1 where that sum is 0. Every
    row is the method of its name in mergekit, but for random ones' rescaling: by 1/p, which keeps each entry's
    expectation (the papers), and not by the ratio of the sums of magnitudes. Density and what else is by expert may
    differ by group too.
    """

    summary: ClassVar[str]
    options: ClassVar[Mapping[str, Spec]]
    sparsifier: ClassVar[Sparsifier]
    consensus: ClassVar[Consensus]

    def __init_subclass__(cls, *, sparsifier: Sparsifier, elect: bool, normalize: bool, rescale: bool) -> None:
        """A row of the table: `normalize` and `rescale` are the defaults of those options."""
        cls.sparsifier, cls.consensus = sparsifier, "weighted" if elect else "none"
        cls.linear, cls.random = not elect, sparsifier.random
        rescales = {"rescale": Flag(rescale, says=RESCALE)} if sparsifier.options else {}
        cls.options = {**sparsifier.options, "normalize": Flag(normalize, says=NORMALIZE), **rescales, "lambda": LAMBDA}

    def __init__(self, options: Mapping[str, Option]) -> None:
        super().__init__(options)
        self._normalize = bool(options["normalize"])
        self.affine = self.linear and not self._normalize
        whole = bool(np.all(np.asarray(options.get("density", 1.0)) >= 1))
        self.restores = whole and not (self._normalize and self.unit != 1)
        if self._normalize:  # a common factor cancels: no coefficient scales one expert, or a sweep
            self.unit, self.sweep = 1.0, ()

    def compose(self, row: Row, facts: Facts) -> Composition:
        """Weights c, or c over their sum where all agree: those need no divisor entry by entry."""
        c = row.coefficients
        keeps = tuple(self.sparsifier.keep(row, facts, k) for k in range(facts.count))
        elects, scale = self.consensus != "none", row.number("lambda")
        weights = c / self._total(c) if self._normalize and not elects else c
        divisors = weights if self._normalize and elects else None
        return Composition(1.0, weights, keeps, self.consensus, divisors=divisors, scale=scale)

    def pull(self, row: Row, base: float, experts: NDArray[np.float64]) -> NDArray[np.float64]:
        """`d_k`; normalised, `(d_k - sum_j s_j d_j) / sum c` with `s = c / sum c`, as long as that sum is not 0."""
        c = row.coefficients
        total = self._total(c)
        if not self._normalize or total != c.sum():
            return experts
        return np.asarray((experts - (c / total) @ experts) / total)

    @staticmethod
    def _total(c: NDArray[np.float64]) -> float:
        total = float(c.sum())
        return total if abs(total) >= TINY else 1.0


class TaskArithmetic(Generalised, sparsifier=WHOLE, elect=False, normalize=False, rescale=False):
    """`W = theta_0 + lambda * sum_k c_k tau_k` (Ilharco et al., ICLR 2023, 2212.04089)."""

    summary = "base + lambda * sum of coefficient * (expert - base)"


class Ties(Generalised, sparsifier=TRIM, elect=True, normalize=True, rescale=False):
    """TIES (Yadav et al., NeurIPS 2023, section 3) as mergekit has it: signs are elected with the coefficients in.

    Its tensors are trimmed one by one, and a tensor keeps an entry at least. `ties_once` elects once, as the paper.
    """

    summary = "task vectors trimmed, signs elected by coefficients, the average of what agrees"


class DareLinear(Generalised, sparsifier=DROP, elect=False, normalize=False, rescale=True):
    """DARE (Yu et al., ICML 2024, equation 3): `tau'_k = m_k tau_k / density`, `m_k ~ Bernoulli(density)`."""

    summary = "task arithmetic on task vectors with entries dropped at random"


class DareTies(Generalised, sparsifier=DROP, elect=True, normalize=False, rescale=True):
    """DARE before TIES's election (Yu et al., ICML 2024, section 3.2)."""

    summary = "entries dropped at random, signs elected by coefficients"


class Della(Generalised, sparsifier=MAGNITUDE_DROP, elect=True, normalize=True, rescale=True):
    """DELLA (Deep et al. 2024, section 3): MAGPRUNE drops more where magnitudes rank low, then signs are elected."""

    summary = "small entries dropped at random more often than large ones, signs elected by coefficients, averaged"


class DellaLinear(Generalised, sparsifier=MAGNITUDE_DROP, elect=False, normalize=False, rescale=True):
    """DELLA's MAGPRUNE (Deep et al. 2024, section 3.1), then task arithmetic."""

    summary = "task arithmetic on task vectors with small entries dropped more often than large ones"


class Breadcrumbs(Generalised, sparsifier=OUTLIERS, elect=False, normalize=False, rescale=False):
    """Model Breadcrumbs (Davari and Belilovsky, ECCV 2024, equations 2 to 4): neither outliers nor small entries."""

    summary = "task arithmetic on task vectors without outliers and small entries"


class BreadcrumbsTies(Generalised, sparsifier=OUTLIERS, elect=True, normalize=False, rescale=False):
    """Model Breadcrumbs's masks, then TIES's election (mergekit)."""

    summary = "neither outliers nor small entries, signs elected by coefficients"
