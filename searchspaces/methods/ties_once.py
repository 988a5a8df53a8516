"""What is TIES with signs elected once? Trimmed task vectors without what disagrees, then task arithmetic on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

import torch

from searchspaces.algebra.draws import UNIT, draws_at, key_of
from searchspaces.algebra.quantiles import ranked, task_vectors
from searchspaces.given import Given
from searchspaces.method import LAMBDA, OnProcessed, Tensors
from searchspaces.option import Choice, Number, Option, Spec

CHUNK = 1 << 20  # entries that are drawn together; none crosses a multiple of 2 ** 32


class TiesOnce(OnProcessed):
    """`W = theta_0 + lambda * sum_k c_k tau'_k`, linear in c: what AdaMerging++ learns c of (Yang et al., ICLR 2024).

    `tau'_k` keeps of `tau_k` the share `density` of largest magnitude, and of that what has the sign of the sum over
    experts of what was kept (TIES, Yadav et al., NeurIPS 2023, sections 3.1 and 3.2). Their code differs in two things:
    entries as large as the least one that stays (in bf16 a good part of all) it keeps all, where here as many stay as
    make up `density` (draws by expert, tensor and place say which); and a sum of 0 (in bf16 .4 % to 1 % of the places
    that are kept) it gives the sign that most of the model's sums have, where here such a sum agrees with none. Signs
    are elected once, whatever the coefficients. Option `scope`: magnitudes are ranked over the whole model (`model`, as
    both papers' code does), or within each tensor (`tensor`). Option `combine`: the `sum` of what agrees, as in
    AdaMerging++, or its `mean`, `tau'_k` being divided by the number of experts that agree at an entry: with all c = 1
    that is TIES (section 3.3) but for those two things, lambda being theirs. One expert alone is trimmed too.
    """

    summary: ClassVar[str] = "task arithmetic on task vectors trimmed, and stripped of what disagrees in sign, once"
    options: ClassVar[Mapping[str, Spec]] = {
        "combine": Choice(
            "sum",
            ("sum", "mean"),
            prepared=True,
            says="The sum of what agrees in sign, or the mean of it, entry by entry.",
        ),
        "density": Number(
            0.2, 0.0, 1.0, above=True, prepared=True, says="The share of entries that stay, the largest; 1 keeps all."
        ),
        "lambda": LAMBDA,
        "scope": Choice(
            "model",
            ("model", "tensor"),
            prepared=True,
            says="Over what magnitudes are ranked: the whole model, or each tensor.",
        ),
    }
    version: ClassVar[int] = 3

    def __init__(self, options: Mapping[str, Option]) -> None:
        super().__init__(options)
        self._density, self._scope, self._combine = float(options["density"]), options["scope"], options["combine"]
        self._bounds: list[Bound] | None = None

    def survey(self, tensors: Tensors) -> None:
        """The least magnitude that each expert keeps, where that is one for the whole model."""
        self._bounds = thresholds(tensors, self._density) if self._scope == "model" else None

    def process(self, given: Given) -> Iterator[torch.Tensor]:
        """Entries of the task vector where it is kept and agrees, or shares of them, 0 elsewhere."""
        base, experts = given.base, given.experts
        bounds = self._bounds
        if bounds is None:
            bounds = thresholds(lambda: iter([(given.name, base, experts)]), self._density)
        # over the experts again and again, so that no more than one task vector is held
        elected = torch.zeros(base.shape)
        for k, bound in enumerate(bounds):
            elected += _trimmed(given, k, bound)
        elected.sign_()
        agreeing = torch.ones(base.shape)
        if self._combine == "mean":
            agreeing.zero_()
            for k, bound in enumerate(bounds):
                agreeing += _trimmed(given, k, bound).sign_() == elected
            agreeing.clamp_(min=1.0)
        for k, bound in enumerate(bounds):
            delta = _trimmed(given, k, bound)
            yield delta.masked_fill_(delta.sign() != elected, 0.0).div_(agreeing)


class Bound(NamedTuple):
    """The least magnitude that stays of an expert, and the share that does of its entries of just that magnitude."""

    least: float
    until: float


def thresholds(tensors: Tensors, density: float) -> list[Bound]:
    """By the magnitude of rank `ceil(density * n)` among all n entries of each expert's task vector; (K,), exact."""
    magnitudes = ranked(
        lambda: ([part.abs_() for part in parts] for parts in task_vectors(tensors())),
        lambda count: [count - math.ceil(density * count)],
    )
    return [Bound(found.number, 1 - found.before / found.equal) for (found,) in magnitudes]


def _trimmed(given: Given, k: int, bound: Bound) -> torch.Tensor:
    """The task vector of the k-th expert without what does not stay."""
    expert, tensor = list(given.experts.items())[k]
    delta = tensor.float() - given.base.float()
    size = delta.abs()
    out = size < bound.least
    if bound.until < 1 and bound.least > 0:  # which zeros stay makes no difference
        flat, tied = out.view(-1), (size == bound.least).view(-1)
        key, most = key_of(expert, given.name), math.ceil(bound.until * UNIT)
        for at in range(0, len(flat), CHUNK):
            places = tied[at : at + CHUNK].nonzero()[:, 0] + at
            flat[places] = draws_at(key, places, at >> 32) >= most
    return delta.masked_fill_(out, 0.0)
