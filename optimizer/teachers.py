"""What do losses follow? The outputs of each expert on its own task: computed once on a host, and kept on its disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock

from evaluators.evaluator import Differentiable
from optimizer.problem import Problem
from searchspaces import Resident

VERSION = 2
"""Part of every file's name: a change of what evaluators keep is a change of all files."""


def teach(problem: Problem, hashes: Mapping[str, str], resident: Callable[[], Resident]) -> None:
    """Give each evaluator that follows an expert that expert's outputs, after `prepare`.

    Where no run on this host has computed them, `resident()` becomes one expert after the other, whatever its weights
    were: `write` comes after this. `hashes` are the models' content hashes.
    """
    hidden = problem.training is not None and "hidden" in problem.training.loss.weights
    for evaluator in problem.pupils:
        file = folder() / f"{_key(problem, evaluator, hashes, hidden)}.safetensors"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(file.with_suffix(".lock")):
                if not file.exists():  # or another worker has just written it
                    model = resident()
                    assert evaluator.teacher is not None  # or the job would have been refused
                    model.write_expert(evaluator.teacher)
                    evaluator.teach(model.model, file, hidden)
        evaluator.learn(file)


def folder() -> Path:
    """Where outputs are kept; safe to remove when no run is under way."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "mergeopt" / "teachers"


def _key(problem: Problem, evaluator: Differentiable, hashes: Mapping[str, str], hidden: bool) -> str:
    """A hash of all that the outputs depend on: weights, items, how they are read, dtype and device."""
    job = problem.job
    entry = next(e for e in job.evaluators if e.name == evaluator.name)
    data = problem.data_hashes()
    said = [
        *(VERSION, hashes["base"], hashes[str(evaluator.teacher)], entry.model_dump(mode="json"), hidden),
        *(
            [data[str(file)] for file in evaluator.files],
            job.models.dtype,
            job.executor.device,
            sorted(job.models.exclude),
            sorted(job.models.heads),
        ),
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]
