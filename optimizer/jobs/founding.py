"""What is written down of a run before its first question?"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import RunError
from optimizer.jobs.assemble import most_anchors, most_steps
from optimizer.jobs.changes import identity
from optimizer.jobs.job import Job
from optimizer.jobs.references import references
from optimizer.record.folders import LEDGER
from optimizer.record.ledger import Ledger
from searchspaces.models.shards import write_text

if TYPE_CHECKING:
    from optimizer.jobs.problem import Problem
    from searchspaces import CoefficientSpace


def write_folder(
    folder: Path, job: Job, problem: Problem, space: CoefficientSpace, parent: Mapping[str, Any] | None
) -> None:
    """Write job, splits and an empty ledger to an empty folder; `parent` is of which run it is a child, if any.

    Raises RunError where the job would not be read back as it is.
    """
    write_text(folder / "job.yaml", job.yaml())
    if Job.load(folder / "job.yaml").yaml() != job.yaml():  # before there is a run that nothing can read
        raise RunError("the job is not what is read back once it is written; give its values as plain YAML has them")
    said = {name: {"provenance": lines} for name, lines in problem.provenance.items()}
    splits = {name: {**rows, **said.get(name, {})} for name, rows in problem.splits().items()}
    write_text(folder / "splits.json", json.dumps(splits))
    meta: Mapping[str, Any] = {
        "id": secrets.token_hex(12),  # by which copies of one run know each other
        "name": job.name,
        "evaluations": job.budget.evaluations,
        "said_evaluations": job.budget.evaluations,  # by job.yaml, so that an edit of it is seen
        "objectives": [[o.name, o.goal] for o in problem.objectives],
        "constraints": [str(c) for c in problem.constraints],
        "metrics": {name: metric.goal for name, metric in problem.metrics.items()},
        "space": space.describe(),
        "job": identity(job),
        "steps": most_steps(job),
        "references": references(problem, space),
        "anchors": most_anchors(job),  # whatever the budget is later: a resume asks the same
        "done": False,  # whether the driver has nothing left to ask
        "parent": parent,
    }
    Ledger.create(folder / LEDGER, meta, job.ledger).close()
