"""How are weights merged, and differentiated, on an accelerator? From a pool that lives there, or that streams by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces.adapters.lowrank import LowRank
from searchspaces.composition import Composition
from searchspaces.errors import PoolError
from searchspaces.weights import composed_reference
from searchspaces.weights.compositions import Compositions
from searchspaces.weights.gradient import Slope
from searchspaces.weights.merger import Merged
from searchspaces.weights.packed import Packed
from searchspaces.weights.sources import Sources, Taken
from searchspaces.weights.staging import Staging, room

Hold = Literal["auto", "device", "stream"]

CHUNKS = {"cpu": 1 << 18, "mps": 1 << 22}
CHUNK = 1 << 24
"""Elements merged at a time: enough that starting a kernel costs nothing beside running it, three fp32 copies of which
are small beside a model. On the CPU they stay in cache."""

STAGED = 1 << 26  # bytes of a staging buffer: milliseconds on a bus, so that its start costs nothing
MARGIN = 0.95  # the share of free device memory that is counted on: allocators keep some


@dataclass(frozen=True)
class Limit:
    """How much of a device's memory a worker may count on.

    `share` is the worker's of the whole device, `spare` the bytes that it needs there beside its model and the pool.
    """

    share: float = 1.0
    spare: int = 0

    def room(self, device: torch.device) -> int | None:
        """Bytes that are left for a pool, now that the model is loaded; None where the device does not say."""
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            free = min(free, int(total * self.share) - torch.cuda.memory_reserved(device))
        elif device.type == "mps":
            free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        else:
            return None
        return self.of(free)

    def of(self, free: int) -> int:
        """Bytes that are for a pool where `free` are free beside the model."""
        return int(MARGIN * free) - self.spare


@dataclass(frozen=True, eq=False)
class _Part:
    """A chunk of one merged tensor."""

    number: int  # of the tensor
    cut: slice  # its flat elements
    rows: slice  # the same in rows, of a tensor with task vectors of low rank


class Accelerated:
    """Merges on the device that its tensors live on, with few operations on large chunks, and waits once a pass.

    Base and full experts live there too in their stored dtypes, or are streamed there through pinned memory at every
    pass; factors of low rank are small, and always live there. Sums are fp32, as the kernels', but multiply and add
    fuse where the device does so. On the CPU it is slower than the kernels, and there for tests.
    """

    def __init__(
        self, device: torch.device, tensors: Sequence[Merged], hold: Hold, limit: Limit | None = None, threads: int = 1
    ) -> None:
        """`hold` says where the pool is to be; auto decides by the device's free memory. `threads` copy to it.

        Nothing is copied before something is asked: who only wants an expert needs no pool there.
        """
        self._device, self._tensors, self._threads = device, tensors, threads
        self._wanted, self._limit, self._ready = hold, limit or Limit(), False
        self._number = {t.name: n for n, t in enumerate(tensors)}
        self._full = [[t.sources.base, *t.sources.full] for t in tensors]
        self.bytes = sum(s.nbytes for full in self._full for s in full)

    def write(self, compositions: Compositions) -> list[str]:
        self._prepare()
        found = [compositions.at(t.name) for t in self._tensors]
        used = [_used(t.sources, what) for t, what in zip(self._tensors, found, strict=True)]
        parts = list(self._parts(range(len(self._tensors))))
        extremes = torch.zeros((len(parts), 2), device=self._device)
        loads = self._loads(parts, [[0, *(1 + u)] for u in used])
        for i, (part, (base, *experts)) in enumerate(zip(parts, loads, strict=True)):
            out, what = self._tensors[part.number].out[part.cut], found[part.number]
            full = dict(zip(used[part.number].tolist(), experts, strict=True))
            if isinstance(what, Packed):
                taken = self._taken(part, full, what.active)
                composed_reference.merge(out, base, taken, what, part.cut.start)
            else:
                self._merge(out, base, full, what, part)
            extremes[i] = torch.stack(torch.aminmax(out))  # NaN, where there is one, is both
        finite = torch.isfinite(extremes).all(1).tolist()  # the one place where we wait for the device
        return [self._tensors[part.number].name for part, good in zip(parts, finite, strict=True) if not good]

    def products(self, slopes: Sequence[Slope], compositions: Compositions | None) -> NDArray[np.float64]:
        self._prepare()
        count = self._tensors[0].sources.count
        rows = {self._number[s.name]: row for row, s in enumerate(slopes) if s.parameter.grad is not None}
        found = {n: compositions.at(self._tensors[n].name) if compositions else None for n in rows}
        parts = list(self._parts(rows))
        precise = torch.float32 if self._device.type == "mps" else torch.float64
        sums = torch.zeros((len(parts), count + 2), dtype=precise, device=self._device)
        loads = self._loads(parts, [range(len(full)) for full in self._full])
        grad, number = torch.empty(0), -1
        for into, part, (base, *experts) in zip(sums, parts, loads, strict=True):
            if part.number != number:  # one at a time: a gradient that is joined from parts is a copy
                number = part.number
                grad = slopes[rows[number]].parameter.grad.reshape(-1)  # type: ignore[union-attr]
            what = found[number]
            if isinstance(what, Packed):
                taken = self._taken(part, dict(enumerate(experts)), np.arange(count))
                products = composed_reference.products(grad[part.cut], base, taken, what, part.cut.start)
                into.copy_(products)
            else:
                self._multiply(into, grad[part.cut], base, experts, part)
                into[:-2] *= 1.0 if what is None else what.scale
        out = np.zeros((len(slopes), count + 2))
        for part, found_there in zip(parts, sums.cpu().double().numpy(), strict=True):
            out[rows[part.number]] += found_there
        return out

    def fits(self) -> bool:
        if self._ready or self._wanted == "stream":
            return True
        there = self._limit.room(self._device)
        return there is None or self.bytes <= there

    def describe(self) -> str:
        """Brings the pool to the device first, if that is not done yet. Raises PoolError as `write` does."""
        self._prepare()
        size = f"{self.bytes / 1e9:.2f} GB" if self.bytes >= 1e8 else f"{self.bytes / 1e6:.1f} MB"
        return f"{size} on {self._device}" if self.held else f"{size} streamed to {self._device} for every candidate"

    @torch.no_grad()
    def _prepare(self) -> None:
        """Once. Raises PoolError where the pool is to live on the device and has no room there."""
        if self._ready:
            return
        self._low = [[_moved(low, self._device) for low in t.sources.low] for t in self._tensors]
        self.held = self._wanted != "stream" and self._hold(self._wanted, self._limit)
        self._steps = [self._step(n) for n in range(len(self._tensors))]
        longest = max((min(step, len(full[0])) for step, full in zip(self._steps, self._full, strict=True)), default=0)
        self._scratch = torch.empty((3, longest), device=self._device)
        self._staging = None if self.held else self._staged(self._steps)
        self._ready = True

    def _merge(
        self, out: torch.Tensor, base: torch.Tensor, full: Mapping[int, torch.Tensor], plain: Composition, part: _Part
    ) -> None:
        """Write a chunk of a plain composition to `out`."""
        sources, (base_scale, scales) = self._tensors[part.number].sources, plain.sums
        wide, total, apart = self._scratch[:, : len(out)]
        wide = _wide(base, wide)
        torch.mul(wide, base_scale, out=total)
        for i, expert in full.items():
            # fp32, whatever the expert's dtype
            found = _wide(expert, apart) if sources.differ[i] else torch.sub(expert, wide, out=apart)
            total.add_(found, alpha=float(scales[sources.full_of[i]]))
        by = scales[sources.low_of].tolist()
        if low := [(p, scale) for p, scale in zip(self._low[part.number], by, strict=True) if scale != 0]:
            left = torch.cat([p.left[part.rows].float() * (p.scale * scale) for p, scale in low], 1)
            right = torch.cat([p.right.float() for p, _ in low])
            total.view(len(left), -1).addmm_(left, right)
        out.copy_(total)

    def _taken(self, part: _Part, full: Mapping[int, torch.Tensor], wanted: NDArray[np.int64]) -> list[Taken]:
        """A chunk of experts as the reference takes them; task vectors of low rank are made."""
        sources = self._tensors[part.number].sources
        lows = {
            k: ((low.left[part.rows].float() * low.scale) @ low.right.float()).view(-1)
            for k, low in zip(sources.low_of.tolist(), self._low[part.number], strict=True)
            if k in wanted
        }
        return sources.taken(full, lows)

    def _multiply(
        self, into: torch.Tensor, grad: torch.Tensor, base: torch.Tensor, experts: Sequence[torch.Tensor], part: _Part
    ) -> None:
        """Write the inner products of a chunk to `into`, `(K + 2,)`."""
        wide, slope, product = self._scratch[:, : len(grad)]
        wide, slope = _wide(base, wide), _wide(grad, slope)
        sources = self._tensors[part.number].sources
        for k, expert, differs in zip(sources.full_of.tolist(), experts, sources.differ, strict=True):
            # before the product: a difference of products would cancel
            found = product.copy_(expert) if differs else torch.sub(expert, wide, out=product)
            into[k] = found.mul_(slope).sum(dtype=into.dtype)
        for k, low in zip(sources.low_of.tolist(), self._low[part.number], strict=True):
            left = low.left[part.rows].float()
            inner = left.T @ slope.view(len(left), -1)  # (r, n): the task vector itself is never made
            into[k] = (inner * low.right.float()).sum(dtype=into.dtype) * low.scale
        into[-2] = torch.mul(slope, wide, out=product).sum(dtype=into.dtype)
        into[-1] = torch.mul(slope, slope, out=product).sum(dtype=into.dtype)

    def _parts(self, numbers: Sequence[int] | range | dict[int, int]) -> Iterator[_Part]:
        for n in numbers:
            length, step = len(self._full[n][0]), self._steps[n]
            row = self._low[n][0].right.shape[1] if self._low[n] else 1
            for at in range(0, length, step):
                stop = min(at + step, length)
                yield _Part(n, slice(at, stop), slice(at // row, stop // row))

    def _loads(self, parts: Sequence[_Part], wanted: Sequence[Sequence[int]]) -> Iterator[list[torch.Tensor]]:
        """Of each chunk, base and those experts that are wanted of its tensor, on the device."""
        loads = [[self._full[p.number][k][p.cut] for k in wanted[p.number]] for p in parts]
        return iter(loads) if self._staging is None else self._staging.through(loads)

    def _step(self, number: int) -> int:
        """Elements of a tensor that are merged at a time: whole rows where a task vector is of low rank."""
        step = CHUNKS.get(self._device.type, CHUNK)
        if not self.held:
            step = max(1, min(step, STAGED // sum(t.element_size() for t in self._full[number])))
        if self._low[number]:
            row = self._low[number][0].right.shape[1]
            step = max(1, step // row) * row
        return step

    def _staged(self, steps: Sequence[int]) -> Staging:
        sizes = [
            room([t.element_size() for t in full], min(step, len(full[0])))
            for full, step in zip(self._full, steps, strict=True)
        ]
        return Staging(self._device, max(sizes, default=0), self._threads)

    def _hold(self, hold: Hold, limit: Limit) -> bool:
        """Bring the pool to the device if that is wanted and there is room; whether it is there."""
        there = limit.room(self._device)
        if hold == "auto" and (there is None or self.bytes > there):
            return False
        if there is not None and self.bytes > there:
            raise PoolError(
                f"executor.pool: device needs {self.bytes / 1e9:.2f} GB on {self._device} for base and experts, "
                f"{max(there, 0) / 1e9:.2f} GB are left there beside the model; say pool: stream, or give each worker "
                "more of the device"
            )
        try:
            self._full = self._brought()
        except torch.OutOfMemoryError as error:
            if hold == "auto":  # somebody else came first
                return False
            raise PoolError(
                f"executor.pool: device: {self._device} has no room left for {self.bytes / 1e9:.2f} GB of base and "
                "experts; say pool: stream"
            ) from error
        return True

    def _brought(self) -> list[list[torch.Tensor]]:
        """Copies of base and full experts on the device."""
        pairs = [
            (source, torch.empty(len(source), dtype=source.dtype, device=self._device))
            for full in self._full
            for source in full
        ]
        cuts = [
            (source[at : at + step], to[at : at + step])
            for source, to in pairs
            for step in [STAGED // source.element_size()]
            for at in range(0, len(source), step)
        ]
        size = max((room([s.element_size()], len(s)) for s, _ in cuts), default=0)
        staging = Staging(self._device, size, self._threads)
        for (_, to), (found,) in zip(cuts, staging.through([[s] for s, _ in cuts]), strict=True):
            to.copy_(found)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # before the buffers' memory is given back
        copies = iter([to for _, to in pairs])
        return [[next(copies) for _ in full] for full in self._full]


def _used(sources: Sources, what: Composition | Packed) -> NDArray[np.int64]:
    """Which of the full experts a merge reads, by place among these."""
    if isinstance(what, Packed):
        return np.flatnonzero(np.isin(sources.full_of, what.active))
    return np.flatnonzero(what.sums[1][sources.full_of])


def _wide(tensor: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    """A tensor in fp32: itself, or copied to `scratch`."""
    return tensor if tensor.dtype == torch.float32 else scratch.copy_(tensor)


def _moved(low: LowRank, device: torch.device) -> LowRank:
    return LowRank(low.left.to(device), low.right.to(device), low.scale)
