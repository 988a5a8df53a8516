"""How does a search run? Ask, submit, collect, commit, tell; then the front again on held-out items."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from optimizer.answer import Answer, training_loss
from optimizer.driver import ANCHOR, FOREIGN, Driver, Outcome, Point, Question
from optimizer.errors import LedgerBusy, RunError, RunLocked, TooManyFailures
from optimizer.executors.executor import Executor
from optimizer.objectives import Objective, losses
from optimizer.record.attempt import Attempt
from optimizer.record.front import Front
from optimizer.record.ledger import SEEN, Ask, Ledger
from optimizer.record.spool import Spool
from optimizer.searching import beside
from optimizer.searching.budget import Limits, Meter
from optimizer.searching.known import AGAIN, Known

DRAIN_SECONDS = 30.0
FAILURE_WINDOW = 20
METER_SECONDS = 10.0  # at most so much of what was spent is forgotten in a kill
UNSEEN_WORST = 1e6  # loss told of a failure before anything has succeeded


class Search:
    """One run of a driver against an executor, recorded in a ledger.

    `evaluations` bounds the candidates scored on calibration items; gradients are not counted, drivers bound those, nor
    are candidates whose recipe has been scored before: the driver is told that answer again. `references` are models of
    the pool (`base`, or an expert's name -> content hash) that are scored as they are before all else; no driver hears
    of them, and they are not counted either. `recipe_of` names the recipe (its hash) that a point decodes to;
    `on_answer` is called after each committed answer. `tasks` are the evaluators whose losses gradients are taken of,
    `steps` how many the driver asks at most, to show how far it is. `front` holds the calibration losses of all that
    did not fail, each recipe once; `answered` and `gradients` count answers of workers, `repeated` those that were
    known, `failed` the candidates without scores. `ended` says whether the driver has nothing left to ask, or nothing
    new. `phase` is `starting` until workers are ready, `calibration`, then `heldout`. `meter` counts what is spent, and
    `reached` says which of its limits ended the search. Answers that a locked ledger could not take go to `spool`.
    `attempt` says at which question a driver was that was killed.
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
        references: Mapping[str, str] | None = None,
        meter: Meter | None = None,
        spool: Spool | None = None,
        attempt: Attempt | None = None,
    ) -> None:
        self.objectives = tuple(objectives)
        self.evaluations = evaluations
        self.front = Front(len(self.objectives))
        self.references = dict(references or {})
        self.answered = 0
        self.repeated = 0
        self.failed = 0
        self.gradients = 0
        self.steps = steps
        self.gradient_failure: str | None = None  # of the last gradient, if it failed
        self.phase = "starting"
        self.reached: str | None = None
        self._meter = meter or Meter(Limits(), {})
        self._metered = time.monotonic()
        self._spool, self._attempt = spool, attempt
        self._driver, self._executor, self._ledger = driver, executor, ledger
        self._recipe_of, self._on_answer, self._tasks = recipe_of, on_answer, tuple(tasks)
        self._known = Known()
        self._in_flight: dict[tuple[int, str], Question] = {}
        self._waiting: deque[Question] = deque()  # for a worker: references, then what is scored on held-out items
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
        return self._driver.done or self._known.exhausted

    @property
    def waiting(self) -> int:
        """Questions in flight, and references or held-out scores that wait for a worker."""
        return len(self._in_flight) + len(self._waiting)

    def stop(self) -> None:
        """Ask nothing more, and wait at most 30 s for what is in flight. Safe to call from a signal handler."""
        if self._stop_at is None:
            self._stop_at = time.monotonic() + DRAIN_SECONDS

    def run(self, heldout: bool = True, retry_failed: bool = False) -> None:
        """Run to the budget, or until `stop`; what was answered before is replayed, what was in flight is asked again.

        With `heldout` the front, the anchors and the references are then scored on held-out items. With `retry_failed`
        what had failed for a reason that may not come again is asked again first, each an evaluation.

        Raises TooManyFailures when more than half of the last 20 candidates failed; LedgerBusy where the ledger stays
        locked, RunLocked where another process took it over: after what was in flight has been kept in the spool.
        """
        try:
            self._run(heldout, retry_failed)
        except (LedgerBusy, RunLocked):
            self._keep_in_flight()
            raise

    def _run(self, heldout: bool, retry_failed: bool) -> None:
        if self._spool is not None:
            self._ledger.answered(self._spool.fitting(self._ledger.unanswered(), [o.name for o in self.objectives]))
            self._spool.clear()
        if retry_failed:
            self._ledger.forget_failures()
        self.replay()
        if self._attempt is not None:
            self._absorb(self._attempt.after_kill(self._ledger, self._ledger.unanswered()))
        self._executor.start()
        self.phase = "calibration"
        self._meter.tick(self._executor.slots)
        pending = self._ledger.pending()
        self._waiting.extend(beside.unscored_references(self._ledger, self.references, "calibration"))
        if retry_failed:
            self._waiting.extend(beside.failed_before(self._ledger, self._known))
        self._submit(pending)
        self._loop(self._ask)
        self._save_meter()
        if not self.stopped:
            self._ledger.set_meta("done", self.ended)
            self._ledger.set_meta("reached", self.reached)
        if heldout and not self.stopped:
            self.phase = "heldout"
            self._waiting.extend(beside.unscored(self._ledger, self._known, self.reported()))
            self._waiting.extend(beside.unscored_references(self._ledger, self.references, "heldout"))
            self._loop(self._next_waiting)
            self._save_meter()

    def replay(self) -> None:
        """Bring the driver and the front to where the ledger is."""
        recipes = self._ledger.recipes()
        for event in self._ledger.history():
            if isinstance(event, Ask):
                if event.requested:  # else a user asked
                    self._driver.replay(event.requested, event.questions)
                self._known.asked(event.questions, [recipes.get(q.number, "") for q in event.questions])
            else:
                self._learn(event.answer)
        self._recent.clear()

    def reported(self) -> list[int]:
        """Candidates that are scored on held-out items: the front and the anchors, those that did not fail."""
        anchors = {n for n, q in self._known.questions.items() if q.stage.startswith(ANCHOR)}
        return sorted({*self.front.nondominated, *(anchors & set(self.front.numbers))})

    def _loop(self, more: Callable[[int], Sequence[Question]]) -> None:
        """Keep the workers busy with `more(room)` until that is empty and nothing in flight, or the drain is over."""
        while True:
            told = True
            while told and not self.stopped and (room := self._executor.slots - len(self._in_flight)) > 0:
                told = self._submit(more(room))  # all asks before the next tell, as in a resume: the order is the same
            late = self._stop_at is not None and time.monotonic() > self._stop_at
            if late or not self._in_flight:
                return
            self._absorb(self._executor.collect(timeout=0.5))
            self._meter.tick(self._executor.slots)
            if time.monotonic() - self._metered > METER_SECONDS:
                self._save_meter()

    def _next_waiting(self, room: int) -> Sequence[Question]:
        return [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]

    def _ask(self, room: int) -> Sequence[Question]:
        if self._waiting:
            return self._next_waiting(room)
        room = min(room, self.evaluations - self.answered - sum(q.is_candidate for q in self._in_flight.values()))
        if room <= 0 or self.ended:
            return ()
        self.reached = self._meter.reached
        if self.reached is not None:
            return ()
        questions = self._driver.ask(room)
        if not questions and not self._in_flight and not self._driver.done:
            raise RunError("the driver waits for answers though nothing is in flight; this is a defect of the driver")
        if questions:
            recipes = [self._recipe(q) for q in questions]
            self._ledger.asked(room, questions, recipes)
            self._known.asked(questions, recipes)
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

    def _submit(self, questions: Iterable[Question]) -> bool:
        """Give questions to the executor, but for those that are known; says whether some are."""
        for question in questions:
            self._in_flight[question.number, question.items.split] = question
            if self._known.needs_worker(question):
                self._executor.submit(question)
        told = self._known.ready()
        self._absorb(told)
        return bool(told)

    def _absorb(self, answers: Sequence[Answer]) -> None:
        if not answers:
            return
        try:
            new = self._ledger.answered(answers)
        except (LedgerBusy, RunLocked):
            self._keep(answers)
            raise
        for answer in new:
            self._in_flight.pop((answer.number, answer.split), None)
            if answer.split in SEEN and answer.number >= 0:
                self._learn(answer)
                self._watch(answer)
            self._on_answer(self, answer)
        self._absorb(self._known.ready())

    def _learn(self, answer: Answer) -> None:
        """Tell the driver and the front of one answer; the same in a search and in its replay."""
        question = self._known.questions[answer.number]
        new = self._known.learn(answer)
        if question.wants != "scores":
            self._learn_gradient(question, answer)
            return
        self.answered += answer.of is None
        self.repeated += answer.of is not None
        if answer.failure is None:
            loss, stderr = losses(self.objectives, answer.measures)
            self._worst = loss if self._worst is None else np.maximum(self._worst, loss)
            self._best = loss if self._best is None else np.minimum(self._best, loss)
            if new:
                self.front.add(answer.number, loss, anchor=question.stage.startswith(ANCHOR))
            theirs = question.number < AGAIN
            self._driver.tell([Outcome(question if theirs else replace(question, number=FOREIGN), loss, stderr)])
            return
        self.failed += answer.of is None
        if question.number < AGAIN:
            penalty = self._penalty()
            self._driver.tell([Outcome(question, penalty, np.full(len(penalty), np.nan), failure=str(answer.failure))])

    def _learn_gradient(self, question: Question, answer: Answer) -> None:
        self.gradients += answer.of is None
        self.gradient_failure = failure = None if answer.failure is None else str(answer.failure)
        names = [training_loss(task) for task in self._tasks]
        found = np.array([answer.measures[n].value for n in names if n in answer.measures], dtype=np.float64)
        self._driver.tell([Outcome(question, found, np.full(len(found), np.nan), answer.gradient, failure)])

    def _save_meter(self) -> None:
        self._ledger.set_meta("spent", self._meter.spent)
        self._metered = time.monotonic()

    def _keep(self, answers: Sequence[Answer]) -> None:
        """Into the spool: these have been answered, and the ledger cannot say so."""
        if self._spool is not None:
            self._spool.put(answers)
            for answer in answers:
                self._in_flight.pop((answer.number, answer.split), None)

    def _keep_in_flight(self) -> None:
        """What workers are still at is waited for, at most 30 s, and kept too."""
        end = time.monotonic() + DRAIN_SECONDS
        while self._spool is not None and self._executor.busy and time.monotonic() < end:
            self._keep(self._executor.collect(timeout=0.5))

    def _penalty(self) -> NDArray[np.float64]:
        """A finite loss worse than all seen, so that a driver ranks failures last without breaking on infinity."""
        if self._worst is None or self._best is None:
            return np.full(len(self.objectives), UNSEEN_WORST)
        return self._worst + np.maximum(self._worst - self._best, 1e-3)

    def _watch(self, answer: Answer) -> None:
        if answer.of is not None:
            return
        self._recent.append(answer.failure is not None)
        if sum(self._recent) > FAILURE_WINDOW // 2:
            raise TooManyFailures(
                f"{sum(self._recent)} of the last {len(self._recent)} candidates failed, the last with "
                f"{answer.failure}; mend the cause and resume: what was answered is kept"
            )
