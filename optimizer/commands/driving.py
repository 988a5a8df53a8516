"""How is a search driven from a terminal? Progress, the first and second Ctrl-C, and what is said at its end."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from optimizer.output import hints, logs, show
from optimizer.output.progress import SearchProgress
from optimizer.searching import search as searching

if TYPE_CHECKING:
    from optimizer.answer import Answer
    from optimizer.output.loggers.logger import Logger
    from optimizer.output.loggers.watching import Watched
    from optimizer.output.metrics import Metrics
    from optimizer.run import Run
    from optimizer.searching.search import Search

AGAIN_SECONDS = 0.5  # between two alarms


def drive(
    made: Run,
    evaluations: int | None,
    allow_code: bool,
    metrics_port: int | None = None,
    retry_failed: bool = False,
    log_to: Sequence[tuple[str, Logger]] = (),
) -> None:
    """Search with progress, then print the front and write the report. Ctrl-C drains and exits 130."""
    from optimizer.output.loggers import watching

    with watching.watched(made, log_to) as watched:
        search = _search(made, evaluations, allow_code, metrics_port, retry_failed, watched)
        results = made.results()
        for one in watched:
            one.end(results)
        show.print_front(results)
    _say_how_it_ended(made, search)


def _search(
    made: Run,
    evaluations: int | None,
    allow_code: bool,
    metrics_port: int | None,
    retry_failed: bool,
    watched: Sequence[Watched],
) -> Search:
    with ExitStack() as stack:
        progress = stack.enter_context(SearchProgress(Console()))
        told: list[SearchProgress | Metrics | Watched] = [progress, *watched]
        interruptible = stack.enter_context(_Interruptible())
        if metrics_port is not None:
            told.append(_metrics(made, metrics_port, stack))

        def start(search: Search) -> None:
            for one in told:
                one.on_start(search)
            interruptible.search = search

        def on_answer(search: Search, answer: Answer) -> None:
            for one in told:
                one.on_answer(search, answer)

        return made.search(
            on_answer, start, evaluations, allow_code, retry_failed=retry_failed, on_phase=progress.on_phase
        )


def _say_how_it_ended(made: Run, search: Search) -> None:
    """What to know of the end; exits 1 where a walk broke off, 130 where the user stopped it."""
    if search.reached is not None:
        typer.echo(
            f"the budget ended the search: {search.reached}; raise it in {made.folder}/job.yaml, then "
            f"'{hints.command('resume', made.folder)}' goes on"
        )
    if search.ended and search.gradient_failure is not None:
        logs.say("the walk ended early, its last gradients failed: %s", search.gradient_failure)
    elif search.ended and 0 < search.steps <= search.gradients:
        typer.echo(f"its {search.steps} steps are done; a run with more of driver.steps goes further")
    elif search.ended and search.answered < search.evaluations:
        taken = f" after {search.gradients} of {search.steps} steps" if search.steps else ""
        new = " that is new" if search.repeated else ""
        typer.echo(f"the driver has nothing left to ask{new}{taken}: more evaluations change nothing")
    report = made.report()
    typer.echo(
        f"'{hints.command('fetch', made.folder, 'report')}' brings it" if hints.is_from_afar() else f"report {report}"
    )
    if search.ended and search.gradient_failure is not None:
        raise SystemExit(1)
    if search.stopped:
        typer.echo(
            f"stopped at {search.answered} of {search.evaluations} candidates; "
            f"'{hints.command('resume', made.folder)}' goes on"
        )
        raise SystemExit(130)


def _metrics(made: Run, port: int, stack: ExitStack) -> Metrics:
    """The figures of a run on a port, until the stack unwinds."""
    from optimizer.output.metrics import Metrics

    metrics = Metrics(made.job.name, port)
    stack.callback(metrics.close)
    logs.say("metrics at %s", metrics.address)
    return metrics


class _Interruptible:
    """First Ctrl-C or SIGTERM: ask nothing more and drain. Second, or before a worker is ready: stop now.

    A candidate that this process itself is at, and that outlasts the drain, is ended by an alarm.
    """

    def __init__(self) -> None:
        self.search: Search | None = None

    def __enter__(self) -> _Interruptible:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, KeyboardInterrupt):
            logs.say("stopped at once; what was answered is kept, resume goes on")
            raise SystemExit(130) from None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.search is None or self.search.stopped or self.search.phase == "starting":
            raise KeyboardInterrupt
        self.search.stop()
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._ring)
        # again and again: what it ends may take the first for an error of its own
        signal.setitimer(signal.ITIMER_REAL, searching.DRAIN_SECONDS, AGAIN_SECONDS)
        with suppress(RuntimeError):  # the stream was just being written to: what that interrupted goes on all the same
            logs.say("stopping: waiting for what is in flight (again: stop at once)")

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if self.search is not None:
            self.search.end_drain()
