"""What was seen of each expert on its own task? Statistics that a method needs, gathered once on a host, and kept."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import psutil
import torch

from evaluators.errors import NonFinite
from evaluators.evaluator import Evaluator, Head, Indices, Observed, Setting, brings_head
from evaluators.statistics import Fishers, Gatherer, Grams
from optimizer.errors import JobError
from optimizer.training.sums import Work, worked_once
from optimizer.training.teachers import reader
from searchspaces import Pool, Recipe, Resident, methods, processed
from searchspaces.cache import limit
from searchspaces.cache.once import cache
from searchspaces.errors import CacheFull
from searchspaces.facts.inputs import readings
from searchspaces.models.loading import targets

if TYPE_CHECKING:
    from optimizer.jobs.problem import Problem

log = logging.getLogger(__name__)

VERSION = 1
"""Part of every folder's name: a change of what is gathered is a change of all folders."""

EVERY = 60.0
"""Seconds between two copies of the sums on the disk: what a kill loses at most. Sums are the same however often."""

SHARE = 0.5
"""Of the free memory, for sums: what needs more is gathered in several passes over the items."""


def owners(method: str, experts: Sequence[str], made: Sequence[Evaluator]) -> dict[str, list[Observed]]:
    """Expert -> the evaluators of its own task; nothing for a method that needs no statistics.

    An evaluator belongs to its `teacher`, and to the expert that it is called like where it names none. Raises JobError
    naming the expert that has none, or none that can be observed.
    """
    if not kind_of(method):
        return {}
    found: dict[str, list[Observed]] = {}
    for expert in experts:
        own = [e for e in made if (getattr(e, "teacher", None) or e.name) == expert]
        able = [cast(Observed, e) for e in own if hasattr(e, "observe")]
        if not able:
            has = (
                f"evaluator {own[0].name!r} is of a kind that cannot be observed"
                if own
                else "no evaluator is of its task"
            )
            raise JobError(
                f"method {method!r} needs statistics of every expert on data of its own, and for expert {expert!r} "
                f"{has}; add one of kind classification or language that is called {expert!r}, or give one of another "
                f"name `head: {expert}` (classification) or `teacher: {expert}`, or take a method without data "
                "(task_arithmetic, say)"
            )
        found[expert] = able
    return found


def merged_pool(problem: Problem, recipe: Recipe, progress: Callable[[str], None] = log.info) -> Pool:
    """The pool that a recipe of this problem merges: its task vectors processed, by statistics where that needs some.

    Made by whichever process of a host comes first. Raises as `gathered` and `searchspaces.processed`.
    """
    statistics = gathered(problem, recipe.method, recipe.models, progress)
    return processed(problem.pool, recipe.method, recipe.options, recipe.models, statistics=statistics)


def gathered(
    problem: Problem, method: str, hashes: Mapping[str, str], progress: Callable[[str], None] = log.info
) -> dict[str, Path]:
    """One folder of statistics an expert (see `searchspaces.facts.gathered`); nothing where the method needs none.

    They are made by whichever process of a host comes first, by a model and evaluators of their own that are gone
    afterwards. `hashes` are the models' content hashes; a folder's name is a hash of all that its content depends on.
    What a killed process had summed up is taken up again, with the same result to the bit. Raises JobError as `owners`,
    CacheError where the disk has no room or does not let us write, `NonFinite` where a model's states are not finite.
    """
    own = owners(method, problem.pool.names, problem.evaluators)
    if not own:
        return {}
    kind = kind_of(method)
    data, words = problem.data_hashes(), reader(Path(problem.pool.base.folder))
    station = Station(problem, kind)
    found = {}
    for expert, evaluators in own.items():
        said = [VERSION, kind, *_said(problem, expert, evaluators, hashes, data), words]
        home = folder() / hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]
        worked_once(home, f"the statistics of expert {expert!r}", partial(station.gather, expert, evaluators, progress))
        found[expert] = home
    return found


def kind_of(method: str) -> str:
    """The kind of statistics that a method needs; nothing where it needs none."""
    return str(getattr(methods.load(method), "gathers", ""))


def heads_of(pool: Pool) -> dict[str, Head]:
    """Each expert's task head, as evaluators take it."""
    return {name: Head(pool.opened[name].model_folder, tensors) for name, tensors in pool.heads.items()}


def folder() -> Path:
    """Where statistics are kept; safe to remove when no run is under way."""
    return cache("statistics")


def _said(
    problem: Problem, expert: str, own: Sequence[Observed], hashes: Mapping[str, str], data: Mapping[str, str]
) -> list[object]:
    """What an expert's statistics depend on beside the tokenizer: weights, heads, items, dtype, device, libraries."""
    job = problem.job
    entries = [entry for e in own for entry in job.evaluators if entry.name == e.name]
    heads = [str(entry.options.get("head") or entry.name) for entry in entries]
    weights = [hashes["base"], hashes[expert], *(hashes.get(head) for head in heads)]
    files = [[data[str(file)] for file in e.files] for e in own]
    how = [job.models.dtype, str(job.executor.device), job.models.vocabulary, sorted(job.models.sources.items())]
    tensors = [sorted(job.models.exclude), sorted(job.models.heads)]
    libraries = [version("torch"), version("transformers")]
    return [weights, [entry.model_dump(mode="json") for entry in entries], files, how, tensors, libraries]


@dataclass(eq=False)
class Station:
    """A resident model that becomes one expert after the other, and is loaded where there is something to gather."""

    problem: Problem
    kind: str
    _twins: dict[str, Observed] = field(default_factory=dict)

    @cached_property
    def resident(self) -> Resident:
        job = self.problem.job
        dtype = job.models.resident_dtype
        # nothing is merged: base and experts need no room on a device
        return Resident(self.problem.pool.original, job.executor.device, dtype, job.executor.threads, "stream")

    @cached_property
    def watched(self) -> Mapping[str, Any]:
        """By the merged tensor's name, what is gathered of."""
        places = targets(self.problem.pool.original, self.resident.model)
        if self.kind == Grams.kind:
            return readings(self.resident.model, places)
        return {name: place for name, place in places.items() if place.trained}

    def gather(
        self, expert: str, own: Sequence[Observed], progress: Callable[[str], None], where: Path, home: Path
    ) -> None:
        """Fill the folder `home`; the folder `where` keeps what is done between processes."""
        work = Work(where, list(self.watched))
        needed = sum(map(self._room, work.left))  # sums and statistics take as much as that
        limit.make_room(needed, home.parent)
        free = shutil.disk_usage(home).free
        if free < needed:
            raise CacheFull(
                f"{home.parent}: {free / 1e9:.2f} GB free, the statistics of expert {expert!r} need "
                f"{needed / 1e9:.2f} GB; free some, or set XDG_CACHE_HOME to another disk"
            )
        own = [self._prepared(evaluator) for evaluator in own]
        while (names := work.next(self._pass)) is not None:
            gatherer = self._gatherer({name: self.watched[name] for name in names})
            try:
                steps = self._run(gatherer, expert, own, work, progress)
                work.finish(gatherer.shapes(), gatherer.found())
            except NonFinite as error:
                raise NonFinite(f"expert {expert!r}: {error}") from error
            progress(f"{self.kind} of expert {expert!r}: {len(names)} tensors, from {steps} steps")
        work.give(home)

    @property
    def _gatherer(self) -> Any:
        return {kind.kind: kind for kind in (Grams, Fishers)}[self.kind]

    def _prepared(self, evaluator: Observed) -> Observed:
        """An evaluator's twin for this model: whoever prepared the evaluator itself for another goes on with it."""
        if evaluator.name not in self._twins:
            job, pool, model = self.problem.job, self.problem.pool, self.resident.model
            entry = next(e for e in job.evaluators if e.name == evaluator.name)
            twin = type(evaluator)(entry.name, entry.options, Path(job.root or "."))
            twin.prepare(Setting(model, Path(pool.base.folder), self.resident.device, heads_of(pool)))
            self._twins[evaluator.name] = twin
        return self._twins[evaluator.name]

    def _room(self, name: str) -> int:
        return int(self._gatherer.room(self.watched[name]))

    def _pass(self, names: Sequence[str]) -> list[str]:
        """As many of these as memory has room for; one at least."""
        left = SHARE * _free(self.resident.device)
        found: list[str] = []
        for name in names:
            left -= self._room(name)
            if left < 0 and found:
                break
            found.append(name)
        return found

    def _run(
        self, gatherer: Gatherer, expert: str, own: Sequence[Observed], work: Work, progress: Callable[[str], None]
    ) -> int:
        """One pass over the items, from where `work` is; returns its number of steps."""
        steps = [(e, rows) for e in own for rows in gatherer.steps(e, _seen(e))]
        start, at, now = work.take_up(gatherer.sums), time.monotonic(), ""
        with gatherer.watching():
            for number, (evaluator, rows) in enumerate(steps[start:], start + 1):
                if evaluator.name != now:
                    now = evaluator.name
                    self.resident.write_expert(expert, heads=not brings_head(evaluator))
                gatherer.step(evaluator, self.resident.model, rows)
                if time.monotonic() - at >= EVERY:
                    work.keep(gatherer.sums, number)
                    progress(f"{self.kind} of expert {expert!r}: {number} of {len(steps)} steps")
                    at = time.monotonic()
        return len(steps)


def _seen(evaluator: Observed) -> Indices:
    """The items that a search may see, whether it scores on them or differentiates."""
    return np.sort(np.concatenate([evaluator.splits.calibration, evaluator.splits.train]))


def _free(device: torch.device) -> int:
    """Bytes free on this host, and on the device: the fewer."""
    host = int(psutil.virtual_memory().available)
    return min(host, int(torch.cuda.mem_get_info(device)[0])) if device.type == "cuda" else host
