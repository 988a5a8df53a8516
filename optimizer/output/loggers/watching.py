"""How is a search told to a logger without waiting for it? From a thread of its own, which may fail or hang alone."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from optimizer.driver import WHOLE
from optimizer.objectives import values
from optimizer.output import logs
from optimizer.output.loggers.logger import Abandonable, Begun, Ended, Logger, Row, Step, flat
from optimizer.record.folders import LEDGER
from optimizer.record.ledger import Ledger
from optimizer.wording import shown

if TYPE_CHECKING:
    from evaluators.evaluator import Measure
    from optimizer.answer import Answer
    from optimizer.record.results import Candidate, Results
    from optimizer.run import Run
    from optimizer.searching.search import Search

MOST_WAITING = 10_000  # steps that a logger may be behind
CLOSE_SECONDS = 12.0  # for all loggers together to take in what is waiting, and to close

Told = Callable[[], None]


class Watched:
    """A search as a logger is told of it. Whatever the logger does, nothing here raises, and only `closed` waits.

    A logger that raises, or is `MOST_WAITING` steps behind, is off for the rest of the search: one line says so.
    """

    def __init__(self, name: str, logger: Logger, run: Run) -> None:
        self._name, self._logger, self._run = name, logger, run
        self._waiting: queue.Queue[Told | None] = queue.Queue(MOST_WAITING)
        self._off = threading.Event()
        self._began = False
        self._thread = threading.Thread(target=self._work, name=f"log to {name}", daemon=True)
        self._thread.start()

    def on_start(self, search: Search) -> None:
        """The search is about to start."""
        with closing(Ledger.open(self._run.folder / LEDGER, readonly=True)) as ledger:
            id = str(ledger.meta("id", self._run.job.name))
        job = self._run.job
        said = flat(job.model_dump(mode="json", exclude={"hashes", "root"}))
        goals = {o.name: o.goal for o in search.objectives}
        begun = Begun(id, job.name, self._run.folder, said, goals)
        self._began = True
        self._tell(lambda: self._logger.start(begun))

    def on_answer(self, search: Search, answer: Answer) -> None:
        """An answer was committed; gradients, references and held-out scores are no steps."""
        if answer.split != "calibration" or answer.number < 0 or self._off.is_set():
            return
        step = step_of(search, answer)
        self._tell(lambda: self._logger.step(step))

    def end(self, results: Results) -> None:
        """The search is over, or was stopped."""
        if self._began and not self._off.is_set():
            ended = ended_of(results)
            self._tell(lambda: self._logger.end(ended))

    def finish(self) -> None:
        """Nothing more is told: once the logger has taken all in it closes. Nothing waits for that but `closed`."""
        if not self._off.is_set():
            self._tell(None)

    def closed(self, at: float) -> None:
        """Wait until it is, at most to a time of the monotonic clock."""
        self._thread.join(max(0.0, at - time.monotonic()))  # of one that is off too: its `close` may be under way
        if self._thread.is_alive():
            self._end(f"it has not taken all in {CLOSE_SECONDS:g} s after the end")
            if isinstance(self._logger, Abandonable):
                with suppress(Exception):
                    self._logger.abandon()

    def _tell(self, what: Told | None) -> None:
        try:
            self._waiting.put_nowait(what)
        except queue.Full:
            self._end(f"it is {MOST_WAITING} candidates behind")

    def _work(self) -> None:
        try:
            while not self._off.is_set() and (what := self._waiting.get()) is not None:
                what()
        except BaseException as error:  # a logger's SystemExit too: this thread has nothing else to do
            self._end(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
        finally:
            try:
                self._logger.close()
            except BaseException as error:
                self._end(f"{type(error).__name__}: {error}")

    def _end(self, why: str) -> None:
        """Say once that the logger is off, and why."""
        if not self._off.is_set():
            self._off.set()
            logs.say("logging to %s is off, which harms no search: %s", self._name, shown(why, 500))


@contextmanager
def watched(run: Run, loggers: Sequence[tuple[str, Logger]]) -> Iterator[list[Watched]]:
    """A search as these loggers, by name, are told of it. Once it is over they take all in and close, side by side.

    That is waited for at most `CLOSE_SECONDS`, for all of them together.
    """
    made: list[Watched] = []
    try:
        for name, logger in loggers:
            made.append(Watched(name, logger, run))
        yield made
    finally:
        for one in made:
            one.finish()
        at = time.monotonic() + CLOSE_SECONDS
        for one in made:
            one.closed(at)


def step_of(search: Search, answer: Answer) -> Step:
    """What is told of an answer on calibration items."""
    number, best = answer.number % WHOLE, search.front.best()
    names = [o.name for o in search.objectives]
    stage = search.stage(answer.number)
    scored, stderr = _measured({n: answer.measures[n] for n in names if n in answer.measures})
    best_so_far = {} if best is None else dict(zip(names, values(search.objectives, best).tolist(), strict=True))
    failure = None if answer.failure is None else str(answer.failure)
    return Step(
        *(search.told, number, shown(stage, 300), scored, stderr, best_so_far),
        *(search.front.hypervolume, answer.seconds, not answer.whole, failure),
    )


def ended_of(results: Results) -> Ended:
    """What is told of a search at its end."""

    def row(c: Candidate) -> Row:
        names = [o.name for o in results.objectives]
        seen, seen_stderr = _measured({n: c.measures[n] for n in names})
        unseen, unseen_stderr = _measured({n: c.heldout[n] for n in names if n in c.heldout})
        return Row(c.label, c.recipe, seen, seen_stderr, unseen, unseen_stderr)

    return Ended([row(c) for c in results.on_front], results.front.hypervolume, results.finished)


def _measured(measures: Mapping[str, Measure]) -> tuple[dict[str, float], dict[str, float]]:
    """Values and standard errors, of those that have one."""
    errors: dict[str, Any] = {n: m.stderr for n, m in measures.items()}
    return (
        {n: float(m.value) for n, m in measures.items()},
        {n: float(e) for n, e in errors.items() if e is not None and math.isfinite(e)},
    )
