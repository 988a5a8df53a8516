"""What is told of candidates? The shape of every value."""

from __future__ import annotations

from typing import Literal

from optimizer.views.rounding import Column
from optimizer.views.run_values import Plain


class Candidates(Plain):
    """Candidates as columns: one list a column, one entry a candidate, in the order that was asked for.

    Values are lists by objective, in natural units, to six significant digits, errors to three. `stage` counts into
    `stages`. `rank` is the place by mean, from 0; candidates that failed, are another's copy, or were told from a
    `share` of the items, are -1; `reasons` are of those that failed. `now` are the numbers on the
    front at this event, whatever was asked for; with `since`, `ranks` and `sures` are those of all, by number.
    """

    event: int
    total: int
    numbers: list[int]
    labels: dict[int, str]
    stage: list[int]
    stages: list[str]
    recipe: list[str]
    values: list[Column]
    stderr: list[Column]
    heldout: list[Column]
    heldout_stderr: list[Column]
    front: list[bool]
    anchor: list[bool]
    feasible: list[bool]
    failed: list[bool]
    share: list[float]
    reasons: dict[int, str]
    rank: list[int]
    sure: Column
    seconds: list[float]
    now: list[int]
    ranks: dict[int, int] | None = None
    sures: dict[int, float] | None = None


class Coordinates(Plain):
    """What candidates are at: a list a coordinate, in the order of the candidates that `numbers` has."""

    event: int
    numbers: list[int]
    names: list[str]
    columns: list[list[float]]


class Importance(Plain):
    name: str
    importance: float


class Measured(Plain):
    value: float
    stderr: float | None
    count: int


class Tried(Plain):
    worker: str
    kind: str
    reason: str


class Candidate(Plain):
    """Everything about one candidate, or a model as it is (whose number is null).

    `picked` says which model each group comes from, where a method takes groups whole; else there are coefficients,
    groups by experts. `point` is what the driver asked, in the order of the run's axes. `sure` is how likely it is to
    be on the front in truth by the calibration items, `sure_heldout` by the held-out ones, once it is known.
    """

    number: int | None
    label: str
    stage: str
    recipe: str
    same_as: int | None
    groups: list[str]
    experts: list[str]
    coefficients: list[list[float]] | None
    picked: dict[str, str] | None
    settings: dict[str, str]
    point: list[float]
    point_names: list[str]
    measures: dict[str, Measured]
    heldout: dict[str, Measured]
    attempts: int
    tries: list[Tried]
    seconds: float
    worker: str
    failure: str | None
    share: float  # of the calibration items, on which it was scored; below 1 its scores are estimates
    front: bool
    anchor: bool
    feasible: bool
    sure: float | None
    sure_heldout: float | None = None


class Difference(Plain):
    """a less b, in natural units; wins are the items on which a is the better."""

    value: float
    stderr: float | None
    better: Literal["a", "b"] | None
    paired: bool
    wins: int | None
    losses: int | None
    ties: int | None


class Compared(Plain):
    objectives: dict[str, Difference]
    a_dominates_b: float | None
    b_dominates_a: float | None


class Pair(Plain):
    """One candidate against another, by split; `items` are differences item by item, a less b, by metric."""

    a: Candidate
    b: Candidate
    calibration: Compared | None
    heldout: Compared | None
    items: dict[str, dict[str, Column]]
    coefficients: list[list[float]] | None
