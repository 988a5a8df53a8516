"""Which tables of a pool's tensors are kept? A folder for each kind and set of models, made once on a host."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import RLock
from typing import TypeVar

import torch

from searchspaces.cache.once import cache, made_once
from searchspaces.errors import RecipeError
from searchspaces.models import shards
from searchspaces.models.headers import TensorInfo
from searchspaces.models.kept import Kept
from searchspaces.models.pool import Pool

VERSION = 2
"""Part of every folder's name: a change of what tables hold, or of how it is computed, is a new one."""

T = TypeVar("T")
R = TypeVar("R")

Columns = Sequence[tuple[str, tuple[int, ...], torch.dtype]]
"""Name, shape and dtype of each array of one tensor's table."""


class Tables:
    """The tables of one pool, each made, or found on the disk, when it is first asked for. From several threads.

    `hashes` are the models', `pool.hashes()` where they are not given; `threads` and `progress` as of `kept`.
    """

    def __init__(
        self, pool: Pool, hashes: Mapping[str, str] | None, threads: int, progress: Callable[[str], None]
    ) -> None:
        self.pool = pool
        self._hashes, self._threads, self._progress = hashes, threads, progress
        self._lock = RLock()
        self._opened: dict[tuple[str, int | None], Kept] = {}

    def of(
        self,
        kind: str,
        k: int | None,
        columns: Callable[[TensorInfo], Columns],
        make: Callable[[int, TensorInfo], Sequence[torch.Tensor]],
    ) -> Kept:
        """The table of a kind for expert k, or for all of them; `make` is given a tensor's place too. As `kept`.

        Raises RecipeError where the hashes are not of all models.
        """
        with self._lock:
            if (kind, k) not in self._opened:
                if self._hashes is None:
                    self._hashes = self.pool.hashes()
                experts = self.pool.names if k is None else (self.pool.names[k],)
                if missing := [name for name in ("base", *experts) if name not in self._hashes]:
                    raise RecipeError(
                        f"models have no content hash of {missing[0]!r}, only of {', '.join(self._hashes) or 'none'}; "
                        "a recipe's are those of base and all experts, as Pool.hashes() gives them"
                    )
                models = [self._hashes["base"], *(self._hashes[e] for e in experts)]
                places = {info.name: i for i, info in enumerate(self.pool.merged)}
                self._opened[kind, k] = kept(
                    kind,
                    models,
                    self.pool.merged,
                    columns,
                    lambda info: make(places[info.name], info),
                    self._threads,
                    self._progress,
                )
            return self._opened[kind, k]

    def folder(self, kind: str, k: int | None) -> Path:
        """Where a table that was asked for is kept."""
        return self._opened[kind, k].folder


def kept(
    kind: str,
    models: Sequence[str],
    tensors: Sequence[TensorInfo],
    columns: Callable[[TensorInfo], Columns],
    make: Callable[[TensorInfo], Sequence[torch.Tensor]],
    threads: int = 1,
    progress: Callable[[str], None] = lambda name: None,
) -> Kept:
    """The tables of all tensors; the array `c` of the i-th tensor is `.tensor(f"{i}.{c}")`.

    They depend on the contents of `models` (sha256 each, in an order that matters) and on the tensors' names and
    shapes; `make` gives one tensor's arrays, in the order of `columns`, and is called for some tensors at once where
    there are threads. Names of files hold numbers, as a tensor's name may be as long as the format lets it. Raises
    CacheError where the disk has no room, or does not let us write, or gives nothing back.
    """
    said = [VERSION, kind, *models, [(t.name, t.shape) for t in tensors]]
    home = cache(kind) / hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]
    specs = [shards.Spec(f"{i}.{c}", shape, dtype) for i, t in enumerate(tensors) for c, shape, dtype in columns(t)]

    def arrays() -> Iterator[tuple[str, torch.Tensor]]:
        names = iter(specs)
        for info, found in zip(tensors, _ahead(make, tensors, threads), strict=True):
            progress(info.name)
            for array in found:
                yield next(names).name, array

    def write(partial: Path) -> None:
        shards.write(partial, specs, arrays())

    made_once(home, f"{kind} of task vectors", int(1.05 * sum(s.bytes for s in specs)), write)
    return Kept.open(home, f"{kind} of task vectors")


def _ahead(function: Callable[[T], R], over: Iterable[T], threads: int) -> Iterator[R]:
    """In the order of `over`, some at once; no more results wait than there are threads."""
    if threads <= 1:
        yield from map(function, over)
        return
    with ThreadPoolExecutor(threads, "facts") as pool:
        waiting: deque[Future[R]] = deque()
        for one in over:
            waiting.append(pool.submit(function, one))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
