"""What need not be asked again? One recipe is one model: the first is scored, or fails, and the others are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optimizer.answer import Answer
from optimizer.driver import AGAIN, WHOLE, Items, Question

REPEATS = 100
"""Candidates in a row whose recipes had all been asked for; then a driver has nothing new to ask."""

Key = tuple[str, str, Items]  # recipe, what is wanted, on which items


class Known:
    """Answers by recipe, of what a driver asks.

    Of a question whose recipe was answered, `ready` has a copy of that answer; one whose recipe a worker is just
    scoring waits for it. Every failure is known too: what a driver asks again fails again, and costs nothing. Of
    gradients failures alone are known: the others are wanted of points, each by itself. Held-out scores and models as
    they are are asked once, and not looked up.
    """

    def __init__(self) -> None:
        self.questions: dict[int, Question] = {}  # all that were asked
        self._keys: dict[int, Key] = {}
        self._asked: set[str] = set()
        self._answers: dict[Key, Answer] = {}
        self._waiting: dict[Key, list[Question]] = {}  # what a worker has -> others who wait for its answer
        self._ready: list[Answer] = []
        self._in_a_row = 0

    @property
    def exhausted(self) -> bool:
        """True when a driver has asked for nothing new `REPEATS` times in a row; a function of what it asked alone."""
        return self._in_a_row >= REPEATS

    def recipe(self, number: int) -> str:
        """The recipe of a question that was asked."""
        return self._keys[number][0]

    def asked(self, questions: Sequence[Question], recipes: Sequence[str]) -> None:
        """Take note of what a driver asked, or a user asks again, in a search or in its replay."""
        for question, recipe in zip(questions, recipes, strict=True):
            self.questions[question.number] = question
            key = self._keys[question.number] = (recipe, question.wants, question.items)
            if question.number >= AGAIN:
                self._answers.pop(key, None)
            elif question.is_candidate:
                self._in_a_row = self._in_a_row + 1 if recipe in self._asked else 0
                self._asked.add(recipe)

    def needs_worker(self, question: Question) -> bool:
        """Whether a worker has to answer a question; else its answer will be `ready`, now or after another's."""
        if question.items.split == "heldout" or question.model is not None:
            return True
        key = self._keys[question.number]
        if key in self._answers:
            self._ready.append(_copy(self._answers[key], question))
            return False
        if not question.is_candidate:
            return True
        if key in self._waiting:
            self._waiting[key].append(question)
            return False
        self._waiting[key] = []
        return True

    def learn(self, answer: Answer) -> bool:
        """Keep a worker's answer, in place of a failure; True where the recipe had no scores before.

        Those who waited for it have theirs `ready`.
        """
        key = self._keys[answer.number]
        before = self._answers.get(key)
        if answer.of is not None or (before is not None and before.failure is None):
            return False
        if answer.failure is not None or key[1] == "scores":
            self._answers[key] = replace(answer, per_item={})
        self._ready += [_copy(answer, question) for question in self._waiting.pop(key, ())]
        return True

    def ready(self) -> list[Answer]:
        """Copies of known answers, in the order asked; each comes once."""
        found, self._ready = self._ready, []
        return found

    def passing(self) -> list[int]:
        """The candidates whose last word is a failure that may not come again, in the order told.

        None that failed only as it was scored on all items in the end: it is known by its estimate.
        """
        found = (a for key, a in self._answers.items() if key[1] == "scores" and a.number < WHOLE)
        return [a.number for a in found if a.failure is not None and a.failure.passing]


def _copy(answer: Answer, question: Question) -> Answer:
    """The same answer to another question of the same recipe. It took no time, and no worker."""
    found = Answer(question.number, answer.split, answer.measures, failure=answer.failure, attempts=0, of=answer.number)
    return replace(found, share=answer.share)
