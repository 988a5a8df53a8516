"""How does a search run? Ask, submit, collect, commit, tell; then the front again on held-out items."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from optimizer.answer import Answer, training_loss
from optimizer.driver import ANCHOR, Driver, Items, Outcome, Point, Question
from optimizer.errors import RunError, TooManyFailures
from optimizer.executor import Executor
from optimizer.front import Front
from optimizer.ledger import SEEN, Ask, Ledger
from optimizer.objectives import Objective, losses

DRAIN_SECONDS = 30.0
FAILURE_WINDOW = 20
UNSEEN_WORST = 1e6  # loss told of a failure before anything has succeeded


class Search:
    """One run of a driver against an executor, recorded in a ledger.

    `evaluations` bounds the candidates scored on calibration items; gradients are not counted, drivers bound those.
    `recipe_of` names the recipe (its hash) that a point decodes to; `on_answer` is called after each committed answer.
    `tasks` are the evaluators whose losses gradients are taken of, `steps` how many the driver asks at most, to show
    how far it is. `front` holds the calibration losses of all that did not fail; `answered` and `gradients` count
    answers, `failed` the candidates without scores. `ended` says whether the driver has nothing left to ask.
    """

    def __init__(
        self,
        driver: Driver,
        executor: Executor,
        ledger: Ledger,
        objectives: Sequence[Objective],
        evaluations: int,
        recipe_of: Callable[[Point], str],
        on_answer: Callable[[Search, Answer], None] = lambda search, answer: None,
        tasks: Sequence[str] = (),
        steps: int = 0,
    ) -> None:
        self.objectives = tuple(objectives)
        self.evaluations = evaluations
        self.front = Front(len(self.objectives))
        self.answered = 0
        self.failed = 0
        self.gradients = 0
        self.steps = steps
        self.gradient_failure: str | None = None  # of the last gradient, if it failed
        self.phase = "calibration"
        self._driver, self._executor, self._ledger = driver, executor, ledger
        self._recipe_of, self._on_answer, self._tasks = recipe_of, on_answer, tuple(tasks)
        self._questions: dict[int, Question] = {}
        self._asked = 0  # candidates
        self._in_flight: dict[tuple[int, str], Question] = {}
        self._waiting: deque[Question] = deque()  # for a worker, to be scored on held-out items
        self._recent: deque[bool] = deque(maxlen=FAILURE_WINDOW)
        self._worst: NDArray[np.float64] | None = None
        self._best: NDArray[np.float64] | None = None
        self._stop_at: float | None = None

    @property
    def stopped(self) -> bool:
        """True once `stop` was called."""
        return self._stop_at is not None

    @property
    def ended(self) -> bool:
        return self._driver.done

    @property
    def waiting(self) -> int:
        """Questions in flight, and those that wait to be scored on held-out items."""
        return len(self._in_flight) + len(self._waiting)

    def stop(self) -> None:
        """Ask nothing more, and wait at most 30 s for what is in flight. Safe to call from a signal handler."""
        if self._stop_at is None:
            self._stop_at = time.monotonic() + DRAIN_SECONDS

    def run(self, heldout: bool = True) -> None:
        """Run to the budget, or until `stop`; what was answered before is replayed, what was in flight is asked again.

        With `heldout` the front and the anchors are then scored on held-out items.

        Raises TooManyFailures when more than half of the last 20 candidates failed.
        """
        self.replay()
        self._executor.start()
        self._submit(self._ledger.pending())
        self._loop(self._ask)
        if not self.stopped:
            self._ledger.set_meta("done", self._driver.done)
        if heldout and not self.stopped:
            self.phase = "heldout"
            waiting = self._waiting
            waiting.extend(self._unscored())
            self._loop(lambda room: [waiting.popleft() for _ in range(min(room, len(waiting)))])

    def replay(self) -> None:
        """Bring the driver and the front to where the ledger is."""
        for event in self._ledger.history():
            if isinstance(event, Ask):
                self._driver.replay(event.requested, event.questions)
                self._remember(event.questions)
            else:
                self._learn(event.answer)
        self._recent.clear()

    def reported(self) -> list[int]:
        """Candidates that are scored on held-out items: the front and the anchors, those that did not fail."""
        anchors = {n for n, q in self._questions.items() if q.stage.startswith(ANCHOR)}
        return sorted({*self.front.nondominated, *(anchors & set(self.front.numbers))})

    def _loop(self, more: Callable[[int], Sequence[Question]]) -> None:
        """Keep the workers busy with `more(room)` until that is empty and nothing in flight, or the drain is over."""
        while True:
            room = self._executor.slots - len(self._in_flight)
            if room > 0 and not self.stopped:
                self._submit(more(room))
            if not self._in_flight or (self._stop_at is not None and time.monotonic() > self._stop_at):
                return
            self._absorb(self._executor.collect(timeout=0.5))

    def _ask(self, room: int) -> Sequence[Question]:
        room = min(room, self.evaluations - self._asked)
        if room <= 0 or self._driver.done:
            return ()
        questions = self._driver.ask(room)
        if not questions and not self._in_flight and not self._driver.done:
            raise RunError("the driver waits for answers though nothing is in flight; this is a defect of the driver")
        if questions:
            self._ledger.asked(room, questions, [self._recipe(q) for q in questions])
            self._remember(questions)
        return questions

    def _recipe(self, question: Question) -> str:
        """The recipe that a question is about. Raises RunError for a point that is none of the space."""
        try:
            return self._recipe_of(question.point)
        except ValueError as error:
            raise RunError(
                f"the driver asked question {question.number} ({question.stage}) at a point that the space refuses: "
                f"{error}; this is a defect of the driver"
            ) from error

    def _remember(self, questions: Sequence[Question]) -> None:
        self._questions.update((q.number, q) for q in questions)
        self._asked += sum(q.wants == "scores" for q in questions)

    def _unscored(self) -> Sequence[Question]:
        """Questions on held-out items: those that were in flight at a crash, then the reported ones not asked yet."""
        asked = {q.number for q in self._ledger.questions("heldout")}
        new = [replace(self._questions[n], items=Items("heldout")) for n in self.reported() if n not in asked]
        waiting = self._ledger.pending("heldout")
        if new:
            self._ledger.asked(0, new, [self._recipe_of(q.point) for q in new])
        return [*waiting, *new]

    def _submit(self, questions: Iterable[Question]) -> None:
        for question in questions:
            self._in_flight[question.number, question.items.split] = question
            self._executor.submit(question)

    def _absorb(self, answers: Sequence[Answer]) -> None:
        if not answers:
            return
        for answer in self._ledger.answered(answers):
            self._in_flight.pop((answer.number, answer.split), None)
            if answer.split in SEEN:
                self._learn(answer)
                self._watch(answer)
            self._on_answer(self, answer)

    def _learn(self, answer: Answer) -> None:
        """Tell the driver and the front of one answer; the same in a search and in its replay."""
        question = self._questions[answer.number]
        if question.wants != "scores":
            self._learn_gradient(question, answer)
            return
        self.answered += 1
        if answer.failure is None:
            loss, stderr = losses(self.objectives, answer.measures)
            self._worst = loss if self._worst is None else np.maximum(self._worst, loss)
            self._best = loss if self._best is None else np.minimum(self._best, loss)
            self.front.add(answer.number, loss, anchor=question.stage.startswith(ANCHOR))
            self._driver.tell([Outcome(question, loss, stderr)])
        else:
            self.failed += 1
            penalty = self._penalty()
            self._driver.tell([Outcome(question, penalty, np.full(len(penalty), np.nan), failure=str(answer.failure))])

    def _learn_gradient(self, question: Question, answer: Answer) -> None:
        self.gradients += 1
        self.gradient_failure = failure = None if answer.failure is None else str(answer.failure)
        names = [training_loss(task) for task in self._tasks]
        found = np.array([answer.measures[n].value for n in names if n in answer.measures], dtype=np.float64)
        self._driver.tell([Outcome(question, found, np.full(len(found), np.nan), answer.gradient, failure)])

    def _penalty(self) -> NDArray[np.float64]:
        """A finite loss worse than all seen, so that a driver ranks failures last without breaking on infinity."""
        if self._worst is None or self._best is None:
            return np.full(len(self.objectives), UNSEEN_WORST)
        return self._worst + np.maximum(self._worst - self._best, 1e-3)

    def _watch(self, answer: Answer) -> None:
        self._recent.append(answer.failure is not None)
        if sum(self._recent) > FAILURE_WINDOW // 2:
            raise TooManyFailures(
                f"{sum(self._recent)} of the last {len(self._recent)} candidates failed, the last with "
                f"{answer.failure}; mend the cause and resume: what was answered is kept"
            )
