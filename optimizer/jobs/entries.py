"""What of a job's evaluators can be refused before one of them is opened?"""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import evaluators
from evaluators.evaluator import Evaluator
from evaluators.losses import KINDS
from evaluators.options import parse
from optimizer.jobs.job import EvaluatorEntry, Job
from optimizer.training.gathering import owners
from optimizer.training.training import Training
from searchspaces import CoefficientSpace


def check_entries(job: Job, space: CoefficientSpace) -> None:
    """Raises JobError where an expert has no evaluator that a method needs, or an evaluator not the loss asked for.

    Raises OptionError for options that an evaluator refuses. Of evaluators of other packages only they themselves know
    what they offer: a job that has some is left to the run.
    """
    if not {entry.kind for entry in job.evaluators} <= evaluators.EVALUATORS.keys():
        return
    made = [cast(Evaluator, _on_paper(entry)) for entry in job.evaluators]
    Training.of(job, space, made)
    for method in job.space.methods:
        owners(method, space.experts, made)


def _on_paper(entry: EvaluatorEntry) -> SimpleNamespace:
    """What an entry alone says of an evaluator: its name, expert and losses, and whether it can be observed."""
    kind = evaluators.load(entry.kind)
    asked = parse(kind.Options, entry.name, entry.options)
    head = (asked.head or entry.name) if hasattr(asked, "head") else None
    found = SimpleNamespace(name=entry.name, teacher=getattr(asked, "teacher", None) or head, losses={})
    if hasattr(kind, "loss"):
        labelled = getattr(asked, "label", "") is not None
        found.losses = {name: said for name, said in KINDS.items() if labelled or name != "cross_entropy"}
    if hasattr(kind, "observe"):
        found.observe = True
    return found
