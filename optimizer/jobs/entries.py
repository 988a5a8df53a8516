"""What of a job's evaluators, metrics and driver can be refused before a model or an item is opened?"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import cast

import evaluators
from evaluators.evaluator import Evaluator, Metric
from evaluators.losses import KINDS
from evaluators.options import parse
from optimizer import objectives
from optimizer.conditions import Condition
from optimizer.errors import JobError
from optimizer.jobs.assemble import build_driver
from optimizer.jobs.job import EvaluatorEntry, Job
from optimizer.jobs.problem import Problem, check_teachers, pupils
from optimizer.training.gathering import owners
from optimizer.training.training import Training
from searchspaces import CoefficientSpace


def check_entries(job: Job, space: CoefficientSpace) -> list[str]:
    """What of a job's entries nobody can know on paper, a few words each.

    Raises JobError where an expert has no evaluator that a method needs, an evaluator not the loss or the metric asked
    for, a constraint a bound that its metric cannot have, rungs a metric that some items cannot tell, or the driver not
    the options that it is given. Raises OptionError for options that an evaluator refuses. Of evaluators of other
    packages only they themselves know what they offer, unless they say it: these are left to the run.
    """
    foreign = [e for e in job.evaluators if e.kind not in evaluators.EVALUATORS]
    training = None
    if not foreign:
        made = [cast(Evaluator, _on_paper(entry)) for entry in job.evaluators]
        training = Training.of(job, space, made)
        for method in job.space.methods:
            owners(method, space.experts, made)
        check_teachers(pupils(made, training), space.experts)
    reported = {entry.name: _reported(entry) for entry in job.evaluators}
    _check_metrics(job, {name: metrics for name, metrics in reported.items() if metrics is not None})
    build_driver(job, space, cast(Problem, SimpleNamespace(objectives=job.objectives, training=training)))
    unknown = [f"what evaluator {name!r} reports" for name, metrics in reported.items() if metrics is None]
    return [*unknown, *(f"what evaluator {e.name!r} (kind {e.kind}) needs and offers" for e in foreign)]


def _check_metrics(job: Job, reported: Mapping[str, tuple[Metric, ...]]) -> None:
    """Objectives and constraints of the evaluators whose metrics are known; of all, where these are all there are."""
    offered = {f"{name}.{metric.name}": metric for name, metrics in reported.items() for metric in metrics}
    others = tuple(f"{entry.name}." for entry in job.evaluators if entry.name not in reported)
    wanted = [name for name in job.objectives if not name.startswith(others)]
    bounded = [text for text in job.constraints if not Condition.parse(text).name.startswith(others)]
    names, all_named = [entry.name for entry in job.evaluators], [*wanted, *(Condition.parse(t).name for t in bounded)]
    for name in all_named if others else ():
        if name.rpartition(".")[0] not in names:
            raise JobError(f"{name!r} is of no evaluator of this job; there are: {', '.join(names)}; take one of these")
    found = objectives.resolve(wanted, offered), objectives.constrained(bounded, offered)
    for name in [one.name for part in found for one in part] if job.fidelity is not None else ():
        if offered[name].whole:
            raise JobError(
                f"fidelity: {name} is no mean over items, of which some could tell; take another metric of that "
                "evaluator, or leave fidelity out"
            )


def _reported(entry: EvaluatorEntry) -> tuple[Metric, ...] | None:
    """The metrics of an evaluator; None where only it knows them, once it is made."""
    kind = evaluators.load(entry.kind)
    reports = getattr(kind, "reports", None)
    return None if reports is None else tuple(reports(parse(kind.Options, entry.name, entry.options)))


def _on_paper(entry: EvaluatorEntry) -> SimpleNamespace:
    """What an entry alone says of an evaluator: its name, expert and losses, and whether it can be observed."""
    kind = evaluators.load(entry.kind)
    asked = parse(kind.Options, entry.name, entry.options)
    head = (asked.head or entry.name) if hasattr(asked, "head") else None
    said = getattr(asked, "teacher", None)
    found = SimpleNamespace(name=entry.name, teacher=said or head, learns=said is not None, losses={})
    if hasattr(kind, "loss"):
        labelled = getattr(asked, "label", "") is not None
        found.losses = {name: said for name, said in KINDS.items() if labelled or name != "cross_entropy"}
    if hasattr(kind, "observe"):
        found.observe = True
    return found
