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

from searchspaces import methods, shards
from searchspaces.checkpoint import Checkpoint
from searchspaces.errors import PoolError
from searchspaces.method import Option, Processing, complete
from searchspaces.once import cache, made_once
from searchspaces.pool import Pool

VERSION = 1
"""Part of every folder's name, as is the method's own `version`: a change of how files are laid out is a new one."""


def processing(method: str, options: Mapping[str, Option]) -> str:
    """What a method with complete options does to task vectors, as text; nothing where it takes them as they are."""
    return f"{method} {json.dumps(dict(options), sort_keys=True)}" if methods.load(method).processes else ""


def processed(
    pool: Pool,
    method: str,
    options: Mapping[str, Option] | None = None,
    hashes: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> Pool:
    """The pool that a method merges: its experts are base + processed task vector, under the same names.

    They are made once on a host, by whichever process comes first, and kept in the user's cache, where processes map
    them like any other checkpoint: memory does not grow with their number. Where a method processes nothing it is the
    pool as it was opened. `hashes` are the models' (`pool.hashes()`); `progress` is called with each tensor's name as
    it is made. Raises PoolError where the disk has no room, or does not let us write.
    """
    pool = pool.original  # what was processed for another method is none of this one's experts
    kind = methods.load(method)
    every = complete(method, kind.defaults, options or {})
    what = processing(method, every)
    if not what:
        return pool
    models = sorted((hashes or pool.hashes()).items())
    said = [
        VERSION,
        cast(type[Processing], kind).version,
        what,
        models,
        [t.name for t in pool.merged],
        list(pool.names),
    ]
    home = folder() / hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]
    specs = _plan(pool)
    made_once(
        home,
        "the processed task vectors",
        int(1.05 * sum(s.bytes for s in specs)),
        lambda partial: _make(pool, cast(Processing, kind(every)), specs, partial, progress),
    )
    try:
        kept = Checkpoint.open(home, "processed experts")
    except PoolError as error:
        raise PoolError(f"{error}; or remove {home}, and it is made again") from error
    experts = {
        name: replace(
            kept.renamed({t.name: f"{name}/{t.name}" for t in pool.merged}),
            label=f"expert {name!r}, processed by {method}",
            config=expert.config,
        )
        for name, expert in pool.experts.items()
    }
    return replace(pool, experts=MappingProxyType(experts), processing=what, _original=pool)


def folder() -> Path:
    """Where processed experts are kept; safe to remove when no run is under way."""
    return cache("processed")


def _make(
    pool: Pool, method: Processing, specs: Sequence[shards.Spec], home: Path, progress: Callable[[str], None]
) -> None:
    """Write all experts' processed tensors to the folder `home`."""

    def tensors() -> Iterator[tuple[str, torch.Tensor, Mapping[str, torch.Tensor]]]:
        for info in pool.merged:
            yield info.name, pool.base.tensor(info.name), {n: e.tensor(info.name) for n, e in pool.experts.items()}

    def made() -> Iterator[tuple[str, torch.Tensor]]:
        for name, base, experts in tensors():
            progress(name)
            for expert, tensor in zip(experts, method.process(name, base, experts), strict=True):
                yield f"{expert}/{name}", tensor

    method.survey(tensors)
    shards.write(home, specs, made())
    shards.write_text(home / "config.json", json.dumps(dict(pool.base.config)))


def _plan(pool: Pool) -> list[shards.Spec]:
    """The tensors of all experts, in the order in which they are made."""
    return [
        shards.Spec(f"{name}/{info.name}", info.shape, torch.promote_types(expert.tensors[info.name].dtype, info.dtype))
        for info in pool.merged
        for name, expert in pool.experts.items()
    ]
