"""Which point next, by gradients? Where the losses that they foretell would add most volume."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from optimizer.drivers.gaussian.climb import climb, compressed, drawn_directions
from optimizer.drivers.gaussian.slopes import Slopes
from optimizer.volume import Volume

Array = NDArray[np.float64]

CLIMBS, STEPS = 24, 40
REACH, LEAST, MOST = 0.15, 0.02, 0.7  # of the unit cube, that a climb goes from what is known
FAR = 0.3  # the same, at most, where trust cannot be told
FIRST, REFIT = 4, 1.5  # gradients before length scale and noise are learned, and times as many before they are again
WELL, BADLY, FACTOR = 0.25, 0.5, 2.0  # not foretold of the latest slopes: reach is multiplied up to there, or divided


class Trace:
    """Volume that one model of all tasks' training losses foretells, from their values and gradients (`Slopes`).

    Losses are in units of those at the first point, which is the reference. Steps keep to a region of trust: whenever
    the model is learned anew, they reach farther where it foretold the latest slopes well, and less far where badly.
    Else it promises losses that no merge has: below zero, on real models.

    Where each gradient is of few items of its own (`noisy`), losses are luck as well: what counts as found, and as the
    reference, is what the model, which learns how much is luck, expects where gradients are; and since a bad model
    cannot be told from luck either, how far steps reach is drawn anew for each.
    """

    def __init__(self, dim: int, noisy: bool = False) -> None:
        self._model, self._noisy, self._held, self._fitted = Slopes(dim, noisy), noisy, 0, 0
        self._reach, self._scale = REACH, np.ones(0)
        self._found: tuple[Array, Array] = np.zeros((0, dim)), np.zeros((0, 1))  # points, and their losses
        self._units: list[Array] = []
        self._losses: list[Array] = []
        self._slopes: list[Array] = []

    def learn(
        self,
        unit: Array,  # (dim,)
        losses: Array,  # (tasks,), training losses
        slopes: Array,  # (tasks, dim), with respect to the unit cube's point
    ) -> None:
        """Take a gradient in."""
        if not self._units:
            self._scale = _floored(losses)
        self._units.append(unit)
        self._losses.append(losses)
        self._slopes.append(slopes)

    @property
    def count(self) -> int:
        """Gradients taken in."""
        return len(self._units)

    def propose(
        self,
        count: int,
        pending: Sequence[Array],  # points on their way, each (dim,)
        stream: np.random.Generator,
    ) -> Array:
        """Where a gradient would add most to the first `count`, a unit point `(dim,)`; `count` never falls."""
        return self._chosen(count, True, pending, stream)

    def cover(
        self,
        count: int,
        scored: Sequence[Array],  # points that are scored, or are about to be
        stream: np.random.Generator,
    ) -> Array:
        """The point whose foretold losses add most to those of points that are scored."""
        return self._chosen(count, False, scored, stream)

    def _chosen(self, count: int, known: bool, there: Sequence[Array], stream: np.random.Generator) -> Array:
        """What adds most to points that are `there`, and to those of which gradients are `known`."""
        if self._held != count:
            self._fit(count)
            units, losses, slopes = self._known(count)
            self._model.condition(units, losses, slopes)
            self._found = units, self._model(units)[0] if self._noisy else losses
            self._held = count
        units, losses = self._found
        volume = Volume(losses.shape[1])
        if known:
            volume.add(losses)
        if len(there):
            volume.add(self._model(np.array(there))[0])
        directions = drawn_directions(stream, CLIMBS, volume.m)
        starts = units[((1 - losses) / directions[:, None]).min(axis=-1).argmax(axis=1)]
        drawn = stream.random((CLIMBS, 1))
        reach = FAR * 10**-drawn if self._noisy else self._reach * (0.2 + 0.8 * drawn)
        ends = climb(self._model, starts, directions, None, reach, np.zeros_like(starts), STEPS)
        return np.asarray(ends[int(np.argmax(volume.gain(self._model(ends)[0])))])

    def _known(self, count: int) -> tuple[Array, Array, Array]:
        """The first gradients: points `(n, dim)`, losses `(n, tasks)` in units of the reference, and their slopes."""
        told, slopes = np.array(self._losses[:count]), np.array(self._slopes[:count])
        losses = told / self._scale
        slopes = slopes / self._scale[:, None] / np.maximum(losses, 1.0)[:, :, None]
        return np.array(self._units[:count]), compressed(losses), slopes

    def _fit(self, count: int) -> None:
        """Learn from the gradients that there were whenever that was due, whoever asks when."""
        while (due := max(math.ceil(self._fitted * REFIT), FIRST)) <= count:
            self._fitted = due
            left = self._model.fit(*self._known(due))
            if self._noisy:  # the first losses are luck; what all gradients say of that point is less so
                told = (np.array(known[:due]) for known in (self._units, self._losses, self._slopes))
                self._model.condition(*told)
                self._scale = _floored(self._model(np.array(self._units[:1]))[0][0])
            else:
                factor = FACTOR if left < WELL else 1 / FACTOR if left > BADLY else 1.0
                self._reach = min(max(self._reach * factor, LEAST), MOST)


def _floored(losses: Array) -> Array:
    """Absolute losses `(tasks,)`, none under a hundredth of the largest; of none at all, 1."""
    largest = np.abs(losses).max()
    return np.asarray(np.maximum(np.abs(losses), 0.01 * largest) if largest > 0 else np.ones_like(losses))
