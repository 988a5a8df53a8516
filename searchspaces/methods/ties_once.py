"""What is TIES with signs elected once? Trimmed task vectors without what disagrees, then task arithmetic on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces.errors import RecipeError
from searchspaces.method import Mix, Option, Tensors

CHUNK = 1 << 22  # elements looked at together


class TiesOnce:
    """`W = theta_0 + lambda * sum_k c_k tau'_k`, linear in c: what AdaMerging++ learns c of (Yang et al., ICLR 2024).

    `tau'_k` keeps of `tau_k` the share `density` of largest magnitude, and of that what has the sign of the sum over
    experts of what was kept (TIES, Yadav et al., NeurIPS 2023, sections 3.1 and 3.2; the sign of a sum of 0 agrees with
    none). Signs are elected once, whatever the coefficients. Option `scope`: magnitudes are ranked over the whole model
    (`model`, as both papers' code does), or within each tensor (`tensor`). Each entry of `theta_0 + tau'_k` is an entry
    of theta_k or of theta_0, and so exact in their dtype.
    """

    summary: ClassVar[str] = "task arithmetic on task vectors trimmed, and stripped of what disagrees in sign, once"
    defaults: ClassVar[Mapping[str, Option]] = {"density": 0.2, "lambda": 1.0, "scope": "model"}
    linear: ClassVar[bool] = True
    random: ClassVar[bool] = False
    processes: ClassVar[bool] = True
    version: ClassVar[int] = 1

    def __init__(self, options: Mapping[str, Option]) -> None:
        self._density, self._scale, self._scope = float(options["density"]), float(options["lambda"]), options["scope"]
        if not 0 < self._density <= 1:
            raise RecipeError(f"method ties_once: density is {self._density}, expected a share above 0 and at most 1")
        if self._scale == 0.0:
            raise RecipeError("method ties_once: lambda is 0, which makes every candidate the base; leave it out")
        if self._scope not in ("model", "tensor"):
            raise RecipeError(f"method ties_once: scope is {self._scope!r}, expected model or tensor")
        self.unit = 1.0 / self._scale
        self.affine = True
        self.sweep = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
        self._least: list[float] | None = None

    def mix(self, coefficients: NDArray[np.float64]) -> Mix:
        """Scales of the base, all 1, and of the processed task vectors, `lambda * c`."""
        return np.ones(len(coefficients)), self._scale * coefficients

    def pull(self, coefficients: NDArray[np.float64], scales: Mix) -> NDArray[np.float64]:
        """`lambda * d_k`; the base's scale does not depend on the coefficients."""
        return np.asarray(self._scale * scales[1])

    def survey(self, tensors: Tensors) -> None:
        """The least magnitude that each expert keeps, where that is one for the whole model."""
        self._least = thresholds(tensors, self._density) if self._scope == "model" else None

    def process(self, name: str, base: torch.Tensor, experts: Mapping[str, torch.Tensor]) -> Iterator[torch.Tensor]:
        """Entries of the expert where its task vector is kept and agrees, of the base elsewhere."""
        least = self._least
        if least is None:
            least = thresholds(lambda: iter([(name, base, experts)]), self._density)
        # twice over the experts, so that no more than one task vector is held
        elected = torch.zeros(base.shape)
        for expert, bound in zip(experts.values(), least, strict=True):
            elected += _trimmed(expert, base, bound)
        elected.sign_()
        for expert, bound in zip(experts.values(), least, strict=True):
            sign = _trimmed(expert, base, bound).sign_()
            wide = torch.promote_types(expert.dtype, base.dtype)
            yield torch.where((sign != 0) & (sign == elected), expert.to(wide), base.to(wide))


def thresholds(tensors: Tensors, density: float) -> list[float]:
    """The magnitude of rank `ceil(density * n)` among all n entries of each expert's task vector; (K,), exact.

    Bits of positive fp32 numbers sort as the numbers do: a histogram of their upper halves finds the bin of that rank,
    and one of the lower halves, within the bin, the number. Memory is a histogram an expert, whatever the model.
    """
    upper, count = _histograms(tensors, None)
    rank = math.ceil(density * count)
    bins, before = zip(*(_bin(h, rank) for h in upper), strict=True)
    lower, _ = _histograms(tensors, bins)
    low = [_bin(h, rank - above)[0] for h, above in zip(lower, before, strict=True)]
    bits = np.array([(b << 16) | w for b, w in zip(bins, low, strict=True)], dtype=np.uint32)
    return [float(x) for x in bits.view(np.float32)]


def _histograms(tensors: Tensors, bins: Sequence[int] | None) -> tuple[list[NDArray[np.int64]], int]:
    """Counts of the upper 16 bits of each expert's magnitudes, or of the lower ones where the upper are `bins`."""
    found: list[NDArray[np.int64]] = []
    count = 0
    for _, base, experts in tensors():
        count += base.numel()
        for k, expert in enumerate(experts.values()):
            if k == len(found):
                found.append(np.zeros(1 << 16, dtype=np.int64))
            for at in range(0, base.numel(), CHUNK):
                part = slice(at, at + CHUNK)
                bits = _delta(expert.reshape(-1)[part], base.reshape(-1)[part]).abs().numpy().view(np.uint32)
                if bins is not None:
                    bits = bits[bits >> 16 == bins[k]] & 0xFFFF
                found[k] += np.bincount(bits if bins is not None else bits >> 16, minlength=1 << 16)
    return found, count


def _bin(histogram: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """The bin that holds the entry of this rank (1 is the largest), and how many entries lie above that bin."""
    above = np.cumsum(histogram[::-1])
    place = int(np.searchsorted(above, rank))
    return len(histogram) - 1 - place, int(above[place - 1]) if place else 0


def _delta(expert: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    return expert.float() - base.float()


def _trimmed(expert: torch.Tensor, base: torch.Tensor, least: float) -> torch.Tensor:
    """The task vector without its entries below a magnitude."""
    delta = _delta(expert, base)
    return delta.masked_fill_(delta.abs() < least, 0.0)
