"""How do mapped pages reach a device? Through two pinned buffers: one is filled while the other travels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, Protocol

import torch

ALIGNED = 256  # bytes: where tensors begin in a buffer, so that any dtype and any wide load fits
PIECE = 1 << 22  # bytes that one thread copies at a time


class _Order(Protocol):
    """What keeps the two sides of two buffers from overtaking each other. `i` is a buffer, 0 or 1."""

    def begin(self) -> None:
        """A pass starts: the device is done with whatever was sent before."""
        ...

    def writable(self, i: int) -> None:
        """Wait until the host's side of a buffer has been read."""
        ...

    def send(self, i: int, here: torch.Tensor, there: torch.Tensor) -> None:
        """Copy; what is done with `there` afterwards comes after the copy."""
        ...

    def used(self, i: int) -> None:
        """The device's side of a buffer may be overwritten once all that was asked of it until now is done."""
        ...


class _AtOnce:
    """On a device whose copies we do not overlap: everything happens in the order in which it is said."""

    def begin(self) -> None: ...

    def writable(self, i: int) -> None: ...

    def send(self, i: int, here: torch.Tensor, there: torch.Tensor) -> None:
        there.copy_(here)

    def used(self, i: int) -> None: ...


class _Streamed:
    """On CUDA: copies have a stream of their own, and events say what waits for what."""

    def __init__(self, device: torch.device) -> None:
        cuda: Any = torch.cuda
        self._device = device
        self._copies = cuda.Stream(device)
        self._sent, self._done = ([cuda.Event(), cuda.Event()] for _ in range(2))

    def begin(self) -> None:
        # memory of the buffers may have served others on the stream that computes; a pass may have been left half way
        self._copies.wait_stream(torch.cuda.current_stream(self._device))

    def writable(self, i: int) -> None:
        self._sent[i].synchronize()  # at once where nothing was sent yet

    def send(self, i: int, here: torch.Tensor, there: torch.Tensor) -> None:
        self._copies.wait_event(self._done[i])
        with torch.cuda.stream(self._copies):
            there.copy_(here, non_blocking=True)
        self._sent[i].record(self._copies)
        torch.cuda.current_stream(self._device).wait_event(self._sent[i])

    def used(self, i: int) -> None:
        self._done[i].record(torch.cuda.current_stream(self._device))


class Staging:
    """Two buffers of the host and two of a device. The host's are pinned where the device is CUDA."""

    def __init__(self, device: torch.device, size: int, threads: int = 1) -> None:
        """`size`: bytes of each buffer, see `room`. `threads` copy pages into them.

        Raises what torch raises where memory cannot be had, or pinned.
        """
        pinned = device.type == "cuda"
        self._order: _Order = _Streamed(device) if pinned else _AtOnce()
        self._here = [torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        self._there = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        self._threads = threads

    def through(self, loads: Sequence[Sequence[torch.Tensor]]) -> Iterator[list[torch.Tensor]]:
        """Each load's tensors, 1-D on the CPU, as tensors on the device, in order; valid until the next is asked for.

        Nothing waits for the device but the filling of a buffer that is still on its way: while what was yielded is
        worked on, the next load is copied to the other buffer, and travels. Callers work on the device's current
        stream.
        """
        self._order.begin()
        with ThreadPoolExecutor(self._threads, "stage") if self._threads > 1 else nullcontext() as pool:
            for number, tensors in enumerate(loads):
                i = number % 2
                self._order.writable(i)
                starts = _starts(tensors)
                views = [t.view(torch.uint8) for t in tensors]
                pieces = [
                    (self._here[i][at + a : at + a + PIECE][: len(v) - a], v[a : a + PIECE])
                    for at, v in zip(starts, views, strict=False)
                    for a in range(0, len(v), PIECE)
                ]
                for _ in map(_copy, pieces) if pool is None else pool.map(_copy, pieces):
                    pass
                self._order.send(i, self._here[i][: starts[-1]], self._there[i][: starts[-1]])
                yield [
                    self._there[i][at : at + len(v)].view(t.dtype)
                    for at, v, t in zip(starts, views, tensors, strict=False)
                ]
                self._order.used(i)


def room(itemsizes: Sequence[int], count: int) -> int:
    """Bytes that a load of `count` elements of each of several tensors takes in a buffer."""
    return sum(-(-size * count // ALIGNED) * ALIGNED for size in itemsizes)


def _copy(piece: tuple[torch.Tensor, torch.Tensor]) -> None:
    piece[0].copy_(piece[1])  # torch lets go of the interpreter's lock meanwhile


def _starts(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Where each tensor begins in a buffer, and where the last one ends."""
    found = [0]
    for tensor in tensors:
        found.append(found[-1] + room([tensor.element_size()], len(tensor)))
    return found
