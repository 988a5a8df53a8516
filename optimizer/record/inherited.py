"""What had a run's parent answered already? Its scores by recipe and items, from a copy of its ledger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from optimizer.answer import Answer
from optimizer.driver import Question, Split
from optimizer.record.ledger import Ledger

PARENT = "parent.db"  # in a child's folder: its parent's ledger as it was then

SPLITS: tuple[Split, ...] = ("calibration", "heldout")


class Inherited:
    """A parent's scores, for a child whose models, items and evaluators are its parent's.

    One recipe, or one model as it is, on the same items has the same scores: no worker need be asked. Failures and
    gradients are not inherited. `parent` is its name.
    """

    def __init__(self, path: Path, parent: str) -> None:
        self._ledger, self._worker = Ledger.open(path, readonly=True), f"run {parent}"
        recipes = self._ledger.recipes()
        self._answers: dict[tuple[str, Split, str | None], Answer] = {}
        for split in SPLITS:
            for references in (True, False):
                models = {q.number: q.model for q in self._ledger.questions(split, references) if q.wants == "scores"}
                for answer in self._ledger.answers(split, references):
                    if answer.failure is None and answer.whole and answer.number in models:
                        key = recipes[answer.number], split, models[answer.number]
                        self._answers.setdefault(key, answer)

    def answer(self, question: Question, recipe: str) -> Answer | None:
        """The parent's answer to a question about this recipe (a model's content hash), as one to that question."""
        if question.wants != "scores" or question.items.batch:
            return None
        found = self._answers.get((recipe, question.items.split, question.model))
        if found is None:
            return None
        return replace(
            found,
            number=question.number,
            per_item=self._ledger.item_values(found.number, found.split),
            seconds=0.0,
            worker=self._worker,
            attempts=0,
            of=None,
        )

    def close(self) -> None:
        self._ledger.close()
