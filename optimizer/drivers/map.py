"""Where next, when losses are quadratics in a few coefficients? Points of their front (MAP, arXiv:2406.07529)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import qmc

from optimizer.driver import (
    FOREIGN,
    Domain,
    DriverError,
    Outcome,
    Point,
    Question,
    at,
    checked_losses,
    exact,
    random_stream,
    unit_of,
)
from optimizer.drivers.searches.quadratic import Array, Surface, fitted, front, where_it_errs
from optimizer.drivers.shared.unasked import unasked

PLAIN = 3  # experts; quadratics in more coefficients have more numbers than most budgets have evaluations
WITHIN = 1e-6  # of the range: an answer so near to a plane lies in it
NEAR = 1e-3  # of the range: a front's point so near to one that was asked has no news
LONGEST = 1.5  # times what a pair was found to be best at: how far a later round may scale it
POOL = 1024


@dataclass(frozen=True, eq=False)
class _Strand:
    """Experts that are scaled together: shares `origin + s way`, `(K,)`, for s from low to high."""

    way: Array  # (K,)
    low: float
    high: float


@dataclass(eq=False)
class _Node:
    """Some strands, the answers that lie in the plane that they span, and how many were asked there."""

    name: str
    strands: Sequence[_Strand]
    origin: Array  # (K,)
    points: list[Array] = field(default_factory=list)  # each (r,), where a candidate succeeded
    losses: list[Array] = field(default_factory=list)  # each (m,)
    failed: list[Array] = field(default_factory=list)
    known: tuple[int, Surface, Array] | None = None  # of so many answers

    def __post_init__(self) -> None:
        self.ways = np.array([strand.way for strand in self.strands])  # (r, K)
        self.low, self.high = (np.array([getattr(s, end) for s in self.strands]) for end in ("low", "high"))
        self._inverse = np.linalg.pinv(self.ways)

    @property
    def size(self) -> int:
        """How many numbers a quadratic here has."""
        return (len(self.ways) + 1) * (len(self.ways) + 2) // 2

    def place(self, share: Array) -> Array | None:
        """Where in the plane, `(r,)`, the shares of experts `(K,)` lie; None where they do not."""
        found = (share - self.origin) @ self._inverse
        off = np.abs(self.origin + found @ self.ways - share).max()
        return found if off < WITHIN else None

    def fit(self) -> Surface:
        return fitted(np.array(self.points), np.array(self.losses))


class MAP:
    """Model merging with amortised Pareto fronts: a quadratic for each objective, fitted to points, and its front.

    Works on **one coefficient per expert, tied over all groups** of the space, at the same part of each group's bounds;
    whatever is no coefficient stays at its start. Layer by layer a quadratic has too many numbers, and fits badly. So
    it is good for spaces of granularity `model`, and elsewhere for a rough front at little cost. Foreign answers count
    where they are tied alike, as anchors are.

    The loss j of shares c in [0, 1]^K is taken for act(a_j + b_j c + c' Q_j c). Only a monotone act is asked for, and
    it moves no front: here it is linear near the best and exponential far from it (`levelled`), whatever the units.
    `samples` even points, then the point of the surfaces' front that lies farthest, in what they foretell, from all
    that was asked; they are fitted again with each answer. A point that was asked already gives way to one where they
    err most.

    Nested, pairs of experts are searched alone, then pairs of what is best in the mean of the objectives there (as
    `levelled` has them), each scaled as a whole, until two are left, whose front is asked. Nobody waits: what is
    asked while a round's last answers are on their way are further samples of it. A replay counts, and fits one
    quadratic a pair.
    """

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        samples: int | None = Field(
            None,
            ge=3,
            description="Points that a quadratic is first fitted to, of each round and pair where these are nested,"
            " and no fewer than it has numbers; more fit better. Default: twice the numbers that it has.",
        )
        nested: bool | None = Field(
            None,
            description="Whether experts are searched by pairs, then pairs of pairs: fewer evaluations, and a rougher"
            " front. Default: above 3 experts.",
        )
        sampling: Literal["even", "errors"] = Field(
            "even",
            description="Where these points are: `even` in the space, or half of them where the fit `errors` most.",
        )

    done = False

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        self._domain, self._objectives, self._seed, self._options = domain, objectives, seed, options
        groups, experts = domain.shape
        self._block = groups * experts
        free = (domain.high > domain.low)[: self._block].reshape(groups, experts)
        if not free.any() or any(kind != "real" for kind in domain.kinds[: self._block]):
            raise DriverError(
                "driver.name: map fits quadratics in the coefficients of experts, and this space has none to search;"
                " take tpe, or a method that has coefficients"
            )
        self._free, self._experts = free, np.flatnonzero(free.any(axis=0))
        self._tied = ", one coefficient per expert" if groups > 1 else ""
        self._number = 0
        self._pending: dict[int, Array] = {}  # question -> shares (K,)
        self._answers: list[tuple[Array, Array | None]] = []  # shares (K,), losses (m,) or None where it failed
        self._round = 0
        count = len(self._experts)
        base = domain.low if domain.base is None else np.clip(domain.base, domain.low, domain.high)
        # the base's share, of an expert's first free group
        self._origin = unit_of(domain, base)[: self._block].reshape(groups, experts)[self._first]
        self._nested = count > max(PLAIN, 2) if options.nested is None else options.nested and count > 2
        leaves = [_Strand(np.eye(count)[k], -self._origin[k], 1 - self._origin[k]) for k in range(count)]
        self._begin(leaves)

    def ask(self, n: int) -> list[Question]:
        """n questions: samples of the round, or points of the front."""
        questions = []
        for _ in range(n):
            node = min(self._nodes, key=self._asked)
            place, why = self._next(node)
            share = np.clip(node.origin + place @ node.ways, 0.0, 1.0)
            point = self._point(share)
            number = self._count(point)
            questions.append(Question(number, point, stage=f"map: {why}{self._tied}"))
        return questions

    def replay(self, n: int, questions: Sequence[Question]) -> None:
        """Notes where the questions lie."""
        for question in questions:
            self._count(question.point)

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Learn from answers. Raises DriverError on a loss that is not finite."""
        for outcome in outcomes:
            losses = None if outcome.failure is not None else checked_losses(outcome, self._objectives)
            number = outcome.question.number
            if number == FOREIGN:
                share = self._share(outcome.question.point)
            elif number in self._pending:
                share = self._pending.pop(number)
            else:
                raise unasked("map", number)
            if share is None:
                continue
            self._answers.append((share, losses))
            for node in self._nodes:
                _learn(node, share, losses)
            if not self._last and all(len(node.points) >= self._samples(node) for node in self._nodes):
                self._begin(self._joined())

    @property
    def _first(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Of each free expert, the first group in which it is free: where its share is read."""
        return self._free.argmax(axis=0)[self._experts], self._experts

    @property
    def _last(self) -> bool:
        """Whether this is the round whose front is asked."""
        return len(self._nodes) == 1 and self._over is None

    def _begin(self, strands: Sequence[_Strand]) -> None:
        """A round: all strands at once, or pairs of them."""
        size = 2 if self._nested else len(strands)
        groups = [strands[i : i + size] for i in range(0, len(strands), size)]
        # one without a partner waits for the next round
        self._over = groups.pop()[0] if len(groups) > 1 and len(groups[-1]) == 1 else None
        self._round += 1
        many = len(groups) > 1 or self._over is not None
        names = [f", round {self._round}, pair {i} of {len(groups)}" if many else "" for i in range(1, len(groups) + 1)]
        self._nodes = [_Node(name, some, self._origin) for name, some in zip(names, groups, strict=True)]
        for node in self._nodes:
            for share, losses in self._answers:
                _learn(node, share, losses)

    def _joined(self) -> list[_Strand]:
        """Each pair at its best in the mean of the objectives, as a strand."""
        strands = []
        for i, node in enumerate(self._nodes):
            surface = node.fit()
            mean = Surface(surface.weights.mean(axis=1, keepdims=True), surface.errors)
            best = front(mean, node.low, node.high, random_stream(self._seed, "map: pair", self._round, i))[0]
            way = best @ node.ways
            if np.abs(way).max() < NEAR:  # best left out: a later round finds that again, of their average
                way = node.ways.mean(axis=0) * (1 - self._origin)
            room = np.where(way > 0, 1 - self._origin, self._origin) / np.maximum(np.abs(way), NEAR)
            strands.append(_Strand(way, 0.0, float(min(LONGEST, room[np.abs(way) > NEAR].min(initial=LONGEST)))))
        return strands if self._over is None else [*strands, self._over]

    def _samples(self, node: _Node) -> int:
        return max(self._options.samples or 2 * node.size, node.size)

    def _asked(self, node: _Node) -> int:
        """How many points of the node's plane were asked."""
        return len(node.points) + len(node.failed) + len(self._waiting(node))

    def _waiting(self, node: _Node) -> list[Array]:
        places = (node.place(share) for share in self._pending.values())
        return [place for place in places if place is not None]

    def _next(self, node: _Node) -> tuple[Array, str]:
        """Where in a node's plane to ask, and what for."""
        waiting, needed = self._waiting(node), self._samples(node)
        asked, learnt = len(node.points) + len(waiting), len(node.points) >= node.size
        if self._last and learnt and asked >= needed:
            return self._of_front(node, waiting)
        if self._options.sampling == "errors" and learnt and asked >= needed // 2:
            return self._wrong(node, waiting), f"where it errs{node.name}"
        return self._even(node, self._asked(node), 1)[0], f"samples{node.name}"

    def _of_front(self, node: _Node, waiting: list[Array]) -> tuple[Array, str]:
        if node.known is None or node.known[0] != len(node.points):
            surface = node.fit()
            stream = random_stream(self._seed, "map: front", len(node.points))
            node.known = (len(node.points), surface, front(surface, node.low, node.high, stream))
        _, surface, found = node.known
        asked = np.array([*node.points, *node.failed, *waiting])
        ahead, behind = surface(found), surface(asked)
        span = np.ptp(ahead, axis=0)
        scale = np.where(span > 0, span, 1.0)
        gaps = np.min(np.sum(((ahead[:, None] - behind[None]) / scale) ** 2, axis=2), axis=1)
        range_ = node.high - node.low
        news = np.min(np.abs((found[:, None] - asked[None]) / range_).max(axis=2), axis=1) > NEAR
        if not news.any():
            return self._wrong(node, waiting), "where it errs, the front is asked"
        return found[int(np.argmax(np.where(news, gaps, -1.0)))], "the front that is foretold"

    def _wrong(self, node: _Node, waiting: list[Array]) -> Array:
        range_ = node.high - node.low
        pool = self._even(node, 0, POOL)
        others = np.array([*node.failed, *waiting]).reshape(-1, len(range_))
        chosen = where_it_errs(np.array(node.points) / range_, node.fit().errors, others / range_, pool / range_)
        return np.asarray(pool[chosen])

    def _even(self, node: _Node, first: int, count: int) -> Array:
        """Points `(count, r)` of a Sobol sequence over the node's plane, from its first one on."""
        stream = random_stream(self._seed, "map: even", self._round, node.name)
        sequence = qmc.Sobol(len(node.low), scramble=True, bits=32, rng=stream)
        if first:
            sequence.fast_forward(first)
        return np.asarray(node.low + sequence.random(count) * (node.high - node.low))

    def _point(self, share: Array) -> Point:
        """The point of the domain at shares `(K,)`: tied over groups, and all else at its start."""
        unit = np.zeros((self._free.shape[0], self._free.shape[1]))
        unit[:, self._experts] = share
        whole = np.concatenate([unit.ravel(), np.zeros(len(self._domain.low) - self._block)])
        return np.concatenate([at(self._domain, whole)[: self._block], self._domain.start[self._block :]])

    def _share(self, point: Point) -> Array | None:
        """The shares `(K,)` of a point that is tied over groups; None of another."""
        if not exact(self._domain, point):
            return None
        share = unit_of(self._domain, point)[: self._block].reshape(self._free.shape)[self._first]
        off, ranges = np.abs(self._point(share) - point), self._domain.high - self._domain.low
        return share if (off <= WITHIN * ranges).all() else None

    def _count(self, point: Point) -> int:
        """Number a question. Its shares are read off its point, as a replay does."""
        share = self._share(point)
        if share is None:
            raise DriverError("map: a recorded question is not tied over groups; start a new run")
        number, self._number = self._number, self._number + 1
        self._pending[number] = share
        return number


def _learn(node: _Node, share: Array, losses: Array | None) -> None:
    place = node.place(share)
    if place is None:
        return
    if losses is None:
        node.failed.append(place)
    else:
        node.points.append(place)
        node.losses.append(losses)
