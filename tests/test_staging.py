"""Do buffers that are filled while others travel ever overtake each other? On a simulated device, in every order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from searchspaces.weights import staging
from searchspaces.weights.staging import Staging, room


class Device:
    """CUDA's rules for streams and events: what a stream was given runs in order, any stream may run at any time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.compute = Stream(self)
        self.streams = [self.compute]
        self.current = self.compute

    def step(self) -> bool:
        """Run the first task of a stream whose turn may have come; whether there was one."""
        ready = [s for s in self.streams if s.tasks and s.tasks[0][0]()]
        if ready:
            self.random.choice(ready).tasks.pop(0)[1]()
        return bool(ready)

    def dawdle(self) -> None:
        """The device gets as far as it likes while the host goes on."""
        for _ in range(self.random.choice([0, 0, 1, 5])):
            self.step()


class Stream:
    def __init__(self, device: Device) -> None:
        self.device = device
        self.tasks: list[tuple[Callable[[], bool], Callable[[], object]]] = []

    def do(self, task: Callable[[], object], when: Callable[[], bool] = lambda: True) -> None:
        self.tasks.append((when, task))
        self.device.dawdle()

    def wait_event(self, event: Event) -> None:
        recorded = event.recorded  # the latest record at the time of the call, as CUDA has it
        self.do(lambda: None, lambda: event.reached >= recorded)

    def wait_stream(self, other: Stream) -> None:
        event = Event()
        event.record(other)
        self.wait_event(event)


class Event:
    def __init__(self) -> None:
        self.recorded = self.reached = 0
        self.device: Device | None = None

    def record(self, stream: Stream) -> None:
        self.recorded, self.device = self.recorded + 1, stream.device
        number = self.recorded
        stream.do(lambda: setattr(self, "reached", number))

    def synchronize(self) -> None:
        while self.reached < self.recorded:
            assert self.device is not None and self.device.step(), "the host waits for ever"


class Buffer:
    """Memory of the device: what is asked of it happens later."""

    def __init__(self, device: Device, tensor: torch.Tensor) -> None:
        self.device, self.tensor = device, tensor

    def __getitem__(self, cut: slice) -> Buffer:
        return Buffer(self.device, self.tensor[cut])

    def view(self, dtype: torch.dtype) -> Buffer:
        return Buffer(self.device, self.tensor.view(dtype))

    def copy_(self, other: torch.Tensor, non_blocking: bool = False) -> None:
        assert non_blocking, "a copy that the host waits for"
        self.device.current.do(lambda: torch.Tensor.copy_(self.tensor, other).numel())


@contextmanager
def simulated(seed: int, size: int) -> Iterator[tuple[Device, Staging]]:
    device = Device(seed)

    def stream(_: Any = None) -> Stream:
        device.streams.append(Stream(device))
        return device.streams[-1]

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        device.current = stream
        yield
        device.current = device.compute

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "Stream", stream)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "stream", on)
        patch.setattr(torch.cuda, "current_stream", lambda _: device.current)
        made = Staging(torch.device("cpu"), size)
        made._order = staging._Streamed(torch.device("cuda:0"))
        made._there = [Buffer(device, t) for t in made._there]  # type: ignore[misc]
        yield device, made


def loads_of(lengths: list[int], dtypes: list[torch.dtype]) -> list[list[torch.Tensor]]:
    return [[torch.randn(n).to(d) for d in dtypes] for n in lengths]


@settings(max_examples=150)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=12),
    left=st.integers(0, 12),
    seed=st.integers(0, 10**6),
)
def test_what_is_worked_on_is_what_was_sent_whatever_runs_when(lengths: list[int], left: int, seed: int) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float64]
    with simulated(seed, room([4, 2, 8], 300)) as (device, made):
        wanted, found = [], []

        def work(loads: list[list[torch.Tensor]], stop: int) -> None:
            for number, (load, there) in enumerate(zip(loads, made.through(loads), strict=False)):
                wanted.append(load)
                device.compute.do(lambda there=there: found.append([b.tensor.clone() for b in there]))
                if number == stop:
                    return

        work(loads_of(lengths, dtypes), left)  # a pass that is left half way,
        work(loads_of(lengths, dtypes), -1)  # and a whole one right behind it
        while device.step():
            pass
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("threads", [1, 3])
def test_without_streams_the_same_code_copies_at_once(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("searchspaces.weights.staging.PIECE", 100)
    loads = loads_of([1, 77, 200, 3], [torch.float16, torch.float32])
    made = Staging(torch.device("cpu"), room([2, 4], 200), threads)
    for load, there in zip(loads, made.through(loads), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(load, there, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_what_arrives_is_what_was_sent() -> None:
    device = torch.device("cuda:0")
    loads = loads_of([1 << 20, 5, 1 << 18] * 8, [torch.bfloat16, torch.float32])
    made = Staging(device, room([2, 4], 1 << 20), 2)
    sums = [[t.double().sum() for t in there] for there in made.through(loads)]
    for ours, load in zip(sums, loads, strict=True):
        for a, b in zip(ours, load, strict=True):
            torch.testing.assert_close(a.cpu(), b.double().sum())
