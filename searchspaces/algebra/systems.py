"""How do Grams of inputs weigh task vectors against each other? Systems of linear equations, one a linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from searchspaces.errors import PoolError
from searchspaces.given import Given


@dataclass(frozen=True, eq=False)
class Grams:
    """Of one linear layer: a symmetric `G_k` for each expert, made when asked for, off its diagonal times `scale`.

    An expert without one, whose data never reached the layer, has one of zeros: it weighs nothing. An input that is 0
    at every position of every expert's data says nothing of what is to become of its weights: each expert has the same
    positive number there, so that they are averaged.
    """

    raw: Mapping[str, torch.Tensor]
    count: int  # experts, with or without a Gram
    scale: float
    first: bool  # the inputs are the tensor's first dimension

    def of(self, expert: str) -> torch.Tensor:
        """`G_k`, float64 `(n, n)`."""
        found = self._scaled(expert) if expert in self.raw else torch.zeros_like(self._unseen).diag()
        found.diagonal().add_(self._unseen)
        return found

    @cached_property
    def total(self) -> torch.Tensor:
        """`sum_k G_k`, float64 `(n, n)`."""
        found = torch.diag(self._unseen * self.count)
        for expert in self.raw:
            found += self._scaled(expert)
        return found

    def inward(self, tau: torch.Tensor) -> torch.Tensor:
        """A task vector as the matrix that the Grams multiply from the left: float64 `(n, outputs)`."""
        return (tau if self.first else tau.T).double()

    def outward(self, solved: torch.Tensor) -> torch.Tensor:
        """The inverse of `inward`, float32 and contiguous."""
        return (solved if self.first else solved.T).float().contiguous()

    @cached_property
    def _unseen(self) -> torch.Tensor:
        seen = torch.stack([gram.flatten(1).diagonal().double() for gram in self.raw.values()]).sum(0)
        return (seen <= 0) * seen[seen > 0].mean()

    def _scaled(self, expert: str) -> torch.Tensor:
        wide = self.raw[expert].flatten(1).double()
        diagonal = wide.diagonal().clone()
        wide = (wide + wide.T).mul_(self.scale / 2)  # a sum of x x^T is symmetric but for rounding
        wide.diagonal().copy_(diagonal)
        return wide


def grams_of(given: Given, scale: float) -> Grams | None:
    """The Grams of a tensor (see `searchspaces.facts.gathered`).

    None where no expert has one (what is no linear layer's has none), or all of them are 0. Raises PoolError, naming
    tensor and expert, for one that does not fit or is not finite.
    """
    base, found = given.base, {e: given.statistics[e] for e in given.experts if e in given.statistics}
    if base.dim() != 2 or not found:
        return None
    first = next(iter(found.values())).dim() == 3
    width = base.shape[0 if first else 1]
    expected = (width, width, 1) if first else (width, width)
    for expert, gram in found.items():
        fits = tuple(gram.shape) == expected
        if not fits or not bool(torch.isfinite(gram).all()) or bool((gram.flatten(1).diagonal() < 0).any()):
            what = "NaN, infinity, or a negative entry on its diagonal" if fits else f"shape {tuple(gram.shape)}"
            raise PoolError(
                f"expert {expert!r}: the Gram of the inputs of {given.name!r} {tuple(base.shape)} has {what}, expected "
                f"{expected} finite numbers; remove the statistics, and look at the expert's data"
            )
    if not any(bool(gram.flatten(1).diagonal().any()) for gram in found.values()):
        return None
    return Grams(found, len(given.experts), scale, first)
