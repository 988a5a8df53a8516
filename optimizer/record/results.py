"""What does a run's folder say? A read-only view of ledger and job: needs no models, no torch, no lock."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evaluators.evaluator import Measure
from optimizer.answer import Failure, Try
from optimizer.conditions import Condition
from optimizer.driver import ANCHOR, REFERENCE, Point
from optimizer.errors import JobError
from optimizer.objectives import Objective, losses
from optimizer.record import files, naming
from optimizer.record.confidence import Confidence
from optimizer.record.feasible import Feasible
from optimizer.record.folders import LEDGER
from optimizer.record.foreign import Meta, measured, numbers, readable, texts
from optimizer.record.front import Front
from optimizer.record.ledger import Ledger
from optimizer.record.owner import owner

if TYPE_CHECKING:
    from searchspaces import CoefficientSpace, Recipe


@dataclass(frozen=True, eq=False)
class Candidate:
    """One candidate: what it is, and what it scored on calibration and (where reported) on held-out items.

    A reference, a model of the pool that was scored as it is, has a number below 0, no point, and its model's content
    hash for a recipe. `of` is the candidate of the same recipe whose answer this is: it was not scored again.
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


class Results:
    """A run as it stands now.

    `candidates` holds all that was answered, `scored` those that a worker was asked for, `front` each recipe once.
    `references` are models of the pool as they are, by label: those that no anchor is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        ledger = Ledger.open(self.folder / LEDGER, readonly=True)
        try:
            with readable(self.folder), ledger.snapshot():
                self._read(ledger)
        finally:
            ledger.close()

    def _read(self, ledger: Ledger) -> None:
        said = Meta.of(ledger)
        self.name, self.evaluations = said.name, said.evaluations
        self.objectives = tuple(Objective(name, goal) for name, goal in said.objectives)
        self.goals, self.space, self.evaluators = said.metrics, said.space, said.evaluators
        self.times = ledger.times()
        numbers([at for _, at in self.times])
        self.steps, self.done, self.reached, self.spent = said.steps, said.done, said.reached, said.spent
        self.parent, self.references_asked = said.parent, len(said.references)
        self.gradients = len(ledger.times("train"))
        self.heldout_answered = len(ledger.times("heldout"))
        self.asked = len(ledger.questions())
        self.heldout_asked = len(ledger.questions("heldout"))
        self.candidates: dict[int, Candidate] = {}
        self.front = Front(len(self.objectives))
        self.feasible = Feasible([Condition.parse(text) for text in said.constraints])
        recipes: set[str] = set()
        for c in _candidates(ledger):
            self.candidates[c.number] = c
            if c.failure is None and c.recipe not in recipes:
                recipes.add(c.recipe)
                met = self.feasible.learn(c.number, c.measures, c.is_anchor) == 0
                self.front.add(c.number, self._losses(c), c.is_anchor, met)
        self.scored = [c for c in self.candidates.values() if c.of is None]
        self.references = {c.label: c for c in _candidates(ledger, references=True)}

    def _losses(self, c: Candidate) -> NDArray[np.float64]:
        return losses(self.objectives, c.measures)[0]

    @property
    def driven_by(self) -> str | None:
        """Which process drives the run now, if one does."""
        who = owner(self.folder)
        return None if who is None else str(who)

    @cached_property
    def on_front(self) -> list[Candidate]:
        """The non-dominated candidates, best mean first."""
        order = self.front.by_mean()
        front = set(self.front.nondominated)
        return [self.candidates[n] for n in order if n in front]

    @cached_property
    def curve(self) -> list[tuple[int, float, float]]:
        """(candidates so far, hypervolume, epsilon) after each of `scored`. Many objectives take 50 ms for each."""
        front, counted = Front(len(self.objectives)), set(self.front.numbers)
        met = set(self.front.feasible)
        found: list[tuple[int, float, float]] = []
        for c in self.candidates.values():
            if c.number in counted:
                front.add(c.number, self._losses(c), c.is_anchor, c.number in met)
            if c.of is None:
                found.append((len(found) + 1, front.hypervolume, front.epsilon))
        return found

    @cached_property
    def provenance(self) -> dict[str, list[str]]:
        """Where items are from, in sentences, by evaluator: of those that chose them for the user."""
        with readable(self.folder):
            splits = json.loads(files.read(self.folder / "splits.json", links=True))
            found = {name: list(rows["provenance"]) for name, rows in splits.items() if "provenance" in rows}
            texts([line for lines in found.values() for line in lines])
        return found

    @cached_property
    def _space(self) -> CoefficientSpace:
        from searchspaces import CoefficientSpace

        with readable(self.folder):
            return CoefficientSpace(**self.space)

    @property
    def failures(self) -> list[Candidate]:
        return [c for c in self.scored if c.failure is not None]

    @property
    def repeated(self) -> int:
        """Candidates whose recipe had been scored before."""
        return len(self.candidates) - len(self.scored)

    @property
    def compared(self) -> list[Candidate]:
        """The references that were scored, the best mean first; none before a candidate was."""
        if not self.front.numbers:
            return []
        found = [c for c in self.references.values() if c.failure is None]
        return sorted(found, key=lambda c: self.front.mean(self._losses(c)))

    @property
    def nearest(self) -> Candidate | None:
        """Where no candidate meets the constraints, the one of the least violation."""
        if self.front.feasible or not self.front.numbers:
            return None
        number = self.feasible.nearest()
        return None if number is None else self.candidates[number]

    @property
    def unbeaten(self) -> Candidate | None:
        """The reference, else the anchor, whose mean on calibration items no other merge of this run is better than.

        Only what meets the constraints counts.
        """
        if not self.front.feasible:
            return None
        best = self.candidates[self.front.by_mean()[0]]
        for other in [c for c in self.compared if self.feasible.meets(c.measures)][:1]:
            if self.front.mean(self._losses(other)) <= self.front.mean(self._losses(best)):
                return other
        return best if best.is_anchor else None

    @property
    def verdict(self) -> str | None:
        """A sentence on that, where there is one, or on that no candidate meets the constraints."""
        if (near := self.nearest) is not None:
            wanted = self.feasible.constraints
            has = ", ".join(dict.fromkeys(f"{c.name} {naming.told(near, c.name)}" for c in wanted))
            return (
                f"No candidate meets the constraints ({', '.join(map(str, wanted))}); the nearest, candidate "
                f"{near.number}, has {has}."
            )
        found = self.unbeaten
        if found is None:
            return None
        what = f"the anchor {found.label}"
        if found.is_reference:
            what = "the base" if found.label == "base" else found.label
        return f"No merge has a better mean than {what}."

    def pick(self, text: str) -> Candidate:
        """A candidate by number, recipe hash (eight characters or more), anchor, `expert NAME`, or what stands out.

        `best` has the least mean of the objectives, each in units of the anchors' range; `best:METRIC` is best in that
        metric, `knee` where the front bends most, `surest` likeliest to be on the front. Raises JobError for none.
        """
        return naming.pick(self, text)

    def objective(self, metric: str) -> Objective:
        """Any metric of the run, and which way is better. Raises JobError for one that there is not."""
        if metric not in self.goals:
            raise JobError(f"no metric {metric!r} in {self.folder}; there are: {', '.join(sorted(self.goals))}")
        return Objective(metric, "max" if self.goals[metric] == "max" else "min")

    @cached_property
    def confidence(self) -> Confidence:
        """How sure the front is, by per-item results."""
        return Confidence(self)

    def items(self, candidates: Sequence[int], split: str) -> dict[int, dict[str, NDArray[np.float32]]]:
        """Per-item values of candidates by number, `(n,)` by metric; empty where none were kept."""
        with closing(Ledger.open(self.folder / LEDGER, readonly=True)) as ledger, readable(self.folder):
            return {n: ledger.item_values(n, split) for n in candidates}

    def recipe(self, candidate: Candidate) -> Recipe:
        """What a candidate is: method, options and coefficients."""
        with readable(self.folder):
            return self._space.decode(candidate.point)

    def coefficients(self, candidate: Candidate) -> tuple[list[str], list[str], NDArray[np.float64]]:
        """Groups, experts, and the coefficients `(groups, experts)` of a candidate."""
        recipe = self.recipe(candidate)
        return list(recipe.groups), list(recipe.experts), np.asarray(recipe.coefficients)

    def settings(self, candidate: Candidate) -> dict[str, str]:
        """What else was searched of a candidate, its method and its options, by coordinate."""
        return self._space.told(candidate.point)

    def searched(self, candidate: Candidate) -> dict[str, object]:
        """The method, where it is searched, and by the job's names the options of it that are: of several, the mean."""
        recipe, space = self.recipe(candidate), self._space
        found: dict[str, object] = {"method": recipe.method} if len(space.methods) > 1 else {}
        for name, option, owners in space.searched:
            if recipe.method in owners:
                value = recipe.options[option]
                found[name] = float(value.mean()) if isinstance(value, np.ndarray) else value
        return found


def _candidates(ledger: Ledger, references: bool = False) -> Iterator[Candidate]:
    """All that was answered on calibration items, in the order told, with the held-out scores of each recipe."""
    questions = {q.number: q for q in ledger.questions(references=references)}
    heldout = {a.number: a.measures for a in ledger.answers("heldout", references)}
    recipes, tries = ledger.recipes(), ledger.tries()
    for a in ledger.answers(references=references):
        q = questions[a.number]
        unseen = measured(heldout.get(a.number if a.of is None else a.of, {}))
        numbers([a.number, a.seconds, a.attempts])
        texts([q.stage, recipes[a.number], a.worker])
        yield Candidate(
            *(a.number, q.stage, recipes[a.number], q.point, measured(a.measures), unseen, a.failure),
            *(a.seconds, a.attempts, a.worker, tries.get(a.number, ()), a.of),
        )
