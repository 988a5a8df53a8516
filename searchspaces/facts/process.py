"""How are task vectors changed before they are merged? Once per host, tensor by tensor, into files that are mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import cast

import torch

from searchspaces import methods
from searchspaces.cache.once import cache, made_once
from searchspaces.errors import PoolError
from searchspaces.facts.gathered import Gathered, statistics_of
from searchspaces.given import Given
from searchspaces.method import Processing
from searchspaces.models import shards
from searchspaces.models.difference import Processed
from searchspaces.models.kept import Kept
from searchspaces.models.pool import Pool
from searchspaces.option import Option, complete

VERSION = 3
"""Part of every folder's name, as is the method's own `version`: a change of how files are laid out is a new one."""


def processing(method: str, options: Mapping[str, Option]) -> str:
    """What a method does to task vectors with these options, as text; nothing where it takes them as they are."""
    kind = methods.load(method)
    if not kind.processes:
        return ""
    every = complete(method, kind.options, options)
    return f"{method} {json.dumps({n: every[n] for n in every if kind.options[n].prepared}, sort_keys=True)}"


def processed(
    pool: Pool,
    method: str,
    options: Mapping[str, Option] | None = None,
    hashes: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda name: None,
    statistics: Mapping[str, Path] | None = None,
) -> Pool:
    """The pool that a method merges: its experts are base + processed task vector, under the same names.

    The differences are made once on a host, by whichever process comes first, and kept in the user's cache, where
    processes map them like any other checkpoint: memory does not grow with their number. They are bf16 where base and
    expert are and parts do not cancel in their sum (`Processing.cancels`), fp32 otherwise. Where a method processes
    nothing it is the pool as it was opened. `hashes` are the models' (`pool.hashes()`); `progress` is called with each
    tensor's name as it is made. `statistics` are folders by expert (see `searchspaces.facts.gathered`), whose names
    stand for their content, for a method that needs them. Raises PoolError where it gets none, where what is made is
    not finite; CacheError where the disk has no room, or does not let us write, or gives nothing back.
    """
    pool = pool.original  # what was processed for another method is none of this one's experts
    what = processing(method, options or {})
    if not what:
        return pool
    kind = cast(type[Processing], methods.load(method))
    rule = kind(complete(method, kind.options, options or {}))
    models = sorted((hashes or pool.hashes()).items())
    # by name, so that a job that lists the same experts in another order finds the same
    ordered = replace(pool, experts=MappingProxyType(dict(sorted(pool.experts.items()))))
    said = [VERSION, kind.version, what, models, [t.name for t in pool.merged], list(ordered.names)]
    found = statistics or {} if kind.gathers else {}
    if kind.gathers:
        said.append(_whose(method, ordered, found))
    home = folder() / hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]
    specs = plan(ordered, method)
    made_once(
        home,
        "the processed task vectors",
        int(1.05 * sum(s.bytes for s in specs)),
        lambda partial: _make(ordered, method, rule, specs, partial, progress, found),
    )
    kept = Kept.open(home, "processed experts")
    place = {name: e for e, name in enumerate(ordered.names)}
    experts = {
        name: Processed(
            f"expert {name!r}, processed by {method}",
            expert.config,
            pool.base,
            kept.renamed({t.name: f"{place[name]}.{i}" for i, t in enumerate(pool.merged)}),
        )
        for name, expert in pool.experts.items()
    }
    return replace(pool, experts=MappingProxyType(experts), processing=what, _original=pool)


def folder() -> Path:
    """Where processed experts are kept; safe to remove when no run is under way."""
    return cache("processed")


def _make(
    pool: Pool,
    label: str,
    method: Processing,
    specs: Sequence[shards.Spec],
    home: Path,
    progress: Callable[[str], None],
    statistics: Mapping[str, Path],
) -> None:
    """Write all experts' processed task vectors to the folder `home`."""

    def tensors() -> Iterator[tuple[str, torch.Tensor, Mapping[str, torch.Tensor]]]:
        for info in pool.merged:
            yield info.name, pool.base.tensor(info.name), {n: e.tensor(info.name) for n, e in pool.experts.items()}

    dtypes = {spec.name: spec.dtype for spec in specs}
    gathered = {expert: Gathered.open(home) for expert, home in statistics.items()}

    def made() -> Iterator[tuple[str, torch.Tensor]]:
        for i, (name, base, experts) in enumerate(tensors()):
            progress(name)
            given = Given(name, base, experts, statistics_of(name, gathered))
            # a tensor without elements has nothing to rank or take apart
            done = _checked(label, given, method.process(given) if base.numel() else given.averaged())
            for e, (_, tensor) in enumerate(zip(experts, done, strict=True)):
                yield f"{e}.{i}", tensor.to(dtypes[f"{e}.{i}"])

    method.survey(tensors)
    shards.write(home, specs, made())
    method.conclude()


def _checked(method: str, given: Given, done: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """What a method makes of one tensor; raises PoolError where that is not finite, or a decomposition fails."""
    for expert in given.experts:
        what = f"method {method!r}: the task vector of {given.name!r} of expert {expert!r}"
        remedy = "look for huge numbers in that tensor of base and experts, or exclude it"
        try:
            tensor = next(done)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise PoolError(f"{what} cannot be processed: {error}; {remedy}") from error
        if not bool(torch.isfinite(tensor).all()):
            raise PoolError(f"{what} has NaN or infinity in it once processed; {remedy}")
        yield tensor


def _whose(method: str, pool: Pool, statistics: Mapping[str, Path]) -> list[str]:
    """The names of the folders of statistics, expert by expert; raises PoolError where one is missing."""
    for expert in pool.names:
        if expert not in statistics:
            raise PoolError(
                f"method {method!r} needs statistics of expert {expert!r} on data of its own, and got none; a job's "
                "run gathers them with the job's evaluators"
            )
    return [statistics[expert].name for expert in pool.names]


def plan(pool: Pool, method: str) -> list[shards.Spec]:
    """The differences of all experts that a method which processes task vectors keeps, in the order of their making.

    That of the e-th expert's i-th tensor is called `e.i`, as a tensor's name may be as long as the format lets it.
    """
    wide = cast(type[Processing], methods.load(method)).cancels
    return [
        shards.Spec(f"{e}.{i}", info.shape, _kept(expert.tensors[info.name].dtype, info.dtype, wide))
        for i, info in enumerate(pool.merged)
        for e, expert in enumerate(pool.experts.values())
    ]


def _kept(expert: torch.dtype, base: torch.dtype, wide: bool) -> torch.dtype:
    """bf16 rounds an entry by up to 1/512 of itself: no more than the merge is rounded by, as long as no entry is
    larger than the sum that it is part of. Where parts may cancel, `wide`, they are float32.
    """
    return torch.bfloat16 if expert == base == torch.bfloat16 and not wide else torch.float32
