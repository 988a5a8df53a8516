"""How fast do memory, disk and device move bytes here? Measured in a moment, on the very files that will be read."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

SECONDS = 0.2  # of memory traffic
SAMPLE = 256_000_000  # bytes of the files that are read, at most
READING = 1.0  # seconds of reading, at most
BLOCK = 8_000_000  # bytes read at a time
PAGE = 4096


def memory(threads: int = 1) -> float:
    """Bytes a second that `threads` threads read and write together, in `a = b + c` on arrays larger than a cache.

    The arrays take 200 MB for the moment.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b, c = (torch.zeros(1 << 24) for _ in range(3))
        return _rate(lambda: torch.add(b, c, out=a), 3 * a.nbytes)
    finally:
        torch.set_num_threads(before)


def device(where: torch.device) -> float:
    """The same of an accelerator's own memory."""
    a, b, c = (torch.zeros(1 << 26, device=where) for _ in range(3))
    return _rate(lambda: torch.add(b, c, out=a), 3 * a.nbytes, where)


def to_device(where: torch.device) -> float:
    """Bytes a second from pinned memory of the host to an accelerator."""
    here = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=where.type == "cuda")
    there = torch.empty(1 << 28, dtype=torch.uint8, device=where)
    return _rate(lambda: there.copy_(here, non_blocking=True), here.nbytes, where)


def _rate(move: Callable[[], object], size: int, where: torch.device | None = None) -> float:
    """Bytes a second: the median of a few times, after one that touches the pages. Other work here is part of it."""

    def once() -> float:
        start = time.perf_counter()
        move()
        if where is not None and where.type == "cuda":
            torch.cuda.synchronize(where)
        return time.perf_counter() - start

    once()
    times = [once()]
    while sum(times) < SECONDS and len(times) < 1000:
        times.append(once())
    return size / max(statistics.median(times), 1e-9)


@dataclass(frozen=True)
class Reads:
    """How a sample of some files was read.

    `cached` is the share of it that the page cache had before; the rates are bytes a second, None where they could not
    be measured: `disk` where the system did not let go of the pages, or the files are `sparse`.
    """

    sample: int  # bytes
    cached: float | None  # None where the system does not tell
    disk: float | None
    cache: float | None
    sparse: bool


def files(paths: Sequence[Path]) -> Reads:
    """Read a sample spread over files twice: from the disk, once the cache has let go of it, and from the cache.

    Raises OSError where a file cannot be read.
    """
    sizes = {path: path.stat() for path in paths}
    sparse = any(s.st_blocks * 512 < 0.9 * s.st_size for s in sizes.values())
    blocks = _spread([(path, s.st_size) for path, s in sizes.items()])
    handles = {path: os.open(path, os.O_RDONLY) for path in {path for path, _, _ in blocks}}
    try:
        cached = _cached(handles, blocks)
        for path, start, size in blocks:
            with suppress(OSError, AttributeError):
                os.posix_fadvise(handles[path], start, size, os.POSIX_FADV_DONTNEED)
        left = _cached(handles, blocks)
        first, count = _read(handles, blocks)
        again, _ = _read(handles, blocks[:count])
    finally:
        for handle in handles.values():
            os.close(handle)
    cold = left is not None and left < 0.1 and not sparse
    return Reads(sum(size for _, _, size in blocks[:count]), cached, first if cold else None, again, sparse)


def _spread(files: Sequence[tuple[Path, int]]) -> list[tuple[Path, int, int]]:
    """Blocks of the sample: file, first byte, size; evenly over all files."""
    whole = [(path, at, min(BLOCK, size - at)) for path, size in files for at in range(0, size, BLOCK)]
    step = max(1, -(-len(whole) * BLOCK // SAMPLE))
    return whole[::step]


def _cached(handles: dict[Path, int], blocks: Sequence[tuple[Path, int, int]]) -> float | None:
    """The share of pages, a few of each block, that can be read without waiting for a disk."""
    flag = getattr(os, "RWF_NOWAIT", None)
    if flag is None:
        return None
    found, page = [], bytearray(PAGE)
    for path, start, size in blocks:
        # from the end: what is asked for in order the system may read ahead
        for at in range(start + max(size - PAGE, 0), start - 1, -BLOCK // 4):
            try:
                found.append(os.preadv(handles[path], [page], at, flag) > 0)
            except BlockingIOError:
                found.append(False)
            except OSError:  # a file system that cannot say
                return None
    return sum(found) / len(found) if found else None


def _read(handles: dict[Path, int], blocks: Sequence[tuple[Path, int, int]]) -> tuple[float | None, int]:
    """Bytes a second over as many blocks as time allows, and how many."""
    buffer, total, count = bytearray(BLOCK), 0, 0
    start = time.perf_counter()
    for path, at, size in blocks:
        with memoryview(buffer) as view:
            total += os.preadv(handles[path], [view[:size]], at)
        count += 1
        if time.perf_counter() - start > READING:
            break
    passed = time.perf_counter() - start
    return (total / passed if total and passed else None), count
