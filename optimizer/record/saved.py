"""What did it save to score candidates on some items? And were they as good as they were thought to be?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimizer.objectives import Objective
    from optimizer.record.results import Candidate

INTERVAL = 1.96  # standard errors on either side: what an estimate states


@dataclass(frozen=True)
class Saved:
    """Of candidates that a worker scored: how many on some items alone, and what that came to.

    `time`: the seconds of all of them over what all would have taken on all items, by those that went there at once;
    None where none took any time. `checked` estimates are of candidates that were scored on all items later, one an
    objective and rung, and `within` of them had the score that came inside `INTERVAL` standard errors.
    """

    partly: int
    whole: int
    time: float | None
    checked: int
    within: int


def saved(candidates: Iterable[Candidate], objectives: Sequence[Objective]) -> Saved | None:
    """None where all were scored on all items at once."""
    scored = [c for c in candidates if c.failure is None and c.of is None]
    at_once = [c.seconds for c in scored if not c.told and c.seconds > 0]
    if not any(c.told for c in scored):
        return None
    usual = len(scored) * fmean(at_once) if at_once else 0.0
    checks = [
        abs(told.measures[o.name][0] - c.measures[o.name].value) <= INTERVAL * told.measures[o.name][1]
        for c in scored
        if c.share == 1.0
        for told in c.told
        for o in objectives
    ]
    partly = sum(c.share < 1.0 for c in scored)
    time = sum(c.seconds for c in scored) / usual if usual else None
    return Saved(partly, len(scored) - partly, time, len(checks), sum(checks))
