"""How are task vectors changed before they are merged? Once per host, tensor by tensor, into files that are mapped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import cast

import torch
from filelock import FileLock

from searchspaces import methods, shards
from searchspaces.checkpoint import Checkpoint
from searchspaces.errors import PoolError
from searchspaces.method import Option, Processing, complete
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
    if not home.is_dir():
        try:
            home.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(home.with_suffix(".lock")):
                if not home.is_dir():  # or another process has just made it
                    _make(pool, cast(Processing, kind(every)), home, progress)
        except OSError as error:
            raise PoolError(
                f"processed task vectors cannot be written to {home}: {error}; make room there, or set XDG_CACHE_HOME "
                "to another disk"
            ) from error
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
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "mergeopt" / "processed"


def _make(pool: Pool, method: Processing, home: Path, progress: Callable[[str], None]) -> None:
    """Write all experts' processed tensors, beside their place, and rename. Only one process does, under a lock."""
    partial = home.with_name(f".{home.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    specs = _plan(pool)
    needed, free = int(1.05 * sum(s.bytes for s in specs)), shutil.disk_usage(home.parent).free
    if free < needed:
        raise PoolError(
            f"{home.parent}: {free / 1e9:.2f} GB free, the processed task vectors need {needed / 1e9:.2f} GB; free "
            "some, or set XDG_CACHE_HOME to another disk"
        )

    def tensors() -> Iterator[tuple[str, torch.Tensor, Mapping[str, torch.Tensor]]]:
        for info in pool.merged:
            yield info.name, pool.base.tensor(info.name), {n: e.tensor(info.name) for n, e in pool.experts.items()}

    def made() -> Iterator[tuple[str, torch.Tensor]]:
        for name, base, experts in tensors():
            progress(name)
            for expert, tensor in zip(experts, method.process(name, base, experts), strict=True):
                yield f"{expert}/{name}", tensor

    partial.mkdir()
    try:
        method.survey(tensors)
        shards.write(partial, specs, made())
        shards.write_text(partial / "config.json", json.dumps(dict(pool.base.config)))
        shards.sync_folder(partial)
        partial.rename(home)
        shards.sync_folder(home.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _plan(pool: Pool) -> list[shards.Spec]:
    """The tensors of all experts, in the order in which they are made."""
    return [
        shards.Spec(f"{name}/{info.name}", info.shape, torch.promote_types(expert.tensors[info.name].dtype, info.dtype))
        for info in pool.merged
        for name, expert in pool.experts.items()
    ]
