"""What do losses follow? The outputs of each expert on its own task: computed once on a host, and kept on its disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from evaluators.evaluator import Differentiable, brings_head
from searchspaces import Resident
from searchspaces.cache import limit
from searchspaces.cache.once import cache, made_once

if TYPE_CHECKING:
    from optimizer.jobs.problem import Problem

VERSION = 3
"""Part of every folder's name: a change of what evaluators keep is a change of all of them."""

FILE = "outputs.safetensors"


def teach(problem: Problem, hashes: Mapping[str, str], resident: Callable[[], Resident]) -> dict[str, Path]:
    """Give each evaluator that follows an expert that expert's outputs, after `prepare`; their files, by evaluator.

    Where no run on this host has computed them, `resident()` becomes one expert after the other, whatever its weights
    were: `write` comes after this. `hashes` are the models' content hashes.
    """
    if not problem.pupils:
        return {}
    taught = {}
    hidden = problem.training is not None and "hidden" in problem.training.loss.weights
    data, words = problem.data_hashes(), reader(Path(problem.pool.base.folder))
    for evaluator in problem.pupils:
        said = [*_said(problem, evaluator, hashes, hidden), *(data[str(file)] for file in evaluator.files), words]
        home = folder() / hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]
        # how much they take is known once the first of them are there
        what = f"the outputs of expert {evaluator.teacher!r}"
        made_once(home, what, 0, partial(_write, evaluator, resident, hidden, home.parent))
        taught[evaluator.name] = home / FILE
        evaluator.learn(home / FILE)
    return taught


def _write(evaluator: Differentiable, resident: Callable[[], Resident], hidden: bool, where: Path, home: Path) -> None:
    model = resident()
    assert evaluator.teacher is not None  # or the job would have been refused
    model.write_expert(evaluator.teacher, heads=not brings_head(evaluator))
    evaluator.teach(model.model, home / FILE, hidden, lambda needed: limit.make_room(needed, where))


def folder() -> Path:
    """Where outputs are kept; safe to remove when no run is under way."""
    return cache("teachers")


def _said(problem: Problem, evaluator: Differentiable, hashes: Mapping[str, str], hidden: bool) -> list[object]:
    """All that the outputs depend on beside data and tokenizer: weights, head, options, dtype, device, libraries."""
    job = problem.job
    entry = next(e for e in job.evaluators if e.name == evaluator.name)
    use = getattr(evaluator, "head_use", None)
    weights = [hashes["base"], hashes[str(evaluator.teacher)], hashes[use.expert] if use else None]
    how = [job.models.dtype, job.executor.device, sorted(job.models.exclude), sorted(job.models.heads)]
    libraries = [version("torch"), version("transformers")]
    return [VERSION, *weights, entry.model_dump(mode="json"), hidden, *how, *libraries]


def reader(base: Path) -> dict[str, str]:
    """sha256 of what turns texts and images into inputs, by file name: all small files beside the base's weights."""
    files = sorted(f for f in base.iterdir() if f.suffix in (".json", ".txt", ".model", ".jinja") and f.is_file())
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
