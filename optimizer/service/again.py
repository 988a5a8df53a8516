"""How does another search begin where a candidate is? By its run's job, the candidate's coefficients as its start."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from optimizer.jobs.job import Job
from optimizer.jobs.plain_yaml import read_yaml
from optimizer.record.candidate import Candidate
from optimizer.record.results import Results
from optimizer.service.refusals import Refused


def begun_at(file: Path, results: Results, chosen: Candidate) -> str:
    """The job in `file` as YAML, `space.start` being each expert's mean coefficient over the candidate's groups.

    A job knows a start by expert and no finer one. Raises Refused for what has no coefficients, JobError for no job.
    """
    recipe = None if chosen.is_reference or chosen.failure is not None else results.recipe(chosen)
    if recipe is None or recipe.picked is not None:
        raise Refused(409, f"{chosen.label} has no coefficients to start from; choose a candidate that was scored")
    means = np.asarray(recipe.coefficients, dtype=np.float64).mean(axis=0)  # (experts,)
    start = {name: float(f"{mean:.6g}") for name, mean in zip(recipe.experts, means, strict=True)}
    job = Job.parse(read_yaml(file), file.parent.absolute(), file.name)
    return job.model_copy(update={"space": job.space.model_copy(update={"start": start})}).yaml()
