"""What is a task vector of low rank? Two thin matrices and a scale; their product exists only in pieces."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces.weights import reference

BLOCK = 1 << 18  # elements of a product that exist at a time: a megabyte, which stays in the second level of cache
ROWS = 1024  # of a gradient that are multiplied at a time: a strip of them stays in the second level of cache
LEAST = 32  # rows of a block, whatever their length: fewer would not pay for the copy of what they are multiplied with


@dataclass(frozen=True, eq=False)
class LowRank:
    """`theta_k - theta_0 = scale * left @ right` of one tensor whose rows, flattened, have n elements.

    `left` is `(m, r)` and `right` `(r, n)`, r at least 1, of any floating dtype and layout: views of mapped files.
    """

    left: torch.Tensor
    right: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        """r, an upper bound of the true rank."""
        return len(self.right)

    def size(self) -> float:
        """`sum |theta_k - theta_0|`."""
        return sum(float(d.abs().sum(dtype=torch.float64)) for _, _, (d,) in differences([[(self, 1.0)]]))

    def added(self, base: torch.Tensor) -> torch.Tensor:
        """`base + scale * left @ right`, a new float32 tensor of base's shape."""
        total = base.to(torch.float32, copy=True).contiguous()
        flat = total.view(-1)
        for start, stop, (part,) in differences([[(self, 1.0)]]):
            flat[start:stop] += part
        return total

    def norm(self, base: torch.Tensor) -> float:
        """`|theta_k|` for a flat base."""
        squares = 0.0
        for start, stop, (part,) in differences([[(self, 1.0)]]):
            squares += float((base[start:stop].float() + part).square().sum(dtype=torch.float64))
        return math.sqrt(squares)


Scaled: TypeAlias = tuple[LowRank, float]
Block: TypeAlias = tuple[int, int, list[torch.Tensor]]


def differences(
    sums: Sequence[Sequence[Scaled]],
    start: int = 0,
    stop: int | None = None,
    device: torch.device | None = None,
) -> Iterator[Block]:
    """Each sum of scaled low-rank task vectors of one tensor, over its flat elements `start` to `stop`, block by block.

    Yields a block's first element, the one after its last, and a flat float32 tensor for each sum, valid until the next
    block is asked for. On the CPU an element has the same bits whatever the range, the blocks or the threads: its terms
    are added in the order of experts and ranks.
    """
    rows, columns = len(sums[0][0][0].left), sums[0][0][0].right.shape[1]
    stop = rows * columns if stop is None else stop
    if start >= stop:
        return
    device = device or torch.device("cpu")
    row, last = start // columns, -(-stop // columns)
    lefts = [torch.cat([p.left[row:last].to(device, torch.float32) * (p.scale * by) for p, by in s], 1) for s in sums]
    rights = [torch.cat([p.right.to(device, torch.float32) for p, _ in s]) for s in sums]
    step = max(LEAST, BLOCK // columns)
    scratch = [torch.empty((min(step, last - row), columns), device=device) for _ in sums]
    for done in range(0, last - row, step):
        for left, right, out in zip(lefts, rights, scratch, strict=True):
            part = left[done : done + step]
            _multiply(part, right, out[: len(part)])
        origin = (row + done) * columns
        first, end = max(start, origin), min(stop, origin + step * columns)
        yield first, end, [out.view(-1)[first - origin : end - origin] for out in scratch]


def inner_products(lows: Sequence[LowRank], grad: torch.Tensor, start: int, stop: int) -> NDArray[np.float64]:
    """`<G, scale left right>` for each of several task vectors of one tensor, over whole rows of its flat gradient.

    `(len(lows),)`. `<G, L R> = <L' G, R>`: no task vector is made, and G is multiplied once with all of L. Products are
    fp32, their sums over ranks and columns float64; on the CPU the same bits whatever the number of threads.
    """
    from searchspaces.adapters import tiles

    columns = lows[0].right.shape[1]
    row, last = start // columns, stop // columns
    left = torch.cat([p.left[row:last].float() for p in lows], 1)
    right = torch.cat([p.right.float() * p.scale for p in lows])
    inner = torch.empty(right.shape)
    sums = np.zeros(len(right))
    for at in range(0, last - row, ROWS):
        part = left[at : at + ROWS].T.contiguous()
        first = (row + at) * columns
        slope = grad[first : first + part.shape[1] * columns].float().view(-1, columns)
        tiles.multiply(part.numpy(), slope.numpy(), inner.numpy())
        sums += np.einsum("rn,rn->r", inner.numpy(), right.numpy(), dtype=np.float64)
    return np.add.reduceat(sums, np.cumsum([0, *(p.rank for p in lows[:-1])]))


def _multiply(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    if out.device.type == "cpu":
        from searchspaces.adapters import tiles

        tiles.multiply(left.numpy(), right.numpy(), out.numpy())
    else:
        reference.multiply(left, right, out)
