"""What does a search algorithm see, and what does it say? The ask / tell contract. Imports nothing of the project."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Point: TypeAlias = NDArray[np.float64]

ANCHOR = "anchor: "
"""What the stage of a question begins with that asks for an anchor; its label follows."""

FOREIGN = -1
"""`Question.number` of a question that somebody else asked: its outcome is a warm start, no answer of ours."""

AGAIN = 10**9
"""A failed candidate that a user has asked again has its number and this: drivers have heard of the failure, and a
replay tells them of it; no driver counts so far."""

WHOLE = 10**12
"""One that was told from some items, and is scored on all in the end, has its number and this: more than `AGAIN` as
often as anyone asks."""

REFERENCE = "reference: "
"""What the stage of a question begins with that is about a model as it is; `base`, or the expert's name, follows."""

ROUNDING = 1e-12
"""Of the larger of two losses: they do not differ, where it is by no more than this."""


class DriverError(ValueError):
    """An option, a domain or an answer that a driver refuses: what was expected, what arrived, what to do."""

    exit_code = 2


class Domain(Protocol):
    """All that a driver ever sees of a search space. Every array is float64 of shape `(dim,)`, in natural units.

    `kinds` says of each coordinate whether it is `real`, an `integer` (whole numbers from low to high), or a `choice`
    (one of the whole numbers from 0 to high, in no order). Only points whose integers and choices are whole may be
    asked: `at` and `snapped` make such points.

    `shape` is the block shape `(groups, experts)`: coordinate `g * experts + k` belongs to group g and expert k.
    Further coordinates, of whatever kind, follow that block.
    `layers`, one name a group, says which groups lie in one layer of the model. `base` is the point that is the base,
    `uniform` that of all experts alike, and `vertices` `(experts, dim)` the points at which one expert stands alone;
    they may lie outside the bounds. A space whose weights are not affine in the point has no vertices, and one that
    cannot reach the base, or has no slope there, no base.
    """

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def low(self) -> Point: ...
    @property
    def high(self) -> Point: ...
    @property
    def start(self) -> Point: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def layers(self) -> tuple[str, ...]: ...
    @property
    def base(self) -> Point | None: ...
    @property
    def uniform(self) -> Point: ...
    @property
    def vertices(self) -> NDArray[np.float64] | None: ...
    @property
    def kinds(self) -> tuple[Literal["real", "integer", "choice"], ...]: ...


def steps(domain: Domain) -> NDArray[np.float64]:
    """How many values each coordinate has, `(dim,)`; 0 of those that are real."""
    if all(kind == "real" for kind in set(domain.kinds)):
        return np.zeros(len(domain.low))
    counts = np.floor(domain.high) - np.ceil(domain.low) + 1
    return np.where([kind != "real" for kind in domain.kinds], counts, 0.0)


def at(domain: Domain, unit: NDArray[np.float64]) -> Point:
    """The point of the domain for one of the unit cube, `(dim,)`; all values of an integer have parts alike."""
    counts = steps(domain)
    point = np.clip(domain.low + unit * (domain.high - domain.low), domain.low, domain.high)
    if not counts.any():
        return point
    return np.where(
        counts > 0, np.ceil(domain.low) + np.clip(np.floor(unit * counts), 0.0, np.maximum(counts - 1, 0)), point
    )


def unit_of(domain: Domain, point: Point) -> NDArray[np.float64]:
    """Where in the unit cube a point is, clipped to it: `at`'s inverse, and the middle of a value's part."""
    counts, span = steps(domain), domain.high - domain.low
    unit = np.clip((point - domain.low) / np.where(span > 0, span, 1.0), 0.0, 1.0)
    middle = (snapped(domain, point) - np.ceil(domain.low) + 0.5) / np.maximum(counts, 1)
    return np.where(counts > 0, middle, unit)


def snapped(domain: Domain, point: Point) -> Point:
    """The point with its integers and choices at the nearest whole numbers that there are; what is real stays."""
    whole = steps(domain) > 0
    return np.where(whole, np.clip(np.rint(point), np.ceil(domain.low), np.floor(domain.high)), point)


def exact(domain: Domain, point: Point, slack: float = 0.0) -> bool:
    """Whether a point lies within the bounds, but for that part of their range, with whole integers and choices."""
    room = slack * (domain.high - domain.low)
    inside = (point >= domain.low - room) & (point <= domain.high + room)
    return bool(inside.all() and np.array_equal(point, snapped(domain, point)))


Split: TypeAlias = Literal["calibration", "heldout", "train"]
Wants: TypeAlias = Literal["scores", "gradient", "gradients", "cosines", "sizes", "grams"]


@dataclass(frozen=True)
class Items:
    """Which items a question is answered on: of each task `batch` items of the split, or all where that is 0.

    Where a job's driver asks for gradients, its calibration items are parted once: `train` is what gradients see, and
    `calibration` what candidates are scored on. Minibatch number `draw` holds the same items whoever asks, and draws
    0, 1, 2, ... go through the whole split before an item comes again.

    `places`, where a candidate is scored step by step (see `optimizer.executors.steps`), are the items' places in the
    split, a row for each of the job's evaluators; a driver leaves it alone.
    """

    split: Split = "calibration"
    batch: int = 0
    draw: int = 0
    places: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class Question:
    """One point, and what is wanted of it:

    - `scores`: the objectives' losses.
    - `gradient`: the mean over tasks of their training losses, and its derivative with respect to the point.
    - `gradients`: the same for each task by itself.
    - `cosines`: for coordinate (g, k), the sum over the tensors of group g of cos(dL/dW, theta_k); L is that mean.
    - `sizes`: for coordinate (g, k), the sum of the magnitudes of expert k's task vector in group g. Runs no items.
    - `grams`: for coordinate (g, k), its inner products in group g with the task vectors of all K experts, then the sum
      of its entries there, and their number: K + 2 rows. Runs no items, and any job may have it asked.

    `part` (i, n) is the share of it that a worker is given: a driver leaves it alone (see `optimizer.executors.parts`).
    `number` is unique within the driver that asked (0, 1, 2, ...); that of the outermost driver is the ledger's key.
    `stage` says in words who asks and why. It is for people, but for one thing: what begins with `ANCHOR` is one.
    """

    number: int
    point: Point  # (dim,)
    wants: Wants = "scores"
    items: Items = field(default_factory=Items)
    stage: str = ""
    part: tuple[int, int] = (0, 1)

    @property
    def model(self) -> str | None:
        """Of a reference, which no driver asks for: the base or expert that is scored as it is, instead of a point."""
        return self.stage.removeprefix(REFERENCE) if self.number < FOREIGN else None

    @property
    def is_candidate(self) -> bool:
        """Whether it may cost one of the evaluations that a run has."""
        return self.wants == "scores" and self.items.split == "calibration" and self.model is None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came back. Losses are minimised, and always finite: a failed candidate carries a worst rank and why.

    For `scores` these are the m objectives' losses, else the training losses of the T tasks, without standard errors
    (none of either for `sizes` and `grams`). `share` is that of the items which scores are from: below 1 they are
    estimates of the losses on all items, and the standard errors are the estimates'; else losses are exact for these
    items, whose errors they say. `gradient` has T rows for `gradients`, K + 2 for `grams`, and one for the
    other three. `failure` is `kind: reason`; of its kinds (nonfinite, oom, timeout, infrastructure, error) the first
    and last would come again.
    """

    question: Question
    losses: NDArray[np.float64]  # (m,) or (T,)
    stderr: NDArray[np.float64]  # (m,) or (T,), NaN where it is not known
    gradient: NDArray[np.float64] | None = None  # (T, dim), (K + 2, dim) or (1, dim)
    failure: str | None = None
    share: float = 1.0


class Driver(Protocol):
    """Proposes what to ask next, and learns from what came back.

    A driver is deterministic given its seed and the order of the calls below, in a fresh process too, and never touches
    a global random generator. Its whole state is what replaying that order into a fresh driver gives.
    """

    @property
    def done(self) -> bool:
        """True when no further question will ever come."""
        ...

    def ask(self, n: int) -> list[Question]:
        """At most n questions; fewer, or none, while it waits for answers. An ask that returns none changes nothing."""
        ...

    def replay(self, n: int, questions: Sequence[Question]) -> None:
        """Take the state that `ask(n)` had when it returned these questions, as cheaply as can be."""
        ...

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Learn from any subset of outcomes, in any order; `FOREIGN` ones may be used as a warm start or ignored."""
        ...


@runtime_checkable
class Trained(Protocol):
    """A driver that asks for gradients."""

    def trained_on(self, tasks: int) -> None:
        """Told before the first ask of how many tasks gradients will be. Raises DriverError on options of others."""
        ...


def reference(place: int, model: str, split: Split) -> Question:
    """What is asked about a model as it is, the place-th reference of a run: it has no point, and a number below 0."""
    return Question(FOREIGN - 1 - place, np.zeros(0), items=Items(split), stage=REFERENCE + model)


def checked_losses(
    outcome: Outcome,
    objectives: int,  # m
) -> NDArray[np.float64]:
    """The losses of an outcome, shape `(m,)`. Raises DriverError where there are not m, or one is not finite."""
    losses = np.asarray(outcome.losses, dtype=np.float64)
    if losses.shape != (objectives,) or not np.isfinite(losses).all():
        raise DriverError(
            f"expected {objectives} finite losses, but question {outcome.question.number} came back with"
            f" {np.array2string(losses, threshold=8)}; report such a candidate as failed"
        )
    return losses


def unit_between(
    low: NDArray[np.float64],  # (m,)
    high: NDArray[np.float64],  # (m,)
    alike: NDArray[np.float64] | float | None = None,
) -> NDArray[np.float64]:
    """What losses are divided by to be compared, `(m,)`: the range between these, or `alike` where they do not differ.

    Without `alike` that is the magnitude they have, and 1 where it is 0: losses of other units make no difference.
    """
    span, size = high - low, np.maximum(np.abs(low), np.abs(high))
    return np.where(span > ROUNDING * size, span, np.where(size > 0, size, 1.0) if alike is None else alike)


def preference(
    key: str,
    given: Sequence[float],
    each: str,
    count: int,  # m
) -> NDArray[np.float64]:
    """Weights `(m,)` that a job gives as `key`, one for each `each`, scaled to sum 1; raises DriverError on others."""
    row = np.array(given, dtype=np.float64)
    if row.shape != (count,) or not np.isfinite(row).all() or (row < 0).any() or not row.any():
        raise DriverError(
            f"{key}: expected {count} non-negative numbers, one for each {each}, with a positive sum,"
            f" got {row.tolist()}"
        )
    row = np.ldexp(row, -int(np.frexp(row.max())[1]))  # a power of two changes no bit, and the sum stays finite
    return np.asarray(row / row.sum())


def renumbered(question: Question, number: int) -> Question:
    """The same question under another number. `dataclasses.replace` takes five times as long, which replays feel."""
    return Question(number, question.point, question.wants, question.items, question.stage)


def random_stream(seed: int, *key: str | int) -> np.random.Generator:
    """A generator that is a function of the run's seed and a key (a stage, a question's number), of nothing else."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
