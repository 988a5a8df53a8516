"""Where do one merged tensor's values come from? Base and experts, full or of low rank, merged and differentiated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces.adapters.lowrank import Block, LowRank, differences, inner_products
from searchspaces.composition import Composition
from searchspaces.models.difference import Difference
from searchspaces.models.pool import Pool
from searchspaces.weights import composed_reference, reference
from searchspaces.weights.packed import Packed

Taken: TypeAlias = composed_reference.Source | None


@dataclass(frozen=True, eq=False)
class Sources:
    """Base and experts of one tensor, flat and contiguous; an expert that leaves it as it is, is neither full nor low.

    `full_of` and `low_of` say which of the pool's K experts each of `full` and `low` is; of `full`, those that `differ`
    are differences from the base already.
    """

    base: torch.Tensor
    count: int  # K
    full: tuple[torch.Tensor, ...]
    full_of: NDArray[np.int64]
    differ: tuple[bool, ...]
    low: tuple[LowRank, ...]
    low_of: NDArray[np.int64]
    addresses: NDArray[np.int64]  # of `full`
    codes: NDArray[np.int64]  # their dtypes in the kernel's words
    fast: bool  # the kernel can read base and full experts

    @classmethod
    def of(cls, pool: Pool, name: str) -> Sources:
        base = pool.base.tensor(name).reshape(-1)
        found = [expert.source(name) for expert in pool.experts.values()]
        apart = [isinstance(s, Difference) for s in found]
        whole = [s.tensor if isinstance(s, Difference) else s for s in found]
        full = {k: s.reshape(-1) for k, s in enumerate(whole) if isinstance(s, torch.Tensor)}
        low = {k: s for k, s in enumerate(found) if isinstance(s, LowRank)}
        return cls(
            base,
            len(found),
            tuple(full.values()),
            np.array(list(full), dtype=np.int64),
            tuple(apart[k] for k in full),
            tuple(low.values()),
            np.array(list(low), dtype=np.int64),
            np.array([e.data_ptr() for e in full.values()], dtype=np.int64),
            np.array([_code(e.dtype, apart[k]) for k, e in full.items()], dtype=np.int64),
            all(_readable(t) for t in (base, *full.values())),
        )

    def merge(self, out: torch.Tensor, what: Composition | Packed, start: int, stop: int) -> bool:
        """Write merged elements `start` to `stop` to `out`, flat; says whether they are finite.

        Sums are fp32: base and full experts in their order, then the sum over those of low rank; of what is packed, all
        in their order. An expert that has no part in the result is not read.
        """
        if isinstance(what, Packed):
            return self._compose(out, what, start, stop)
        base_scale, scales = what.sums
        full = scales[self.full_of]
        parts = [(p, float(s)) for p, s in zip(self.low, scales[self.low_of], strict=True) if s != 0]
        blocks = differences([parts], start, stop, out.device) if parts else [(start, stop, [])]
        if self.fast and _readable(out):
            return self._by_kernel(out, base_scale, full, blocks, 1 if parts else 0)
        return self._by_reference(out, base_scale, full, blocks)

    def _compose(self, out: torch.Tensor, packed: Packed, start: int, stop: int) -> bool:
        from searchspaces.weights import composed, kernel

        finite = True
        fast = self.fast and _readable(out)
        addresses, codes = self._all()
        for first, last, lows in self._blocks(packed.active, start, stop, out.device):
            if fast:
                for k, low in lows.items():
                    addresses[k] = low.data_ptr() - 4 * first
                    codes[k] = kernel.DIFFERENCE
                finite &= composed.merge(
                    packed, self.base.data_ptr(), kernel.CODES[self.base.dtype], addresses, codes,
                    out.data_ptr(), kernel.CODES[out.dtype], first, last,
                )  # fmt: skip
            else:
                cut = slice(first, last)
                experts = self.taken({i: e[cut] for i, e in enumerate(self.full)}, lows)
                finite &= bool(composed_reference.merge(out[cut], self.base[cut], experts, packed, first))
        return finite

    def taken(self, full: Mapping[int, torch.Tensor], lows: Mapping[int, torch.Tensor]) -> list[Taken]:
        """Parts of experts as the reference takes them, `(K,)`: of some of `full`, by place there, and of low rank."""
        found: list[Taken] = [None] * self.count
        for i, part in full.items():
            found[int(self.full_of[i])] = composed_reference.Source(part, self.differ[i])
        for k, low in lows.items():
            found[k] = composed_reference.Source(low, True)
        return found

    def _all(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Addresses and codes of all K experts; those of low rank are nothing yet."""
        from searchspaces.weights import kernel

        addresses = np.zeros(self.count, dtype=np.int64)
        codes = np.full(self.count, kernel.NOTHING, dtype=np.int64)
        addresses[self.full_of], codes[self.full_of] = self.addresses, self.codes
        return addresses, codes

    def _blocks(
        self, wanted: NDArray[np.int64], start: int, stop: int, device: torch.device
    ) -> Iterator[tuple[int, int, dict[int, torch.Tensor]]]:
        """Ranges, with the task vectors there of those wanted experts that are of low rank."""
        lows = [(k, low) for k, low in zip(self.low_of.tolist(), self.low, strict=True) if k in wanted]
        if not lows:
            yield start, stop, {}
            return
        for first, last, found in differences([[(low, 1.0)] for _, low in lows], start, stop, device):
            yield first, last, {k: part for (k, _), part in zip(lows, found, strict=True)}

    def _by_reference(
        self, out: torch.Tensor, base_scale: float, scales: NDArray[np.float32], blocks: Iterable[Block]
    ) -> bool:
        finite = True
        for start, stop, found in blocks:
            cut = slice(start, stop)
            experts, added = [e[cut] for e in self.full], found[0] if found else None
            finite &= reference.merge(
                out[cut], self.base[cut], experts, base_scale, scales.tolist(), added, self.differ
            )
        return finite

    def _by_kernel(
        self, out: torch.Tensor, base_scale: float, scales: NDArray[np.float32], blocks: Iterable[Block], count: int
    ) -> bool:
        """`count` differences in every block."""
        from searchspaces.weights import kernel

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

    def products(
        self, grad: torch.Tensor, what: Composition | Packed | None, start: int, stop: int
    ) -> NDArray[np.float64]:
        """`<G, u_k>` over one of `slices` for each expert (see `gradient.products`), then `<G, theta_0>`, `<G, G>`."""
        if isinstance(what, Packed):
            return self._composed_products(grad, what, start, stop)
        out = self._plain_products(grad, start, stop)
        if what is not None:
            out[:-2] *= what.scale
        return out

    def _composed_products(self, grad: torch.Tensor, packed: Packed, start: int, stop: int) -> NDArray[np.float64]:
        from searchspaces.weights import composed, kernel

        out, part = np.zeros(self.count + 2), np.empty(self.count + 2)
        addresses, codes = self._all()
        for first, last, lows in self._blocks(np.arange(self.count), start, stop, grad.device):
            if self.fast and _readable(grad):
                for k, low in lows.items():
                    addresses[k] = low.data_ptr() - 4 * first
                    codes[k] = kernel.DIFFERENCE
                composed.products(
                    packed, self.base.data_ptr(), kernel.CODES[self.base.dtype], addresses, codes,
                    grad.data_ptr(), kernel.CODES[grad.dtype], first, last, part,
                )  # fmt: skip
            else:
                cut = slice(first, last)
                experts = self.taken({i: e[cut] for i, e in enumerate(self.full)}, lows)
                part[:] = composed_reference.products(grad[cut], self.base[cut], experts, packed, first).cpu().numpy()
            out += part
        return out

    def _plain_products(self, grad: torch.Tensor, start: int, stop: int) -> NDArray[np.float64]:
        from searchspaces.weights import kernel

        part = np.empty(len(self.full) + 2)
        if self.fast and _readable(grad):
            kernel.products(
                self.base.data_ptr(), kernel.CODES[self.base.dtype], self.addresses, self.codes, grad.data_ptr(),
                kernel.CODES[grad.dtype], start, stop, part,
            )  # fmt: skip
        else:
            experts = [e[start:stop] for e in self.full]
            part[:] = reference.products(grad[start:stop], self.base[start:stop], experts, self.differ)
        out = np.zeros(self.count + 2)
        out[self.full_of], out[-2:] = part[:-2], part[-2:]
        if self.low:
            out[self.low_of] = inner_products(self.low, grad, start, stop)
        return out

    def norms(self) -> NDArray[np.float64]:
        """`|theta_k|`, `(K,)`."""
        out = np.zeros(self.count)
        for k, expert, apart in zip(self.full_of, self.full, self.differ, strict=True):
            out[k] = reference.norm(expert, self.base if apart else None)
        for k, low in zip(self.low_of, self.low, strict=True):
            out[k] = low.norm(self.base)
        same = np.setdiff1d(np.arange(self.count), np.concatenate([self.full_of, self.low_of]))
        if len(same):
            out[same] = reference.norm(self.base)
        return out

    def sizes(self) -> NDArray[np.float64]:
        """`sum |theta_k - theta_0|` for each expert, `(K,)`."""
        out = np.zeros(self.count)
        for k, expert, apart in zip(self.full_of, self.full, self.differ, strict=True):
            out[k] = reference.size(expert, None if apart else self.base)
        for k, low in zip(self.low_of, self.low, strict=True):
            out[k] = low.size()
        return out

    def grams(self) -> NDArray[np.float64]:
        """Inner products of the task vectors, `(K, K)`, then the sums of their entries and how many: `(K + 2, K)`.

        Differences are fp32, their products and sums float64.
        """
        out = np.zeros((self.count + 2, self.count))
        out[-1] = len(self.base)
        for first, last, lows in self._blocks(np.arange(self.count), 0, len(self.base), self.base.device):
            experts = self.taken({i: expert[first:last] for i, expert in enumerate(self.full)}, lows)
            for at in range(0, last - first, reference.CHUNK):
                cut = slice(at, min(at + reference.CHUNK, last - first))
                base = self.base[first:last][cut].float()
                rows = torch.stack([composed_reference.difference(e, cut, base) for e in experts]).double()
                out[:-2] += (rows @ rows.T).numpy()
                out[-2] += rows.sum(dim=1).numpy()
        return out


def _code(dtype: torch.dtype, apart: bool) -> int:
    """An expert's dtype in the kernel's words; -1 where it has none."""
    from searchspaces.weights import kernel

    plain = kernel.CODES.get(dtype, -1)
    return plain + kernel.DIFFERENCE if apart and plain >= 0 else plain


def _with_differences(
    addresses: NDArray[np.int64], codes: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Experts for the kernel, and behind them room for differences, whose addresses change from block to block."""
    from searchspaces.weights import kernel

    more = np.full(count, kernel.DIFFERENCE, dtype=np.int64)
    return np.append(addresses, np.zeros(count, dtype=np.int64)), np.append(codes, more)


def _place(addresses: NDArray[np.int64], found: Sequence[torch.Tensor], start: int) -> None:
    """Put differences behind the experts: the first element of each is what the kernel knows as `start`."""
    for k, difference in enumerate(found, len(addresses) - len(found)):
        addresses[k] = difference.data_ptr() - 4 * start


def _readable(tensor: torch.Tensor) -> bool:
    from searchspaces.weights import kernel

    return tensor.dtype in kernel.CODES and tensor.device.type == "cpu"
