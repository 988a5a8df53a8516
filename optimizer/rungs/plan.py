"""How much of each candidate is scored before it is worth the whole? A job's `fidelity`, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rule = Literal["halving", "racing"]


@dataclass(frozen=True)
class Plan:
    """`rungs` are numbers of items of each task, growing; the whole calibration set is the last rung by itself.

    At a rung `halving` lets the best `keep` of all candidates so far go on, `racing` all but those that are worse than
    one of the front with probability `sure`. When the search is over, those that were told from some items and promise
    most are scored on all, as many as a share `final` of all candidates. `estimate` names one of `fidelity.ESTIMATORS`,
    `choose` one of `rungs.ORDERS`: which items are scored first.
    """

    rungs: tuple[int, ...]
    rule: Rule
    keep: float
    final: float
    sure: float
    estimate: str
    choose: str
