"""How much would a candidate add to the front? The hypervolume by directions, for any number of objectives."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, qmc

Array = NDArray[np.float64]
DIRECTIONS = 512
LEAST = 1e-3  # of a direction's entries: an objective that counts for nothing would divide by it


class Volume:
    """The volume below the reference (1, ..., 1) that losses in box units dominate, as a mean over directions.

    For directions d spread evenly over the positive part of the unit sphere, the volume is
    `c_m mean_d max_i s_d(f_i)^m` with `s_d(f) = max(0, min_j (1 - f_j) / d_j)` and c_m the volume of that part of the
    ball (Deng & Zhang 2019; Zhang & Golovin 2020, arXiv:2006.04655). What a candidate adds costs
    O(directions m), whatever the size of the front.
    """

    def __init__(self, objectives: int) -> None:
        self.m = objectives
        self._inverse = _inverse(objectives)
        self._factor = math.pi ** (objectives / 2) / (2**objectives * math.gamma(objectives / 2 + 1))
        self._reached = np.zeros(DIRECTIONS)  # max_i s_d(f_i)^m

    def add(
        self,
        losses: Array,  # (n, m), in box units
    ) -> None:
        """Take candidates in."""
        if len(losses):
            self._reached = np.maximum(self._reached, self._powers(losses).max(axis=0))

    def gain(
        self,
        losses: Array,  # (n, m)
    ) -> Array:
        """What each would add by itself, `(n,)`."""
        return np.asarray(self._factor * np.maximum(self._powers(losses) - self._reached, 0.0).mean(axis=1))

    def nearness(
        self,
        losses: Array,  # (n, m)
    ) -> Array:
        """How near each is to the best of all along the direction that suits it most: 1 on the front, 0 outside."""
        powers = self._powers(losses)
        return np.asarray((powers / np.maximum(powers.max(axis=0), 1e-300)).max(axis=1))

    @property
    def value(self) -> float:
        """The volume."""
        return float(self._factor * self._reached.mean())

    def _powers(self, losses: Array) -> Array:
        left = np.maximum(1.0 - losses, 0.0)
        lengths = left[:, :1] * self._inverse[0]
        for j in range(1, self.m):  # a reduction over so short an axis takes ten times as long
            np.minimum(lengths, left[:, j : j + 1] * self._inverse[j], out=lengths)
        return np.asarray(lengths**self.m)


@cache
def _inverse(objectives: int) -> Array:
    """One over each entry of the directions, `(m, directions)`, which are always the same."""
    found = 1 / spread_directions(objectives, DIRECTIONS).T
    found.setflags(write=False)
    return found


def spread_directions(objectives: int, count: int) -> Array:
    """Directions `(count, m)` spread evenly over the positive part of the unit sphere; the same every time."""
    # a fixed scramble: these are an integral's nodes, and no choice of a run's
    units = qmc.Sobol(objectives, scramble=True, bits=32, rng=np.random.default_rng(0)).random(count)
    normal = np.abs(norm.ppf(np.clip(units, 1e-6, 1 - 1e-6)))
    return np.asarray(np.maximum(normal / np.linalg.norm(normal, axis=1, keepdims=True), LEAST))
