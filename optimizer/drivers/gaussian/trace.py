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
REACH, LEAST, MOST = 0.3, 0.05, 0.7  # of the unit cube, that a climb goes from what is known
FIRST, REFIT = 4, 1.5  # gradients before length scale and noise are learned, and times as many before they are again
WIDER, NARROWER = 1.2, 0.85  # after a gradient that added volume, and one that did not


class Trace:
    """Volume that one model of all tasks' training losses foretells, from their values and gradients (`Slopes`).

    Losses are in units of those at the first point, which is the reference. Steps reach farther while they gain.

    Where each gradient is of few items of its own (`noisy`), losses are luck as well: what counts as found is what the
    model, which learns how much is luck, expects where gradients are; and since no gain can be told from luck either,
    how far steps reach is drawn anew for each.
    """

    def __init__(self, dim: int, noisy: bool = False) -> None:
        self._model, self._noisy, self._held, self._fitted = Slopes(dim, noisy), noisy, 0, 0
        self._units: list[Array] = []
        self._losses: list[Array] = []
        self._slopes: list[Array] = []
        self._scale: Array | None = None  # (tasks,)
        self._volume: Volume | None = None
        self._reaches = [REACH]  # by how many gradients there are

    def learn(
        self,
        unit: Array,  # (dim,)
        losses: Array,  # (tasks,), training losses
        slopes: Array,  # (tasks, dim), with respect to the unit cube's point
    ) -> None:
        """Take a gradient in."""
        if self._scale is None:
            largest = np.abs(losses).max()
            self._scale = np.maximum(np.abs(losses), 0.01 * largest) if largest > 0 else np.ones_like(losses)
            self._volume = Volume(len(losses))
        assert self._volume is not None
        scaled, slopes = losses / self._scale, slopes / self._scale[:, None]
        before = self._volume.value
        self._volume.add(scaled[None])
        gained, reach = self._volume.value > before or not self._units, self._reaches[-1]
        self._reaches.append(min(reach * WIDER, MOST) if gained else max(reach * NARROWER, LEAST))
        self._units.append(unit)
        self._losses.append(compressed(scaled))
        self._slopes.append(slopes / np.maximum(scaled, 1.0)[:, None])

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
        units, losses = np.array(self._units[:count]), np.array(self._losses[:count])
        if self._held != count:
            self._fit(count)
            self._model.condition(units, losses, np.array(self._slopes[:count]))
            self._held = count
        if self._noisy:
            losses = self._model(units)[0]
        volume = Volume(losses.shape[1])
        if known:
            volume.add(losses)
        if len(there):
            volume.add(self._model(np.array(there))[0])
        directions = drawn_directions(stream, CLIMBS, volume.m)
        starts = units[((1 - losses) / directions[:, None]).min(axis=-1).argmax(axis=1)]
        drawn = stream.random((CLIMBS, 1))
        reach = REACH * 10**-drawn if self._noisy else self._reaches[count] * (0.2 + 0.8 * drawn)
        ends = climb(self._model, starts, directions, None, reach, np.zeros_like(starts), STEPS)
        return np.asarray(ends[int(np.argmax(volume.gain(self._model(ends)[0])))])

    def _fit(self, count: int) -> None:
        """Learn length scale and noise from the gradients that there were when that was due, whoever asks when."""
        due = self._fitted
        while (following := max(math.ceil(due * REFIT), FIRST)) <= count:
            due = following
        if due > self._fitted:
            self._fitted = due
            self._model.fit(*(np.array(known[:due]) for known in (self._units, self._losses, self._slopes)))
