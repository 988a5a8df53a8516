"""How does a search run? Ask, submit, collect, commit, tell; then the front again on held-out items."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from optimizer.answer import Answer
from optimizer.conditions import Condition
from optimizer.driver import Driver, Point, Question
from optimizer.errors import LedgerBusy, RunError, RunLocked
from optimizer.executors.executor import Executor
from optimizer.objectives import Objective
from optimizer.record.attempt import Attempt, DrainOver
from optimizer.record.front import Front
from optimizer.record.inherited import Inherited
from optimizer.record.ledger import SEEN, Ask, Ledger
from optimizer.record.spool import Spool
from optimizer.searching import beside
from optimizer.searching.budget import Limits, Meter
from optimizer.searching.in_flight import InFlight
from optimizer.searching.known import Known
from optimizer.searching.tally import Tally


class Learns(Protocol):
    """What is told of every answer on calibration items, in their order, in a replay too.

    `finalists` are the candidates told from some items, that are to be scored on all when so many have been answered.
    """

    def learn(self, question: Question, answer: Answer) -> None: ...
    def finalists(self, answered: int) -> Sequence[int]: ...


DRAIN_SECONDS = 30.0
METER_SECONDS = 10.0  # at most so much of what was spent is forgotten in a kill


class Search:
    """One run of a driver against an executor, recorded in a ledger.

    `evaluations` bounds the candidates scored on calibration items; gradients are not counted, drivers bound those, nor
    are candidates whose recipe has been scored before: the driver is told that answer again. `references` are models of
    the pool (`base`, or an expert's name -> content hash) that are scored as they are before all else; no driver hears
    of them, and they are not counted either. `recipe_of` names the recipe (its hash) that a point decodes to;
    `on_answer` is called after each committed answer. `tasks` are the evaluators whose losses gradients are taken of,
    `steps` how many the driver asks at most, to show how far it is. `front` and the counts are those of `tally.Tally`.
    `ended` says whether the driver has nothing left to ask, or nothing new. `phase` is `starting` until workers are
    ready, `calibration`, `finalists` where some are then scored on all items, and `heldout`; `on_phase` is called when
    one of the last three begins. `meter` counts what is spent, and `reached` says which of its limits ended the
    search. Answers that a locked ledger could not take go to `spool`.
    `attempt` says at which question a driver was that was killed. What is `inherited` of another run is as if a worker
    had answered it at once. What violates one of `constraints` is on no front.
    `ladder`, of an executor that scores candidates on few items first, is told of every answer on calibration items.
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
        inherited: Inherited | None = None,
        constraints: Sequence[Condition] = (),
        ladder: Learns | None = None,
        on_phase: Callable[[Search], None] = lambda search: None,
    ) -> None:
        self.objectives = tuple(objectives)
        self.evaluations = evaluations
        self.references = dict(references or {})
        self.steps = steps
        self.phase = "starting"
        self.reached: str | None = None
        self._meter = meter or Meter(Limits(), {})
        self._metered = time.monotonic()
        self._attempt, self._inherited = attempt, inherited
        self._driver, self._executor, self._ledger = driver, executor, ledger
        self._recipe_of, self._on_answer, self._on_phase = recipe_of, on_answer, on_phase
        self._known, self._ladder = Known(), ladder
        self._tally = Tally(driver, self._known, self.objectives, tuple(tasks), constraints)
        self._in_flight = InFlight(ledger, spool)
        self._waiting: deque[Question] = deque()  # for a worker: references, what a resume asks again, held-out
        self._stop_at: float | None = None

    @property
    def front(self) -> Front:
        return self._tally.front

    @property
    def answered(self) -> int:
        return self._tally.answered

    @property
    def repeated(self) -> int:
        return self._tally.repeated

    @property
    def told(self) -> int:
        return self._tally.told

    @property
    def failed(self) -> int:
        return self._tally.failed

    @property
    def gradients(self) -> int:
        return self._tally.gradients

    @property
    def gradient_failure(self) -> str | None:
        return self._tally.gradient_failure

    @property
    def stopped(self) -> bool:
        """True once `stop` was called."""
        return self._stop_at is not None

    @property
    def ended(self) -> bool:
        return self._driver.done or self._known.exhausted

    @property
    def waiting(self) -> int:
        """Questions in flight, and those that wait for a worker."""
        return len(self._in_flight) + len(self._waiting)

    def stage(self, number: int) -> str:
        """What the driver said of a question that was asked, in words."""
        return self._known.questions[number].stage

    def stop(self) -> None:
        """Ask nothing more, and wait at most 30 s for what is in flight. Safe to call from a signal handler.

        A kill from now on is held against no question. Where this process itself is at one, somebody has to call
        `end_drain`, since nothing else can.
        """
        if self._stop_at is None:
            self._stop_at = time.monotonic() + DRAIN_SECONDS
            if self._attempt is not None:
                self._attempt.forgive()

    def end_drain(self) -> None:
        """For the handler of an alarm: leave the question that this process is at, if the drain is over.

        `run` then ends as after any drain; the question stays to be asked.
        """
        if self._late and self._attempt is not None and self._attempt.under_way:
            raise DrainOver

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
            self._in_flight.keep(self._executor, DRAIN_SECONDS)
            raise

    def _run(self, heldout: bool, retry_failed: bool) -> None:
        self._in_flight.recover([o.name for o in self.objectives])
        self.replay()
        if self._attempt is not None:
            self._absorb(self._attempt.after_kill(self._ledger, self._ledger.unanswered()))
        if retry_failed:
            beside.ask_failed_again(self._ledger, self._known)
        self._executor.start()
        self._begin("calibration")
        self._meter.tick(self._executor.ready)
        # in the order in which they were first given to workers: so that answers come, and are told, as they would have
        self._waiting.extend(beside.unscored_references(self._ledger, self.references, "calibration"))
        self._waiting.extend(self._ledger.pending())
        self._loop(self._ask)
        self._finish_some()
        self._save_meter()
        if not self.stopped:
            self._ledger.set_meta("done", self.ended)
            self._ledger.set_meta("reached", self.reached)
        if heldout and not self.stopped:
            self._waiting.extend(beside.unscored(self._ledger, self._known, self.reported()))
            self._waiting.extend(beside.unscored_references(self._ledger, self.references, "heldout"))
            self._begin("heldout")
            self._loop(self._next_waiting)
            self._save_meter()

    def _finish_some(self) -> None:
        """Score on all items what promises most of the candidates that were told from some."""
        if self._ladder is None or self.stopped or self.reached is not None:
            return
        self._waiting.extend(beside.ask_finalists(self._ledger, self._known, self._ladder.finalists, self.answered))
        self._begin("finalists")
        self._loop(self._next_waiting)

    def _begin(self, phase: str) -> None:
        self.phase = phase
        self._on_phase(self)

    def replay(self) -> None:
        """Bring the driver and the front to where the ledger is."""
        recipes = self._ledger.recipes()
        asked = {q.number: q for q in self._ledger.questions(references=True)}
        for answer in self._ledger.answers(references=True):
            self._tell_ladder(asked[answer.number], answer)
        for event in self._ledger.history():
            if isinstance(event, Ask):
                if event.requested:  # else a user asked
                    self._driver.replay(event.requested, event.questions)
                self._known.asked(event.questions, [recipes.get(q.number, "") for q in event.questions])
            else:
                self._learn(event.answer)

    def _learn(self, answer: Answer) -> None:
        self._tally.learn(answer)
        self._tell_ladder(self._known.questions[answer.number], answer)

    def _tell_ladder(self, question: Question, answer: Answer) -> None:
        if self._ladder is not None and answer.split == "calibration":
            self._ladder.learn(question, answer)

    def reported(self) -> list[int]:
        """Candidates that are scored on held-out items."""
        return beside.reported(self._known, self.front, self._tally.feasible.nearest())

    def _loop(self, more: Callable[[int], Sequence[Question]]) -> None:
        """Keep the workers busy with `more(room)` until that is empty and nothing in flight, or the drain is over."""
        while True:
            # all asks before the next tell, as in a resume: the order is the same
            while not self.stopped and (room := self._executor.slots - len(self._in_flight)) > 0:
                if not (questions := more(room)):
                    break
                self._submit(questions)
            if self.stopped:
                self._executor.drain()
            if self._late or not self._in_flight or (self.stopped and not self._executor.busy):
                return
            try:
                answers = self._executor.collect(timeout=0.5)
            except DrainOver:
                return
            self._absorb(answers)
            self._meter.tick(self._executor.ready)
            if time.monotonic() - self._metered > METER_SECONDS:
                self._save_meter()

    @property
    def _late(self) -> bool:
        return self._stop_at is not None and time.monotonic() > self._stop_at

    def _next_waiting(self, room: int) -> Sequence[Question]:
        return [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]

    def _ask(self, room: int) -> Sequence[Question]:
        if self._waiting:
            return self._next_waiting(room)
        room = min(room, self.evaluations - self.answered - self._in_flight.candidates)
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

    def _submit(self, questions: Iterable[Question]) -> None:
        """Give questions to the executor, but for those that are known: their answers are told at once."""
        told = []
        for question in questions:
            self._in_flight.add(question)
            if self._known.needs_worker(question):
                if (answer := self._of_parent(question)) is not None:
                    told.append(answer)
                else:
                    self._executor.submit(question)
        self._absorb([*told, *self._known.ready()])

    def _of_parent(self, question: Question) -> Answer | None:
        if self._inherited is None:
            return None
        model = question.model
        recipe = self._known.recipe(question.number) if model is None else self.references[model]
        return self._inherited.answer(question, recipe)

    def _absorb(self, answers: Sequence[Answer]) -> None:
        if not answers:
            return
        for answer in self._in_flight.commit(answers):
            question = self._in_flight.over(answer)
            if answer.split in SEEN and answer.number >= 0:
                self._learn(answer)
                self._tally.watch(answer)
            elif question is not None:
                self._tell_ladder(question, answer)
            self._on_answer(self, answer)
        self._absorb(self._known.ready())

    def _save_meter(self) -> None:
        self._ledger.set_meta("spent", self._meter.spent)
        self._metered = time.monotonic()
