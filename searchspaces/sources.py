"""Where do one merged tensor's values come from? Base and experts, full or of low rank, merged and differentiated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces import kernel, reference
from searchspaces.lowrank import Block, LowRank, differences, inner_products
from searchspaces.pool import Pool


@dataclass(frozen=True, eq=False)
class Sources:
    """Base and experts of one tensor, flat and contiguous; an expert that leaves it as it is, is neither full nor low.

    `full_of` and `low_of` say which of the pool's K experts each of `full` and `low` is.
    """

    base: torch.Tensor
    count: int  # K
    full: tuple[torch.Tensor, ...]
    full_of: NDArray[np.int64]
    low: tuple[LowRank, ...]
    low_of: NDArray[np.int64]
    addresses: NDArray[np.int64]  # of `full`
    codes: NDArray[np.int64]  # their dtypes in the kernel's words
    fast: bool  # the kernel can read base and full experts

    @classmethod
    def of(cls, pool: Pool, name: str) -> Sources:
        base = pool.base.tensor(name).reshape(-1)
        found = [expert.source(name) for expert in pool.experts.values()]
        full = {k: s.reshape(-1) for k, s in enumerate(found) if isinstance(s, torch.Tensor)}
        low = {k: s for k, s in enumerate(found) if isinstance(s, LowRank)}
        return cls(
            base,
            len(found),
            tuple(full.values()),
            np.array(list(full), dtype=np.int64),
            tuple(low.values()),
            np.array(list(low), dtype=np.int64),
            np.array([e.data_ptr() for e in full.values()], dtype=np.int64),
            np.array([kernel.CODES.get(e.dtype, -1) for e in full.values()], dtype=np.int64),
            all(_readable(t) for t in (base, *full.values())),
        )

    def merge(self, out: torch.Tensor, base_scale: float, scales: NDArray[np.float32], start: int, stop: int) -> bool:
        """Write merged elements `start` to `stop` to `out`, flat; says whether they are finite. `scales` is `(K,)`.

        Sums are fp32: base and full experts in their order, then the sum over those of low rank. An expert whose scale
        is exactly 0 is not read.
        """
        full = scales[self.full_of]
        parts = [(p, float(s)) for p, s in zip(self.low, scales[self.low_of], strict=True) if s != 0]
        blocks = differences([parts], start, stop, out.device) if parts else [(start, stop, [])]
        if self.fast and _readable(out):
            return self._by_kernel(out, base_scale, full, blocks, 1 if parts else 0)
        return self._by_reference(out, base_scale, full, blocks)

    def _by_reference(
        self, out: torch.Tensor, base_scale: float, scales: NDArray[np.float32], blocks: Iterable[Block]
    ) -> bool:
        finite = True
        for start, stop, found in blocks:
            cut = slice(start, stop)
            experts, added = [e[cut] for e in self.full], found[0] if found else None
            finite &= reference.merge(out[cut], self.base[cut], experts, base_scale, scales.tolist(), added)
        return finite

    def _by_kernel(
        self, out: torch.Tensor, base_scale: float, scales: NDArray[np.float32], blocks: Iterable[Block], count: int
    ) -> bool:
        """`count` differences in every block."""
        active = scales != 0
        addresses, codes = _with_differences(self.addresses[active], self.codes[active], count)
        weights = np.append(scales[active], np.ones(count, dtype=np.float32))
        finite = True
        for start, stop, found in blocks:
            _place(addresses, found, start)
            finite &= kernel.merge(
                self.base.data_ptr(), kernel.CODES[self.base.dtype], addresses, codes,
                np.float32(base_scale), weights, out.data_ptr(), kernel.CODES[out.dtype], start, stop,
            )  # fmt: skip
        return bool(finite)

    def slices(self, size: int) -> Iterator[tuple[int, int]]:
        """Ranges of about `size` elements for `products`: whole rows, where an expert is of low rank."""
        row = self.low[0].right.shape[1] if self.low else 1
        step = max(1, size // row) * row
        return ((at, min(at + step, len(self.base))) for at in range(0, len(self.base), step))

    def products(self, grad: torch.Tensor, start: int, stop: int) -> NDArray[np.float64]:
        """`<G, theta_k - theta_0>` over one of `slices` for each expert, then `<G, theta_0>`, `<G, G>`."""
        part = np.empty(len(self.full) + 2)
        if self.fast and _readable(grad):
            kernel.products(
                self.base.data_ptr(), kernel.CODES[self.base.dtype], self.addresses, self.codes, grad.data_ptr(),
                kernel.CODES[grad.dtype], start, stop, part,
            )  # fmt: skip
        else:
            part[:] = reference.products(grad[start:stop], self.base[start:stop], [e[start:stop] for e in self.full])
        out = np.zeros(self.count + 2)
        out[self.full_of], out[-2:] = part[:-2], part[-2:]
        if self.low:
            out[self.low_of] = inner_products(self.low, grad, start, stop)
        return out

    def norms(self) -> NDArray[np.float64]:
        """`|theta_k|`, `(K,)`."""
        out = np.zeros(self.count)
        for k, expert in zip(self.full_of, self.full, strict=True):
            out[k] = reference.norm(expert)
        for k, low in zip(self.low_of, self.low, strict=True):
            out[k] = low.norm(self.base)
        same = np.setdiff1d(np.arange(self.count), np.concatenate([self.full_of, self.low_of]))
        if len(same):
            out[same] = reference.norm(self.base)
        return out

    def sizes(self) -> NDArray[np.float64]:
        """`sum |theta_k - theta_0|` for each expert, `(K,)`."""
        out = np.zeros(self.count)
        for k, expert in zip(self.full_of, self.full, strict=True):
            out[k] = reference.size(expert, self.base)
        for k, low in zip(self.low_of, self.low, strict=True):
            out[k] = low.size()
        return out


def _with_differences(
    addresses: NDArray[np.int64], codes: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Experts for the kernel, and behind them room for differences, whose addresses change from block to block."""
    more = np.full(count, kernel.DIFFERENCE, dtype=np.int64)
    return np.append(addresses, np.zeros(count, dtype=np.int64)), np.append(codes, more)


def _place(addresses: NDArray[np.int64], found: Sequence[torch.Tensor], start: int) -> None:
    """Put differences behind the experts: the first element of each is what the kernel knows as `start`."""
    for k, difference in enumerate(found, len(addresses) - len(found)):
        addresses[k] = difference.data_ptr() - 4 * start


def _readable(tensor: torch.Tensor) -> bool:
    return tensor.dtype in kernel.CODES and tensor.device.type == "cpu"
