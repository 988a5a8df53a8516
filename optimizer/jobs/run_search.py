"""How is a run's search put together? Of its job, ledger and folder; what was opened for it is closed after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.jobs.assemble import build_driver, build_executor, build_ladder, limits, most_steps
from optimizer.record.attempt import Attempt
from optimizer.record.folders import SPOOL
from optimizer.record.inherited import PARENT, Inherited
from optimizer.record.ledger import Ledger
from optimizer.record.spool import Spool
from optimizer.searching.budget import Meter

if TYPE_CHECKING:
    from optimizer.answer import Answer
    from optimizer.jobs.problem import Problem
    from optimizer.searching.search import Search
    from searchspaces import CoefficientSpace


@contextmanager
def assembled(
    folder: Path,
    problem: Problem,
    space: CoefficientSpace,
    ledger: Ledger,
    models: Mapping[str, str],  # name -> content hash
    allow_code: bool,
    on_answer: Callable[[Search, Answer], None],
    on_phase: Callable[[Search], None],
) -> Iterator[Search]:
    """The search of the run in `folder`, its workers not started; they and a parent's scores are closed at the end.

    Raises JobError where the driver's or the executor's options do not fit.
    """
    from optimizer.searching.search import Search

    job, attempt = problem.job, Attempt(folder / "attempt.json")
    with ExitStack() as stack:
        inherited = _inherited(folder, ledger)
        if inherited is not None:
            stack.callback(inherited.close)
        ladder = build_ladder(job, problem, partial(ledger.item_values, split="calibration"))
        executor = stack.enter_context(closing(build_executor(job, allow_code, attempt, ladder)))
        yield Search(
            # all anchors of a run from before they were bounded
            build_driver(job, space, problem, ledger.meta("anchors", None)),
            executor,
            ledger,
            problem.objectives,
            ledger.meta("evaluations"),
            lambda point: space.decode(point).hash,
            on_answer,
            tasks=problem.training.names if problem.training else (),
            steps=most_steps(job),
            references={name: models[name] for name in ledger.meta("references", [])},
            meter=Meter(limits(job), ledger.meta("spent", {})),
            spool=Spool(folder / SPOOL),
            attempt=attempt,
            inherited=inherited,
            constraints=problem.constraints,
            ladder=ladder,
            on_phase=on_phase,
        )


def _inherited(folder: Path, ledger: Ledger) -> Inherited | None:
    """What the run knows of its parent's scores; None where it has none, or they are of something else."""
    parent = ledger.meta("parent", None)
    return Inherited(folder / PARENT, parent["name"]) if parent and (folder / PARENT).is_file() else None
