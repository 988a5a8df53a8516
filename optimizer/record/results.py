"""What does a run's folder say? A read-only view of ledger and job: needs no models, no torch, no lock."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optimizer.conditions import Condition
from optimizer.objectives import Objective, losses
from optimizer.record import files, naming
from optimizer.record.candidate import Candidate as Candidate
from optimizer.record.confidence import Confidence
from optimizer.record.feasible import Feasible
from optimizer.record.folders import LEDGER
from optimizer.record.foreign import Meta, numbers, readable, texts
from optimizer.record.front import Front
from optimizer.record.growth import Growth
from optimizer.record.ledger import Ledger
from optimizer.record.owner import owner
from optimizer.record.reading import Reading

if TYPE_CHECKING:
    from searchspaces import CoefficientSpace, Recipe
    from searchspaces.domain import Domain


class Results:
    """A run as it stands now.

    `candidates` holds all that was answered, `scored` those that a worker was asked for, `front` each recipe once.
    `references` are models of the pool as they are, by label: those that no anchor is. `growth` is how the front grew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._begin()
        self.refresh()

    def refresh(self) -> bool:
        """Take in what was written since, and nothing anew; says whether anything was.

        What was taken of these results before stays as it is: a candidate with held-out scores is another object.
        """
        ledger = Ledger.open(self.folder / LEDGER, readonly=True)
        try:
            with readable(self.folder), ledger.snapshot():
                if self._reading.stale(ledger):
                    self._begin()
                return self._read(ledger)
        finally:
            ledger.close()

    def still(self) -> Results:
        """These results as they are now, which no `refresh` changes: to be read while others go on."""
        found = copy(self)
        found.candidates, found.references, found.times = dict(self.candidates), dict(self.references), list(self.times)
        found.front, found.growth = self.front.still(), self.growth.still()
        found.__dict__.pop("confidence", None)  # it reads items, of the results that it was asked of
        return found

    def _begin(self) -> None:
        self._reading, self._recipes = Reading(), set[str]()
        self.candidates: dict[int, Candidate] = {}
        self.references: dict[str, Candidate] = {}
        self.times: list[tuple[int, float]] = []
        self._said: Meta | None = None

    def _read(self, ledger: Ledger) -> bool:
        before, said = self._reading.mark, Meta.of(ledger)
        changed = said != self._said
        if self._said is None:
            self.objectives = tuple(Objective(name, goal) for name, goal in said.objectives)
            self.front, self.growth = Front(len(self.objectives)), Growth(len(self.objectives))
            self.feasible = Feasible([Condition.parse(text) for text in said.constraints])
        self._said = said
        self.name, self.evaluations = said.name, said.evaluations
        self.goals, self.space, self.evaluators = said.metrics, said.space, said.evaluators
        self.steps, self.done, self.reached, self.spent = said.steps, said.done, said.reached, said.spent
        self.parent, self.references_asked, self.job = said.parent, len(said.references), said.job
        new = ledger.times(after=before.event)
        numbers([at for _, at in new])
        self.times += new
        counts = ledger.counts()
        self.asked, self.told = counts["calibration"]
        _, self.gradients = counts["train"]
        self.heldout_asked, self.heldout_answered = counts["heldout"]
        for c in self._reading.more(ledger):
            self._take(c)
        if changed or self._reading.mark != before:
            for found in ("scored", "on_front", "curve", "confidence"):
                self.__dict__.pop(found, None)
            return True
        return False

    def _take(self, c: Candidate) -> None:
        """A candidate, or a reference, that is new or has new scores."""
        if c.is_reference:
            self.references[c.label] = c
            return
        before = self.candidates.get(c.number)
        self.candidates[c.number] = c
        new = before is None or before.share < c.share  # told from some items until now
        if new and c.failure is None and c.share == 1 and c.recipe not in self._recipes:
            self._recipes.add(c.recipe)
            met = self.feasible.learn(c.number, c.measures, c.is_anchor) == 0
            self.front.add(c.number, self.losses(c), c.is_anchor, met)
        if new and c.of is None:
            stage = "on all items" if before is not None else "anchors" if c.is_anchor else c.stage
            self.growth.add(stage, self.front)

    @cached_property
    def scored(self) -> list[Candidate]:
        """Those that a worker was asked for."""
        return [c for c in self.candidates.values() if c.of is None]

    def losses(self, c: Candidate) -> NDArray[np.float64]:
        """What a candidate scored on calibration items, as losses `(m,)`."""
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
                front.add(c.number, self.losses(c), c.is_anchor, c.number in met)
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
    def domain(self) -> Domain:
        """The coordinates that were searched."""
        return self._space.domain

    @property
    def axes(self) -> tuple[list[str], list[str]]:
        """Groups and experts: what rows and columns of coefficients are."""
        return list(self._space.groups), list(self._space.experts)

    @property
    def event(self) -> int:
        """The place in the order of asks and tells up to which all was read."""
        return self._reading.mark.event

    @property
    def failures(self) -> list[Candidate]:
        return [c for c in self.scored if c.failure is not None]

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: the search is over, and its front and its references are scored."""
        models = self.references.values()
        missing = self.references_asked - sum(1 for c in models if c.failure or c.heldout)
        over = self.done or self.reached is not None or len(self.scored) >= self.evaluations
        return over and self.heldout_answered >= self.heldout_asked > 0 and missing <= 0

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
        return sorted(found, key=lambda c: self.front.mean(self.losses(c)))

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
            if self.front.mean(self.losses(other)) <= self.front.mean(self.losses(best)):
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
            raise naming.unknown_metric(self, metric)
        return Objective(metric, "max" if self.goals[metric] == "max" else "min")

    @cached_property
    def confidence(self) -> Confidence:
        """How sure the front is, by per-item results."""
        return Confidence(self)

    def items(self, candidates: Sequence[int], split: str) -> dict[int, dict[str, NDArray[np.float32]]]:
        """Per-item values of candidates by number, `(n,)` by metric; empty where none were kept."""
        with closing(Ledger.open(self.folder / LEDGER, readonly=True)) as ledger, readable(self.folder):
            rows = {
                n: c.row if (c := self.candidates.get(n)) is not None and c.row is not None else n for n in candidates
            }
            return {n: ledger.item_values(row, split) for n, row in rows.items()}

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
