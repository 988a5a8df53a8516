"""What does a run's folder say? A read-only view of ledger and job: needs no models, no torch, no lock."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray

from evaluators.evaluator import Measure
from optimizer.answer import Failure
from optimizer.driver import ANCHOR, Point
from optimizer.errors import JobError
from optimizer.front import Front
from optimizer.ledger import Ledger
from optimizer.objectives import Objective, losses

if TYPE_CHECKING:
    from searchspaces import CoefficientSpace, Recipe


@dataclass(frozen=True, eq=False)
class Candidate:
    """One candidate: what it is, and what it scored on calibration and (where reported) on held-out items."""

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

    @property
    def label(self) -> str:
        """The anchor's name for an anchor, else the number."""
        return self.stage.removeprefix(ANCHOR) if self.is_anchor else str(self.number)

    @property
    def is_anchor(self) -> bool:
        return self.stage.startswith(ANCHOR)


class Results:
    """A run as it stands now. `curve` holds (answers so far, hypervolume, epsilon) after each answer that counted."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        ledger = Ledger.open(self.folder / "ledger.db", readonly=True)
        try:
            self._read(ledger)
        finally:
            ledger.close()

    def _read(self, ledger: Ledger) -> None:
        self.name: str = ledger.meta("name")
        self.evaluations: int = ledger.meta("evaluations")
        self.objectives = tuple(Objective(name, goal) for name, goal in ledger.meta("objectives"))
        self.goals: dict[str, str] = ledger.meta("metrics")
        self.space: dict[str, Any] = ledger.meta("space")
        self.times = ledger.times()
        self.steps: int = ledger.meta("steps")
        self.done: bool = ledger.meta("done")
        self.gradients = len(ledger.times("train"))
        heldout = {a.number: a for a in ledger.answers("heldout")}
        self.heldout_answered = len(heldout)
        recipes = ledger.recipes()
        questions = {q.number: q for q in ledger.questions()}
        self.asked = len(questions)
        self.heldout_asked = len(ledger.questions("heldout"))
        self.candidates: dict[int, Candidate] = {}
        self.front = Front(len(self.objectives))
        self.curve: list[tuple[int, float, float]] = []
        for count, a in enumerate(ledger.answers(), 1):
            q = questions[a.number]
            unseen = heldout[a.number].measures if a.number in heldout else {}
            self.candidates[a.number] = Candidate(
                a.number,
                q.stage,
                recipes[a.number],
                q.point,
                a.measures,
                unseen,
                a.failure,
                a.seconds,
                a.attempts,
                a.worker,
            )
            if a.failure is None:
                self.front.add(a.number, losses(self.objectives, a.measures)[0], anchor=q.stage.startswith(ANCHOR))
            self.curve.append((count, self.front.hypervolume, self.front.epsilon))

    @property
    def driven_by(self) -> str | None:
        """Which process of this host drives the run now, if one does."""
        try:
            who = json.loads((self.folder / "driver.json").read_text())
        except (OSError, ValueError):
            return None
        alive = who.get("host") == socket.gethostname() and psutil.pid_exists(int(who.get("pid", 0)))
        return f"process {who['pid']} since {who['since']}" if alive else None

    @cached_property
    def on_front(self) -> list[Candidate]:
        """The non-dominated candidates, best mean first."""
        order = self.front.by_mean()
        front = set(self.front.nondominated)
        return [self.candidates[n] for n in order if n in front]

    @cached_property
    def provenance(self) -> dict[str, list[str]]:
        """Where items are from, in sentences, by evaluator: of those that chose them for the user."""
        splits = json.loads((self.folder / "splits.json").read_text())
        return {name: rows["provenance"] for name, rows in splits.items() if "provenance" in rows}

    @cached_property
    def _space(self) -> CoefficientSpace:
        from searchspaces import CoefficientSpace

        return CoefficientSpace(**self.space)

    @property
    def failures(self) -> list[Candidate]:
        return [c for c in self.candidates.values() if c.failure is not None]

    def pick(self, text: str) -> Candidate:
        """A candidate by number, by recipe hash (eight characters or more), by anchor, or `best`, `best:METRIC`.

        `best` has the least mean of the objectives, each in units of the anchors' range. Raises JobError for none.
        """
        scored = [c for c in self.candidates.values() if c.failure is None]
        if not scored:
            raise JobError(f"{self.folder}: no candidate has been scored yet; run or resume the search first")
        if text == "best":
            return self.candidates[self.front.by_mean()[0]]
        if text.startswith("best:"):
            return self._best_of(text.removeprefix("best:"), scored)
        if text.isdigit() and len(text) < 8:
            found = [c for c in self.candidates.values() if c.number == int(text)]
        else:
            found = [c for c in self.candidates.values() if len(text) >= 8 and c.recipe.startswith(text)]
            found = found[:1] or [c for c in self.candidates.values() if c.is_anchor and text in c.label.split(", ")]
        if not found:
            raise JobError(
                f"no candidate {text!r} in {self.folder}; give a candidate's number, "
                "a recipe hash, an anchor such as 'uniform', 'best', or 'best:METRIC'"
            )
        return found[0]

    def _best_of(self, metric: str, scored: list[Candidate]) -> Candidate:
        if metric not in self.goals:
            raise JobError(f"no metric {metric!r} in {self.folder}; there are: {', '.join(sorted(self.goals))}")
        objective = Objective(metric, "max" if self.goals[metric] == "max" else "min")
        return min(scored, key=lambda c: (objective.sign * c.measures[metric].value, c.number))

    def recipe(self, candidate: Candidate) -> Recipe:
        """What a candidate is: method, options and coefficients."""
        return self._space.decode(candidate.point)

    def coefficients(self, candidate: Candidate) -> tuple[list[str], list[str], NDArray[np.float64]]:
        """Groups, experts, and the coefficients `(groups, experts)` of a candidate."""
        recipe = self.recipe(candidate)
        return list(recipe.groups), list(recipe.experts), np.asarray(recipe.coefficients)

    def settings(self, candidate: Candidate) -> dict[str, str]:
        """What else was searched of a candidate, its method and its options, by coordinate."""
        return self._space.told(candidate.point)
