"""What is a composition, and its derivative, in plain torch? What the composed kernels must match."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces.weights.packed import (
    BAND,
    DRAW,
    EQUAL,
    FIRST,
    LARGEST,
    RANKS,
    SECOND,
    SHARED,
    THIRD,
    TIED,
    UNIT,
    WEIGHTED,
    Packed,
)
from searchspaces.weights.reference import CHUNK

WORD = 0xFFFFFFFF


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
) -> bool:
    """Write a merged part of a tensor to `out`, whose first element is at place `start`; says whether it is finite.

    `out`, `base` and experts are 1-D of equal length, of any floating dtype and device; experts are all K in their
    order, None for one that leaves the tensor as it is. Sums are fp32 in the order of the experts, on out's device, and
    rounded to out's dtype once. Experts that are not in `packed.active` are not read.
    """
    if packed.lines is not None:
        return _merge_lines(out, base, experts, packed, start)
    finite = True
    for chunk in _chunks(out, base, experts, packed, packed.active.tolist(), packed.merging, start):
        total = chunk.total
        if packed.vote.consensus in (WEIGHTED, EQUAL, LARGEST):
            total = _combined(chunk, packed)
        if chunk.gate is not None:
            total = torch.where(chunk.gate, total, 0.0)
        out[chunk.cut] = (chunk.base * float(packed.vote.base) + total).to(out.dtype)
        finite = finite and bool(torch.isfinite(out[chunk.cut]).all())
    return finite


def products(
    grad: torch.Tensor, base: torch.Tensor, experts: Sequence[Source | None], packed: Packed, start: int = 0
) -> list[float]:
    """`<grad, u_k>` of a composition for each k, then `<grad, base>` and `<grad, grad>`; arguments as for `merge`.

    Products are fp32, their sums float64. Raises ValueError where u_k depends on the weights, or these are by row or
    column.
    """
    packed.check_linear()
    precise = torch.float32 if grad.device.type == "mps" else torch.float64
    out = [0.0] * (len(experts) + 2)
    for chunk in _chunks(grad, base, experts, packed, range(packed.count), packed.measuring, start):
        slope = grad[chunk.cut].float()
        out[-2] += float((slope * chunk.base).sum(dtype=precise))
        out[-1] += float((slope * slope).sum(dtype=precise))
        rows = chunk.rows
        if packed.vote.consensus in (EQUAL, LARGEST):
            rows, parts = _agreeing(chunk, packed)
            slope = _divided(slope, parts, packed)
        if chunk.gate is not None:
            slope = torch.where(chunk.gate, slope, 0.0)
        for k, row in enumerate(rows):
            out[k] += float((slope * row).sum(dtype=precise))
    return [*(part * gain for part, gain in zip(out, packed.gains.tolist(), strict=False)), *out[-2:]]


def draws(key: int, start: int, stop: int, device: torch.device | None = None) -> torch.Tensor:
    """The whole numbers in [0, UNIT) that a key draws for places `start` to `stop`, float32, as the kernels'.

    An entry stays where its draw is below p times UNIT. A hash of place and key: each key is another
    permutation of the places' words, and the same whatever else is drawn.
    """
    place = torch.arange(start, stop, device=device)
    high, last = start >> 32, (stop - 1) >> 32
    if high != last and stop > start:
        edge = last << 32
        return torch.cat([draws(key, start, edge, device), draws(key, edge, stop, device)])
    first = _mixed((key & WORD) ^ _mixed((high + 0x9E3779B9) & WORD))
    second = _mixed((first + 0x85EBCA6B) & WORD)
    x = (place & WORD) ^ first
    x = _times(x ^ (x >> 17), FIRST)
    x = _times(x ^ (x >> 11) ^ second, SECOND)
    x = _times(x ^ (x >> 15), THIRD)
    return ((x ^ (x >> 14)) >> 8).to(torch.float32)


def _times(x: torch.Tensor, by: int) -> torch.Tensor:
    """The lower 32 bits of a product. Less 2 ** 32, a multiplier has the same, and 64 bits do not overflow."""
    return (x * (by - (1 << 32) if by >> 31 else by)) & WORD


def _mixed(x: int) -> int:
    x = ((x ^ (x >> 17)) * FIRST) & WORD
    x = ((x ^ (x >> 11)) * SECOND) & WORD
    x = ((x ^ (x >> 15)) * THIRD) & WORD
    return x ^ (x >> 14)


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
    for at in range(0, len(like), CHUNK):
        cut = slice(at, min(at + CHUNK, len(like)))
        wide = base[cut].to(like.device, torch.float32)
        raws = [_difference(experts[k], cut, wide) for k in which]
        gate = _gate(raws, packed) if packed.gated else None
        rows = [_kept(raw, n, packed.ranks(k), start + at) for raw, n, k in zip(raws, numbers, which, strict=False)]
        yield _Chunk(cut, numbers, wide, rows, _sum(rows, wide), gate)


def _difference(expert: Source | None, cut: slice, base: torch.Tensor) -> torch.Tensor:
    if expert is None:
        return torch.zeros_like(base)
    found = expert.tensor[cut].to(base.device, torch.float32)
    return found if expert.difference else found - base


def _sum(rows: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    total = torch.zeros_like(like)
    for row in rows:
        total += row
    return total


def _gate(raws: Sequence[torch.Tensor], packed: Packed) -> torch.Tensor:
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
        gate &= (squares * inverse < float(vote.spread)).logical_not_()
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
) -> bool:
    assert packed.lines is not None
    run, bases, weights = packed.lines
    finite = True
    for at in range(0, len(out), CHUNK):
        cut = slice(at, min(at + CHUNK, len(out)))
        place = torch.arange(start + cut.start, start + cut.stop, device=out.device)
        line = place // run % len(bases)
        wide = base[cut].to(out.device, torch.float32)
        total = wide * torch.from_numpy(bases).to(out.device)[line]
        for k, by in zip(packed.active.tolist(), weights, strict=True):
            total += _difference(experts[k], cut, wide) * torch.from_numpy(by).to(out.device)[line]
        out[cut] = total.to(out.dtype)
        finite = finite and bool(torch.isfinite(out[cut]).all())
    return finite
