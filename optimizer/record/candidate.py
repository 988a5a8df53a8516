"""What is known of one candidate? What it is, and what it scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evaluators.evaluator import Measure
from optimizer.answer import Failure, Told, Try
from optimizer.driver import ANCHOR, REFERENCE, Point


@dataclass(frozen=True, eq=False)
class Candidate:
    """One candidate: what it is, and what it scored on calibration and (where reported) on held-out items.

    A reference, a model of the pool that was scored as it is, has a number below 0, no point, and its model's content
    hash for a recipe. `of` is the candidate of the same recipe whose answer this is: it was not scored again.

    One that was scored on a `share` of the calibration items has estimates for measures, and is on no front; `told` is
    what was estimated at each rung. `row` is the number that its scores have in the ledger.
    """

    number: int
    stage: str
    recipe: str
    point: Point
    measures: Mapping[str, Measure]
    heldout: Mapping[str, Measure] = field(default_factory=dict)
    failure: Failure | None = None
    seconds: float = 0.0
    attempts: int = 1
    worker: str = ""
    tries: Sequence[Try] = ()  # the attempts before the last
    of: int | None = None
    share: float = 1.0
    told: Sequence[Told] = ()
    row: int | None = None  # None: its own number
    event: int = -1  # place in the order of asks and tells of what was told of it last

    @property
    def label(self) -> str:
        """The anchor's name for an anchor, `base` or `expert NAME` for a reference, else the number."""
        if self.is_reference:
            name = self.stage.removeprefix(REFERENCE)
            return name if name == "base" else f"expert {name}"
        return self.stage.removeprefix(ANCHOR) if self.is_anchor else str(self.number)

    @property
    def is_reference(self) -> bool:
        return self.number < 0

    @property
    def is_anchor(self) -> bool:
        return self.stage.startswith(ANCHOR)
