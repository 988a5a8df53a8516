"""Which tables of a pool's tensors are kept? One file for each kind and set of models, made once on a host, mapped."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from searchspaces.cache.once import cache, made_once
from searchspaces.models import shards
from searchspaces.models.checkpoint import Checkpoint
from searchspaces.models.headers import TensorInfo, read_header

VERSION = 2
"""Part of every folder's name: a change of what tables hold, or of how it is computed, is a new one."""

FILE = "table.safetensors"

T = TypeVar("T")
R = TypeVar("R")

Columns = Sequence[tuple[str, tuple[int, ...], torch.dtype]]
"""Name, shape and dtype of each array of one tensor's table."""


def kept(
    kind: str,
    models: Sequence[str],
    tensors: Sequence[TensorInfo],
    columns: Callable[[TensorInfo], Columns],
    make: Callable[[TensorInfo], Sequence[torch.Tensor]],
    threads: int = 1,
    progress: Callable[[str], None] = lambda name: None,
) -> Checkpoint:
    """The tables of all tensors; the array `c` of the i-th tensor is `.tensor(f"{i}.{c}")`.

    They depend on the contents of `models` (sha256 each, in an order that matters) and on the tensors' names and
    shapes; `make` gives one tensor's arrays, in the order of `columns`, and is called for some tensors at once where
    there are threads. Names of files hold numbers, as a tensor's name may be as long as the format lets it. Raises
    PoolError where the disk has no room, or does not let us write.
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
        shards.write_file(partial / FILE, specs, arrays())

    made_once(home, f"{kind} of task vectors", int(1.05 * sum(s.bytes for s in specs)), write)
    found = read_header(home / FILE, kind)
    return Checkpoint(
        f"{kind} of task vectors (safe to remove)",
        home,
        {},
        {n: info for n, (info, _) in found.items()},
        {n: place for n, (_, place) in found.items()},
    )


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
