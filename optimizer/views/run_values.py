"""What is told of a run and of its front? The shape of every value."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from optimizer.views.rounding import Column

Status = Literal["running", "stopped", "finished", "starting", "failed"]
Phase = Literal["search", "finalists", "heldout", "over"]


class Plain(BaseModel):
    """A value of the API."""

    model_config = ConfigDict(extra="forbid")


class Objective(Plain):
    name: str
    goal: Literal["min", "max"]


class Best(Plain):
    """The candidate of the best mean; `values` by objective, in natural units."""

    number: int
    label: str
    values: dict[str, float]


class Spent(Plain):
    hours: float = 0.0
    gpu_hours: float = 0.0
    money: float = 0.0


class Summary(Plain):
    """A run in a line. Times are seconds since the epoch; `spark` is the hypervolume over the candidates answered."""

    name: str
    status: Status
    driver: str = ""
    method: str = ""
    objectives: list[Objective] = []
    evaluations: int = 0
    answered: int = 0
    failed: int = 0
    repeated: int = 0
    hypervolume: float = 0.0
    spark: list[float] = []
    best: Best | None = None
    eta_seconds: float | None = None
    spent: Spent = Spent()
    created: float | None = None
    updated: float | None = None
    parent: str | None = None
    error: str | None = None
    event: int = -1


class Axis(Plain):
    """A coordinate of the search space; `labels` are what the codes 0, 1, ... mean, where they mean something."""

    name: str
    low: float
    high: float
    kind: Literal["real", "integer", "choice"]
    labels: list[str] | None = None


class Gap(Plain):
    """The winner's curse of an objective: calibration less held-out, the mean over the front."""

    objective: str
    value: float
    stderr: float | None


class Reference(Plain):
    """A model of the pool as it is; values in the order of the objectives."""

    label: str
    values: Column
    stderr: Column
    heldout: Column | None
    heldout_stderr: Column | None


class Stage(Plain):
    """What a stage did: its first and last candidate in the order answered, and the hypervolume that came with it."""

    stage: str
    first: int
    last: int
    count: int
    gain: float


class Items(Plain):
    """An evaluator's calibration items: how many, and a digest of which; and how many are held out. Runs of the same
    calibration items are comparable."""

    items: int
    digest: str
    heldout: int = 0


class Fidelity(Plain):
    """What it saved to score candidates on few items first: on so many each of `rungs`, before all of them.

    `partly` candidates were told from some items alone, `whole` were scored on all, in a share `time` of what all on
    all would take. Of `checked` estimates `within` held when the score on all items came.
    """

    rungs: list[int]
    partly: int
    whole: int
    time: float | None
    checked: int
    within: int


class Run(Summary):
    """A run whole, its candidates apart.

    `phase`: `finalists` are scored on all items once the search is over, then the front on held-out ones. `fidelity` is
    null where all candidates are scored on all items. `broken` says of models why they could not be scored as they are.
    `driver_done`: its driver has nothing left to ask, or nothing new; `reached`: which limit of the budget ended it.
    """

    constraints: list[str]
    groups: list[str]
    experts: list[str]
    axes: list[Axis]
    metrics: dict[str, str | None]
    verdict: str | None
    knee: int | None
    curse: list[Gap]
    references: list[Reference]
    stages: list[Stage]
    seed: int | None
    calibration: dict[str, Items]
    heldout_done: bool
    heldout_asked: int
    heldout_answered: int
    phase: Phase
    driver_done: bool = False
    reached: str | None = None
    fidelity: Fidelity | None
    provenance: dict[str, list[str]]
    broken: dict[str, str]


class Curve(Plain):
    answered: list[int]
    hypervolume: list[float]
    epsilon: list[float]
    stage: list[int]
    stages: list[str]


class Picked(Plain):
    """What of the front suits wishes best: a mean of losses in units of the anchors' range, weighed; and how many meet
    the conditions."""

    number: int
    label: str
    values: dict[str, float]
    score: float
    meeting: int


class Front(Plain):
    """The front of one of several runs, best mean first; `against` says how far it falls short of the others'."""

    name: str
    numbers: list[int]
    labels: list[str]
    values: list[Column]
    stderr: list[Column]
    heldout: list[Column]
    heldout_stderr: list[Column]
    hypervolume: float
    answered: int
    against: dict[str, Against]


class Against(Plain):
    igd_plus: float
    epsilon: float


class Fronts(Plain):
    objectives: list[Objective]
    runs: list[Front]
