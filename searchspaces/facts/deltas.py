"""Where are a tensor's task vectors read? In mapped files, or by blocks where the loops do not know a file's words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces.adapters.lowrank import BLOCK, Block, LowRank, differences
from searchspaces.models.pool import Pool

Piece = tuple[int, int, NDArray[np.int64], NDArray[np.int64], int, int]
"""The first six arguments of what is in `streams`: base and its code, experts and theirs, first element and end."""


@dataclass(frozen=True, eq=False)
class Deltas:
    """`theta_k - theta_0` of one tensor, flat, for some experts: fp32 differences of what is widened to fp32."""

    base: torch.Tensor
    experts: tuple[torch.Tensor | LowRank | None, ...]

    @classmethod
    def of(cls, pool: Pool, name: str, experts: Sequence[str]) -> Deltas:
        """Of experts of a pool as it was opened, by name; weights are mapped, not read."""
        found = [cast(torch.Tensor | LowRank | None, pool.experts[e].source(name)) for e in experts]
        flat = [s.reshape(-1) if isinstance(s, torch.Tensor) else s for s in found]
        return cls(pool.base.tensor(name).reshape(-1), tuple(flat))

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[Piece]:
        """Elements `start` to `stop` in order, each piece valid until the next; where all can be mapped, one piece."""
        from searchspaces.weights.kernel import CODES

        stop = len(self.base) if stop is None else stop
        lows = [e for e in self.experts if isinstance(e, LowRank)]
        mapped = all(t.dtype in CODES for t in (self.base, *self.experts) if isinstance(t, torch.Tensor))
        step = max(1, stop - start) if mapped else BLOCK
        blocks: Iterable[Block] = ((at, min(at + step, stop), []) for at in range(start, stop, step))
        if lows:
            blocks = differences([[(low, 1.0)] for low in lows], start, stop)
        for first, end, found in blocks:
            held: list[torch.Tensor] = []  # copies, which live until the next piece
            yield self._piece(first, end, found, held)

    def _piece(self, start: int, stop: int, lows: Sequence[torch.Tensor], held: list[torch.Tensor]) -> Piece:
        from searchspaces.weights.kernel import DIFFERENCE, NOTHING

        low = iter(lows)
        base, base_code = _readable(self.base, start, stop, held)
        addresses = np.zeros(len(self.experts), np.int64)
        codes = np.full(len(self.experts), NOTHING, np.int64)
        for k, expert in enumerate(self.experts):
            if isinstance(expert, LowRank):
                addresses[k], codes[k] = next(low).data_ptr() - 4 * start, DIFFERENCE
            elif expert is not None:
                addresses[k], codes[k] = _readable(expert, start, stop, held)
        return base, base_code, addresses, codes, start, stop


def _readable(tensor: torch.Tensor, start: int, stop: int, held: list[torch.Tensor]) -> tuple[int, int]:
    """Address and code of a flat tensor, or of a copy of its elements `start` to `stop`, placed as if it were whole."""
    from searchspaces.weights.kernel import CODES

    if tensor.dtype in CODES:
        return tensor.data_ptr(), CODES[tensor.dtype]
    held.append(tensor[start:stop].float())
    return held[-1].data_ptr() - 4 * start, CODES[torch.float32]
