"""What is a composition, and its derivative, in plain torch? What the composed kernels must match."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces.algebra.draws import UNIT, draws
from searchspaces.weights.packed import (
    BAND,
    DRAW,
    EQUAL,
    LARGEST,
    RANKS,
    SHARED,
    TIED,
    WEIGHTED,
    Packed,
)
from searchspaces.weights.reference import CHUNK

LARGE = 1 << 22
"""Elements at a time on an accelerator: a kernel takes longer than its start, and some dozens of such rows fit."""


@dataclass(frozen=True, eq=False)
class Source:
    """One expert: a flat tensor of any floating dtype, or its `difference` from the base already."""

    tensor: torch.Tensor
    difference: bool = False


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Some elements of a tensor: base, what stays of task vectors, their sum, and the gate; numbers are float32."""

    cut: slice
    numbers: NDArray[np.void]  # packed.EXPERT of each row
    base: torch.Tensor  # (n,)
    rows: list[torch.Tensor]  # (n,) each
    total: torch.Tensor  # (n,) the sum of the rows
    gate: torch.Tensor | None  # bool (n,)


def merge(
    out: torch.Tensor, base: torch.Tensor, experts: Sequence[Source | None], packed: Packed, start: int = 0
) -> torch.Tensor:
    """Write a merged part of a tensor to `out`, whose first element is at place `start`; says whether it is finite.

    `out`, `base` and experts are 1-D of equal length, of any floating dtype and device; experts are all K in their
    order, None for one that leaves the tensor as it is. Sums are fp32 in the order of the experts, on out's device, and
    rounded to out's dtype once. Experts that are not in `packed.active` are not read. The answer is bool `()`, on out's
    device, and nobody waits for it here.
    """
    if packed.lines is not None:
        return _merge_lines(out, base, experts, packed, start)
    finite = torch.ones((), dtype=torch.bool, device=out.device)
    for chunk in _chunks(out, base, experts, packed, packed.active.tolist(), packed.merging, start):
        total = chunk.total
        if packed.vote.consensus in (WEIGHTED, EQUAL, LARGEST):
            total = _combined(chunk, packed)
        if chunk.gate is not None:
            total = torch.where(chunk.gate, total, 0.0)
        out[chunk.cut] = (chunk.base * float(packed.vote.base) + total).to(out.dtype)
        finite &= torch.isfinite(out[chunk.cut]).all()
    return finite


def products(
    grad: torch.Tensor, base: torch.Tensor, experts: Sequence[Source | None], packed: Packed, start: int = 0
) -> torch.Tensor:
    """`<grad, u_k>` of a composition for each k, then `<grad, base>` and `<grad, grad>`; arguments as for `merge`.

    Products are fp32, their sums float64 (fp32 on mps), `(K + 2,)` on grad's device. Raises ValueError where u_k
    depends on the weights, or these are by row or column.
    """
    packed.check_linear()
    precise = torch.float32 if grad.device.type == "mps" else torch.float64
    out = torch.zeros(len(experts) + 2, dtype=precise, device=grad.device)
    for chunk in _chunks(grad, base, experts, packed, range(packed.count), packed.measuring, start):
        slope = grad[chunk.cut].float()
        out[-2] += (slope * chunk.base).sum(dtype=precise)
        out[-1] += (slope * slope).sum(dtype=precise)
        rows = chunk.rows
        if packed.vote.consensus in (EQUAL, LARGEST):
            rows, parts = _agreeing(chunk, packed)
            slope = _divided(slope, parts, packed)
        if chunk.gate is not None:
            slope = torch.where(chunk.gate, slope, 0.0)
        for k, row in enumerate(rows):
            out[k] += (slope * row).sum(dtype=precise)
    out[:-2] *= torch.from_numpy(packed.gains).to(out.device, precise)
    return out


def _chunks(
    like: torch.Tensor,
    base: torch.Tensor,
    experts: Sequence[Source | None],
    packed: Packed,
    which: Sequence[int],
    numbers: NDArray[np.void],
    start: int,
) -> Iterator[_Chunk]:
    """Of the experts `which`, whose `packed.EXPERT` are `numbers`, on the device of `like`."""
    step = CHUNK if like.device.type == "cpu" else LARGE
    for at in range(0, len(like), step):
        cut = slice(at, min(at + step, len(like)))
        wide = base[cut].to(like.device, torch.float32)
        raws = [difference(experts[k], cut, wide) for k in which]
        gate = _gate(raws, packed, start + at) if packed.gated else None
        rows = [_kept(raw, n, packed.ranks(k), start + at) for raw, n, k in zip(raws, numbers, which, strict=False)]
        yield _Chunk(cut, numbers, wide, rows, _sum(rows, wide), gate)


def difference(expert: Source | None, cut: slice, base: torch.Tensor) -> torch.Tensor:
    """Its task vector there, float32; `base` is that part of the base, float32."""
    if expert is None:
        return torch.zeros_like(base)
    found = expert.tensor[cut].to(base.device, torch.float32)
    return found if expert.difference else found - base


def _sum(rows: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    total = torch.zeros_like(like)
    for row in rows:
        total += row
    return total


def _gate(raws: Sequence[torch.Tensor], packed: Packed, place: int) -> torch.Tensor:
    """Where entries count; elsewhere they are nobody's."""
    total, vote = _sum(raws, raws[0]), packed.vote
    gate = torch.ones_like(total, dtype=torch.bool)
    if vote.consensus == SHARED:
        # NaN is in every mask, and above every spread: it is to be seen
        masks = [(raw.abs() <= (total - raw).abs() * float(vote.threshold)).logical_not_() for raw in raws]
        gate &= _sum([m.float() for m in masks], total) >= vote.least
    if vote.spread > 0:
        inverse = float(np.float32(1.0 / len(raws)))
        mean = total * inverse
        squares = _sum([(raw - mean) * (raw - mean) for raw in raws], total)
        variance, spread = squares * inverse, float(vote.spread)
        gate &= (variance < spread).logical_not_()
        if vote.until < UNIT:
            drawn = draws(vote.key, place, place + len(total), total.device)
            gate &= ((variance == spread) & (drawn >= vote.until)).logical_not_()
    return gate


def _kept(raw: torch.Tensor, expert: np.void, ranks: torch.Tensor | None, place: int) -> torch.Tensor:
    kind, value = int(expert["kind"]), raw * float(expert["gain"])
    stays = torch.ones_like(raw, dtype=torch.bool)
    if kind & BAND:
        size = raw.abs()
        least, most = float(expert["least"]), float(expert["most"])
        stays &= ((size < least) | (size > most)).logical_not_()
        if kind & TIED:
            drawn = draws(int(expert["key"]), place, place + len(raw), raw.device)
            stays &= ((size == least) & (drawn >= float(expert["until"]))).logical_not_()
            stays &= ((size == most) & (drawn < float(expert["after"]))).logical_not_()
    if kind & (DRAW | RANKS):
        drawn = draws(int(expert["key"]), place, place + len(raw), raw.device)
        chance = float(expert["share"])
        if ranks is not None:
            chances = ranks[place : place + len(raw)].to(raw.device).float() * float(expert["step"]) + chance
            stays &= drawn < chances
            value = value / chances.clamp(max=UNIT) if expert["divides"] else value
        else:
            stays &= drawn < chance
    return torch.where(stays, value, 0.0)


def _combined(chunk: _Chunk, packed: Packed) -> torch.Tensor:
    """The weighted sum of what agrees, divided and scaled."""
    rows, parts = _agreeing(chunk, packed)
    weights = chunk.numbers["weight"].tolist()
    total = _sum([row * weight for row, weight in zip(rows, weights, strict=False)], chunk.total)
    return _divided(total, parts, packed)


def _agreeing(chunk: _Chunk, packed: Packed) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Rows without what does not agree, and the sum of the divisors of those that do."""
    if packed.vote.consensus == LARGEST:
        best, who = torch.full_like(chunk.total, -1.0), torch.zeros_like(chunk.total)
        for k, row in enumerate(chunk.rows):
            beats = (best == best) & (row.abs() <= best).logical_not_()  # the first of equals, and of NaN
            who, best = torch.where(beats, float(k), who), torch.where(beats, row.abs(), best)
        agree = [who == k for k in range(len(chunk.rows))]
    else:
        sign = torch.where(chunk.total >= 0, 1.0, -1.0)
        agree = [(row * sign <= 0).logical_not_() for row in chunk.rows]
    divisors = chunk.numbers["divisor"].tolist()
    parts = [torch.where(a, d, 0.0) for a, d in zip(agree, divisors, strict=False)]
    kept = [torch.where(a, row, 0.0) for a, row in zip(agree, chunk.rows, strict=True)]
    return kept, _sum(parts, chunk.total)


def _divided(value: torch.Tensor, parts: torch.Tensor, packed: Packed) -> torch.Tensor:
    if packed.vote.divided:
        value = value / torch.where(parts != 0, parts, 1.0)
    return value * float(packed.vote.scale)


def _merge_lines(
    out: torch.Tensor, base: torch.Tensor, experts: Sequence[Source | None], packed: Packed, start: int
) -> torch.Tensor:
    assert packed.lines is not None
    run = packed.lines.run
    bases, weights = (torch.from_numpy(a).to(out.device) for a in (packed.lines.base, packed.lines.weights))
    finite, step = torch.ones((), dtype=torch.bool, device=out.device), CHUNK if out.device.type == "cpu" else LARGE
    for at in range(0, len(out), step):
        cut = slice(at, min(at + step, len(out)))
        place = torch.arange(start + cut.start, start + cut.stop, device=out.device)
        line = place // run % len(bases)
        wide = base[cut].to(out.device, torch.float32)
        total = wide * bases[line]
        for k, by in zip(packed.active.tolist(), weights, strict=True):
            total += difference(experts[k], cut, wide) * by[line]
        out[cut] = total.to(out.dtype)
        finite &= torch.isfinite(out[cut]).all()
    return finite
