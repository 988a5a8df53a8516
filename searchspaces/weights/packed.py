"""What do the composed kernels need to know of a composition? Its numbers, rounded once, in arrays by expert."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces.algebra.draws import UNIT
from searchspaces.composition import Composition, Keep

BAND, DRAW, RANKS, TIED = 1, 2, 4, 8
"""What decides whether an entry stays, as bits of a kind; 0: all stay."""

NONE, WEIGHTED, EQUAL, LARGEST, SHARED = range(5)
CONSENSUS = {"none": NONE, "weighted": WEIGHTED, "equal": EQUAL, "largest": LARGEST, "shared": SHARED}


EXPERT = np.dtype(
    [
        ("kind", np.int64),
        ("key", np.int64),
        ("ranks", np.int64),  # the address of uint8 elements
        ("least", np.float32),
        ("beyond", np.float32),  # the next number above `least`
        ("most", np.float32),
        ("short", np.float32),  # the next number below `most`
        ("until", np.float32),  # of entries equal to `least`, those drawn below it stay; times UNIT
        ("after", np.float32),  # of entries equal to `most`, those drawn at it or above; times UNIT
        ("share", np.float32),  # p, or p of rank 0, times UNIT
        ("step", np.float32),  # what p grows by from rank to rank, times UNIT
        ("gain", np.float32),  # what stays is multiplied by it
        ("divides", np.int32),  # and divided by p times UNIT: where p varies, and what stays is rescaled
        ("weight", np.float32),  # of EQUAL and LARGEST; in the gain otherwise, and then 1
        ("divisor", np.float32),  # of what agrees, entry by entry; in the gain where it is the same for all entries
    ],
    align=True,
)
"""What stays of one expert's task vector, and with what weight it goes into the sum."""


class Vote(NamedTuple):
    """How experts agree."""

    consensus: int
    divided: bool  # by the sum of the divisors of those that agree
    scale: np.float32  # 1 where it is in the gains
    spread: np.float32
    threshold: np.float32
    least: int
    base: np.float32
    draws: bool  # whether any entry of any expert is drawn, or the gate's are
    key: int  # of the draws that decide for entries whose variance is `spread`
    beyond: np.float32  # the next number above `spread`
    until: int  # of entries of that variance, those drawn below it stay; times UNIT


class Lines(NamedTuple):
    """Weights by row or column: that of the element at place p is `[k, p // run % count]`."""

    run: int
    base: NDArray[np.float32]  # (count,)
    weights: NDArray[np.float32]  # (n, count)


@dataclass(frozen=True, eq=False)
class Packed:
    """A composition of one tensor in the kernels' words, made once for all its elements.

    `active` are the experts that a merge reads, ascending; `merging` are these, `measuring` all K, as derivatives need
    them: both of dtype EXPERT, with zeros behind them up to a multiple of four. `composition` keeps alive what `ranks`
    points to.
    """

    composition: Composition
    count: int  # K
    active: NDArray[np.int64]
    merging: NDArray[np.void]
    measuring: NDArray[np.void]
    vote: Vote
    gains: NDArray[np.float64]  # (K,) those of the composition; in the weights of `merging` already
    lines: Lines | None = None  # there is nothing else, where weights are by row or column

    def ranks(self, k: int) -> torch.Tensor | None:
        """`Keep.ranks` of expert k."""
        return None if self.composition.keeps is None else self.composition.keeps[k].ranks

    def check_linear(self) -> None:
        """Raises ValueError where u_k depends on the weights, or these are by row or column: there is no gradient."""
        if self.vote.consensus == WEIGHTED or self.lines is not None:
            raise ValueError("a merge whose weights elect signs, or go by row or column, has no coefficient gradient")

    @property
    def gated(self) -> bool:
        """Whether some entries are nobody's, by the raw task vectors of all experts."""
        return self.vote.consensus == SHARED or bool(self.vote.spread > 0)

    @classmethod
    def of(cls, composition: Composition, shape: tuple[int, ...]) -> Packed:
        """For a tensor of that shape.

        Raises ValueError where weights are by row or column and there is something else, where weights, keeps, divisors
        or ranks are not of the shape that `Composition` says, and for ranks that are not contiguous uint8 on the CPU.
        """
        c = composition
        count = c.weights.shape[-1]
        gains = np.ones(count) if c.gains is None else np.asarray(c.gains, dtype=np.float64)
        weights = np.asarray(c.weights * gains, dtype=np.float32)
        keeps = c.keeps if c.keeps is not None else (Keep(),) * count
        _check(c, weights, keeps, shape)
        consensus = CONSENSUS[c.consensus]
        voted = consensus in (WEIGHTED, EQUAL, LARGEST)
        read = weights != 0 if weights.ndim == 1 else np.any(weights != 0, axis=0)
        every = consensus in (EQUAL, LARGEST, SHARED) or c.spread > 0
        active = np.arange(count) if every else np.flatnonzero(read)
        constant = _constant(c)
        measuring = _experts(keeps, constant, c.divisors if voted else None)
        merging = measuring.copy()
        if consensus in (EQUAL, LARGEST):
            merging["weight"][:count] = weights
        elif weights.ndim == 1:
            merging["gain"][:count] = [_gain(k, w * constant) for k, w in zip(keeps, weights.tolist(), strict=True)]
        spread, until = _upward(c.spread), _whole(c.until)
        draws = bool((measuring["kind"] & (DRAW | RANKS | TIED)).any()) or (c.spread > 0 and until < UNIT)
        vote = Vote(
            consensus, c.divisors is not None and voted, np.float32(c.scale if voted else 1.0), spread,
            np.float32(c.threshold), c.least, np.float32(c.base if weights.ndim == 1 else 1.0),
            draws, c.key & 0xFFFFFFFF, _above(spread), until,
        )  # fmt: skip
        lines = _lines(c, weights[:, active], shape) if weights.ndim == 2 else None
        return cls(c, count, active.astype(np.int64), _padded(merging[active]), measuring, vote, gains, lines)


def _check(c: Composition, weights: NDArray[np.float32], keeps: tuple[Keep, ...], shape: tuple[int, ...]) -> None:
    size, count = math.prod(shape), weights.shape[-1]
    if weights.ndim == 2:
        others = shape[1:] if c.columns else shape[:-1]
        if weights.shape[0] != math.prod(others) or np.shape(c.base) != weights.shape[:1]:
            raise ValueError(
                f"weights {weights.shape} and base {np.shape(c.base)} are not by {'column' if c.columns else 'row'} of "
                f"a tensor {shape}: expected ({math.prod(others)}, K) and ({math.prod(others)},)"
            )
        others_too = c.keeps is not None or c.consensus != "none" or c.divisors is not None or c.gains is not None
        if others_too or c.spread > 0 or c.scale != 1:
            raise ValueError("weights by row or column merge task vectors as they are: no keeps, consensus or scale")
    elif weights.ndim != 1 or np.ndim(c.base) != 0:
        raise ValueError(f"weights are {weights.shape} and base {np.shape(c.base)}, expected (K,) and one number")
    if len(keeps) != count or (c.divisors is not None and np.shape(c.divisors) != (count,)):
        raise ValueError(f"keeps and divisors must be of the {count} experts that have weights")
    if c.gains is not None and (np.shape(c.gains) != (count,) or c.consensus == "weighted"):
        raise ValueError(f"gains must be of the {count} experts that have weights, and have no part in an election")
    for keep in keeps:
        r = keep.ranks
        if r is not None and (r.shape != (size,) or r.dtype != torch.uint8 or r.device.type != "cpu"):
            raise ValueError(f"ranks are {r.dtype} {tuple(r.shape)} on {r.device}, expected uint8 ({size},) on the CPU")
        if r is not None and not r.is_contiguous():
            raise ValueError("ranks are a view with gaps; make them contiguous")
        if keep.tied and (r is not None or keep.share < 1):
            raise ValueError("draws decide which entries at a bound stay, or which of all do: not both of one expert")


def _constant(c: Composition) -> float:
    """What all entries that anybody keeps are multiplied by, where every expert agrees or none does."""
    if c.consensus in ("none", "shared"):
        divisor = 0.0 if c.divisors is None else float(np.sum(c.divisors, dtype=np.float64))
        return c.scale / (divisor or 1.0)
    return 1.0


def _experts(keeps: Sequence[Keep], by: float, divisors: NDArray[np.float32] | None) -> NDArray[np.void]:
    out = np.zeros(fours(len(keeps)), EXPERT)
    for k, keep in enumerate(keeps):
        least, most = _upward(keep.least), -_upward(-keep.most)
        kind, share, step = BAND if keep.least > 0 or keep.most < math.inf else 0, 0.0, 0.0
        if keep.tied:
            kind = BAND | TIED
        if keep.ranks is not None:
            kind |= RANKS
            # p of rank r is share + slope (2 r / 255 - 1)
            share, step = (keep.share - keep.slope) * UNIT, 2 * keep.slope / 255 * UNIT
        elif keep.share < 1:
            kind |= DRAW
            share = _whole(keep.share)
        ranks = 0 if keep.ranks is None else keep.ranks.data_ptr()
        divides = keep.ranks is not None and keep.rescale
        divisor = 0.0 if divisors is None else divisors[k]
        out[k] = (
            kind, keep.key & 0xFFFFFFFF, ranks, least, _above(least), most, -_above(-most), _whole(keep.until),
            _whole(keep.after), share, step, _gain(keep, by), divides, 1.0, divisor,
        )  # fmt: skip
    return out


def _gain(keep: Keep, by: float) -> float:
    gain = keep.factor * by
    if not keep.rescale:
        return gain
    if keep.ranks is not None:
        return gain * UNIT
    if keep.share >= 1:
        return gain
    whole = _whole(keep.share)
    return gain * UNIT / whole if whole else 0.0


def _whole(share: float) -> int:
    """How many of UNIT draws stay."""
    return max(0, math.ceil(share * UNIT))


def fours(count: int) -> int:
    """The least multiple of four that is not below a count: the kernels take experts by fours."""
    return -(-count // 4) * 4


def _padded(experts: NDArray[np.void]) -> NDArray[np.void]:
    return np.concatenate([experts, np.zeros(fours(len(experts)) - len(experts), EXPERT)])


def _upward(number: float) -> np.float32:
    """The least float32 that is not below a number, so that comparing with either is the same."""
    found = np.float32(number)
    return found if float(found) >= number else np.nextafter(found, np.float32(np.inf))


def _above(number: np.float32) -> np.float32:
    with np.errstate(over="ignore"):  # above the largest is infinity
        return np.float32(np.nextafter(number, np.float32(np.inf)))


def _lines(c: Composition, weights: NDArray[np.float32], shape: tuple[int, ...]) -> Lines:
    run = 1 if c.columns else shape[-1]
    return Lines(run, np.ascontiguousarray(c.base, dtype=np.float32), np.ascontiguousarray(weights.T))
