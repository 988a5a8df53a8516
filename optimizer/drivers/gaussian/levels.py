"""Which point next, by scores alone? Coarse moves first, then finer ones, where the processes promise most volume."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, qmc

from optimizer.driver import Domain, at, steps, unit_of
from optimizer.drivers.gaussian.climb import climb, compressed, compressed_errors, drawn_directions
from optimizer.drivers.gaussian.depth import Depth
from optimizer.drivers.gaussian.features import Features
from optimizer.drivers.gaussian.process import Process
from optimizer.volume import Volume

Array = NDArray[np.float64]

CLIMBS, STEPS = 32, 40
REACH = 0.3  # of the unit cube, that climbs of finer levels go at most; coarse ones go anywhere
STRAY, ANEW = 0.2, 1.5  # of the climbs draw a choice anew, and so many choices a climb at most, on average
REDRAWN = 20  # times at most, where all that climbs lead to is known,
NUDGE = 0.02  # of the unit cube, by which coefficients are moved then
SAMPLES = 16  # of a candidate's losses, for the volume that it is expected to add
KNOWN = 500  # answers that the processes hold, and
FITTED = 300  # that length scales are learned from, whose cost grows with the cube: of more, those nearest to the front
REFIT = 1.2  # times as many answers as at the last fit call for another
FAILED = 2.0  # in box units: what a failure is taken for, where nothing worse is known


class Levels:
    """Expected volume over Gaussian processes of the objectives, in a space that grows finer.

    Level by level the search may move: each expert's mean coefficient, and all that is no coefficient; then the halves
    and quarters of the model; then parts half as large, down to single groups (`Features`): as fine as `Depth` says. A
    candidate is the end of a climb along a direction of the box (`climb`), of many the one that
    is expected to add most to the volume that answers, without their noise, and what is on its way dominate.

    All losses are in box units, `(m,)`.
    """

    def __init__(self, domain: Domain, objectives: int) -> None:
        self._domain, self._features, self._m = domain, Features.of(domain), objectives
        depth = self._features.depth
        self._levels: list[int] = sorted({0, *range(min(2, depth), depth + 1)})
        self._moves = [self._features.moves(finest) for finest in self._levels]
        kinds, level = self._features.kind, self._features.level
        coarse = np.array([bool((level[kinds == i] == 0).all()) for i in range(int(kinds.max()) + 1)])
        self._process = Process(kinds, coarse, objectives)
        self._fitted = 0
        self._units: list[Array] = []
        self._losses: list[Array] = []
        self._errors: list[Array] = []
        self._held: tuple[int, Array, Array] | None = None
        self._volume = Volume(objectives)
        self._seen: dict[bytes, int] = {}  # a point -> how many answers there were before its own
        self._unsure: dict[bytes, int] = {}  # a point -> its answer, where that is an estimate or a failure until now
        self._after: dict[int, int] = {}  # an answer that was one -> the scores that took its place
        self._rows: list[Array] = []  # features
        free = domain.high > domain.low
        groups, experts = domain.shape
        experts = int(free[: groups * experts].reshape(groups, experts).any(axis=0).sum())
        further = int(free[self._features.reals].sum())
        sizes = [moves.parts * experts + further for moves in self._moves]  # moves that lead anywhere
        self.needed = min(2 * sizes[0] + 8, 40)
        """Answers without which the processes know next to nothing."""
        self._depth = Depth(sizes, self.needed)

    @property
    def count(self) -> int:
        """Answers taken in."""
        return len(self._units)

    @property
    def units(self) -> list[Array]:
        """Where they are."""
        return self._units

    def level(self, count: int, number: int | None) -> int:
        """How fine the moves of question `number` are after so many answers."""
        return self._levels[self.place(count, number)]

    def place(self, count: int, number: int | None) -> int:
        """The place of that level among those there are, the coarsest first."""
        return self._depth.at(count, number)

    def learn(
        self,
        unit: Array,  # (dim,)
        losses: Array | None,  # (m,); None: it failed
        place: int | None = None,  # of the level at which it was asked, if it may be or be compared with a scout
        errors: Array | None = None,  # (m,), standard errors of estimates; None: the losses are exact
    ) -> None:
        """Take an answer in. What is known already is no news, but scores after an estimate or a failure are.

        Estimates lengthen the side of the volume by which `Depth` goes as far as they are sure, by one standard error:
        the best of many are lucky.
        """
        key, exact = _key(unit), losses is not None and errors is None
        if key not in self._seen:
            self._seen[key] = len(self._units)
            if not exact:
                self._unsure[key] = len(self._units)
        elif exact and key in self._unsure:
            self._after[self._unsure.pop(key)] = len(self._units)
        else:
            return
        if losses is None:
            losses = np.max([np.full(self._m, FAILED), *self._losses], axis=0)
        else:
            self._volume.add((losses if errors is None else losses + errors)[None])
        self._units.append(unit)
        self._losses.append(losses)
        self._errors.append(np.zeros(self._m) if errors is None else errors)
        self._rows.append(self._features(unit[None])[0])
        self._depth.add(self._volume.value ** (1 / self._m), place)

    def propose(
        self,
        count: int,
        number: int | None,  # of the question, if it may be a scout
        pending: Sequence[Array],  # points on their way, each (dim,)
        stream: np.random.Generator,
    ) -> Array:
        """The next unit point `(dim,)`, by the first `count` answers alone; `count` never falls."""
        known, smooth = self._conditioned(count)
        volume = Volume(self._m)
        volume.add(smooth)
        model = _Seen(self._features, self._process)
        if len(pending):
            volume.add(model(np.array(pending))[0])
        ends = self._climbed(model, known, smooth, self.place(count, number), stream)
        ends = self._unknown(ends, count, pending, stream)
        features = self._features(ends)
        means, deviations = self._process(features)[0], self._process.deviation(features)
        normal = norm.ppf(0.998 * qmc.Sobol(self._m, rng=stream).random(SAMPLES) + 0.001)
        sampled = means + deviations * normal[:, None]  # (samples, climbs, m)
        gain = volume.gain(sampled.reshape(-1, self._m)).reshape(SAMPLES, -1).mean(axis=0)
        if not gain.any():  # nothing is expected inside the box: what comes nearest to it, if all goes well
            gain = -(means - deviations).max(axis=1)
        return np.asarray(ends[int(np.argmax(gain))])

    def _conditioned(self, count: int) -> tuple[Array, Array]:
        """Bring the processes to so many answers. Those that they hold: points, and expected losses there."""
        if self._held is None or self._held[0] != count:
            self._fit(count)
            units, features, losses, errors = self._known(count, KNOWN)
            self._held = count, units, self._process.condition(features, losses, errors)
        return self._held[1:]

    def _climbed(self, model: _Seen, units: Array, losses: Array, stage: int, stream: np.random.Generator) -> Array:
        """Where climbs end, `(climbs, dim)`; each starts at the known point that is best along its direction."""
        directions = drawn_directions(stream, CLIMBS, self._m)
        starts = units[((1 - losses) / directions[:, None]).min(axis=-1).argmax(axis=1)]
        moves, level = self._moves[stage], self._levels[stage]
        reach = np.ones((CLIMBS, 1)) if level == 0 else REACH * (0.3 + 0.7 * stream.random((CLIMBS, 1)))
        first = 0.1 * reach / math.sqrt(1 + level) * stream.standard_normal((CLIMBS, len(moves)))
        for i, count in self._features.choices:
            anew = stream.random(CLIMBS) < min(STRAY, ANEW / len(self._features.choices))
            starts[anew, i] = (stream.integers(count, size=int(anew.sum())) + 0.5) / count
        return climb(model, starts, directions, moves, reach, first, STEPS)

    def _unknown(self, ends: Array, count: int, pending: Sequence[Array], stream: np.random.Generator) -> Array:
        """Those that are news, with integers and choices as they will be asked; drawn anew where all are known.

        An answer at a known point is no news, so that the same would be asked for ever.
        """
        counts = steps(self._domain)
        whole = np.flatnonzero(counts > 0)
        reals = np.flatnonzero((counts == 0) & (self._domain.high > self._domain.low))
        asked = {_key(unit) for unit in pending}
        for _ in range(REDRAWN):
            if len(whole):
                ends = np.array([unit_of(self._domain, at(self._domain, end)) for end in ends])
            keys = [_key(end) for end in ends]
            news = np.array([self._seen.get(k, count) >= count and k not in asked for k in keys])
            if news.any():
                return np.asarray(ends[news])
            turned = stream.random((len(ends), len(whole))) < max(STRAY, 1 / max(1, len(whole)))
            ends[:, whole] = np.where(turned, stream.random(turned.shape), ends[:, whole])
            ends[:, reals] = np.clip(ends[:, reals] + NUDGE * stream.standard_normal(ends[:, reals].shape), 0, 1)
        return ends

    def _fit(self, count: int) -> None:
        """Learn hyperparameters from the answers that there were when a fit was due, whoever asks when."""
        due = self._fitted
        while (following := max(math.ceil(due * REFIT), self.needed)) <= count:
            due = following
        if due > self._fitted:
            self._fitted = due
            self._process.fit(*self._known(due, FITTED)[1:])

    def _known(self, count: int, most: int) -> tuple[Array, Array, Array, Array]:
        """Units, features, losses and errors of the first `count` answers; of many, the `most` nearest the front."""
        rows = [i for i in range(count) if self._after.get(i, count) >= count]
        told, errors = np.array([self._losses[i] for i in rows]), np.array([self._errors[i] for i in rows])
        losses, errors = compressed(told), compressed_errors(told, errors)
        if len(rows) > most:
            best = np.sort(np.lexsort((losses.mean(axis=1), -self._volume.nearness(losses)))[:most])
            rows, losses, errors = [rows[i] for i in best], losses[best], errors[best]
        return np.array([self._units[i] for i in rows]), np.array([self._rows[i] for i in rows]), losses, errors


def _key(unit: Array) -> bytes:
    """A point, but for rounding."""
    return (np.round(unit, 9) + 0.0).tobytes()


class _Seen:
    """The processes, of unit points instead of features."""

    def __init__(self, features: Features, process: Process) -> None:
        self._features, self._process = features, process

    def __call__(self, units: Array) -> tuple[Array, tuple[Array, list[Array]]]:
        features = self._features(units)
        losses, kept = self._process(features)
        return losses, (features, kept)

    def pull(self, units: Array, kept: tuple[Array, list[Array]], weights: Array) -> Array:
        return self._features.pull(self._process.pull(*kept, weights))
