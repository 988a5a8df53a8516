"""Where do one merged tensor's values come from? Base and experts, full or of low rank, merged and differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces import kernel, reference
from searchspaces.lowrank import LowRank, Scaled, differences
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
        if not parts:
            return self._merge(out, base_scale, full, start, stop, None)
        finite = True
        for first, last, (difference,) in differences([parts], start, stop, out.device):
            finite = self._merge(out, base_scale, full, first, last, difference) and finite
        return finite

    def _merge(
        self,
        out: torch.Tensor,
        base_scale: float,
        scales: NDArray[np.float32],
        start: int,
        stop: int,
        difference: torch.Tensor | None,
    ) -> bool:
        if not (self.fast and _readable(out)):
            part = slice(start, stop)
            experts = [e[part] for e in self.full]
            return reference.merge(out[part], self.base[part], experts, base_scale, scales.tolist(), difference)
        active = scales != 0
        addresses, codes, scales = self.addresses[active], self.codes[active], scales[active]
        if difference is not None:
            addresses, codes = _and_differences(addresses, codes, [difference], start)
            scales = np.append(scales, np.float32(1))
        return bool(
            kernel.merge(
                self.base.data_ptr(), kernel.CODES[self.base.dtype], addresses, codes, np.float32(base_scale), scales,
                out.data_ptr(), kernel.CODES[out.dtype], start, stop,
            )
        )  # fmt: skip

    def products(self, grad: torch.Tensor, start: int, stop: int) -> NDArray[np.float64]:
        """`<G, theta_k - theta_0>` over elements `start` to `stop` for each expert, then `<G, theta_0>`, `<G, G>`."""
        out = np.zeros(self.count + 2)
        columns = np.concatenate([self.full_of, self.low_of, [self.count, self.count + 1]]).astype(np.int64)
        if not self.low:
            out[columns] = self._products(grad, start, stop, [])
            return out
        for first, last, found in differences(self._alone(), start, stop, grad.device):
            out[columns] += self._products(grad, first, last, found)
        return out

    def _products(
        self, grad: torch.Tensor, start: int, stop: int, found: Sequence[torch.Tensor]
    ) -> NDArray[np.float64]:
        if not (self.fast and _readable(grad)):
            cut = slice(start, stop)
            return np.array(reference.products(grad[cut], self.base[cut], [e[cut] for e in self.full], found))
        out = np.empty(len(self.full) + len(found) + 2)
        addresses, codes = _and_differences(self.addresses, self.codes, found, start)
        base, code = self.base.data_ptr(), kernel.CODES[self.base.dtype]
        kernel.products(base, code, addresses, codes, grad.data_ptr(), kernel.CODES[grad.dtype], start, stop, out)
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

    def _alone(self) -> list[list[Scaled]]:
        return [[(p, 1.0)] for p in self.low]


def _and_differences(
    addresses: NDArray[np.int64], codes: NDArray[np.int64], found: Sequence[torch.Tensor], start: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Experts for the kernel with differences behind them, whose first element it knows as `start`."""
    more = np.array([d.data_ptr() - 4 * start for d in found], dtype=np.int64)
    return np.concatenate([addresses, more]), np.append(codes, np.full(len(found), kernel.DIFFERENCE, dtype=np.int64))


def _readable(tensor: torch.Tensor) -> bool:
    return tensor.dtype in kernel.CODES and tensor.device.type == "cpu"
