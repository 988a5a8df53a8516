"""What does a worker send back? One candidate's scores, or why there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evaluators.evaluator import Measure
from optimizer.wording import shown

FailureKind = Literal["nonfinite", "oom", "timeout", "infrastructure", "error"]


@dataclass(frozen=True)
class Failure:
    """Why a candidate has no scores."""

    kind: FailureKind
    reason: str

    def __post_init__(self) -> None:
        # whatever an evaluator or a library raised: it goes into ledgers, terminals, logs and pages
        object.__setattr__(self, "reason", shown(self.reason))

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"

    @property
    def passing(self) -> bool:
        """True where it may have been the machine: with more time, memory or luck the candidate may have scores."""
        return self.kind in ("infrastructure", "timeout", "oom")


@dataclass(frozen=True)
class Try:
    """One attempt at a question that gave no answer; another followed."""

    worker: str
    kind: FailureKind
    reason: str


@dataclass(frozen=True)
class Told:
    """What a candidate's scores were thought to be from a share of the calibration items: (value, standard error)."""

    share: float
    measures: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Answer:
    """What came of question `number` on the items of `split`.

    `measures` and `per_item` are keyed by qualified metric name (`spam.accuracy`); per-item values are float32 `(n,)`.
    Where a gradient was wanted, `measures` holds the training loss of each task (`spam.training_loss`, no standard
    error) and `gradient` the derivatives, float64 `(1, dim)` or `(T, dim)`, or what else was
    wanted of coefficients (see `optimizer.driver.Question`). `part` is that of the question.
    `attempts` is how often it was tried, and `tries` what became of all attempts but the last. `of` is the number of
    the question of the same recipe whose answer this is a copy of: no worker was asked.

    `share` is that of the calibration items on which it was scored. Where it is below 1 the measures are estimates for
    all of them, whose `count` is the number of those seen, and per-item values are NaN for the others. `told` is what
    was estimated on the way, step by step.
    """

    number: int
    split: str
    measures: Mapping[str, Measure] = field(default_factory=dict)
    per_item: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    failure: Failure | None = None
    seconds: float = 0.0
    worker: str = ""
    attempts: int = 1
    gradient: NDArray[np.float64] | None = None
    part: tuple[int, int] = (0, 1)
    tries: Sequence[Try] = ()
    of: int | None = None
    share: float = 1.0
    told: Sequence[Told] = ()

    @property
    def whole(self) -> bool:
        """Whether all items of its split were scored."""
        return self.share == 1.0

    def agrees(self, other: Answer) -> bool:
        """True when both say the same of the same question; timings and workers may differ."""
        return (self.number, self.split, dict(self.measures), self.failure, _bits(self.gradient)) == (
            other.number,
            other.split,
            dict(other.measures),
            other.failure,
            _bits(other.gradient),
        )


def training_loss(task: str) -> str:
    """What an answer's measures call the training loss of a task."""
    return f"{task}.training_loss"


def _bits(gradient: NDArray[np.float64] | None) -> bytes | None:
    return None if gradient is None else gradient.tobytes()
