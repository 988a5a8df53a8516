"""What is PCB-Merging? An average of task vectors in which each entry weighs what it is worth among its competitors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

import torch

from searchspaces.algebra.quantiles import ranked, task_vectors
from searchspaces.given import Given
from searchspaces.method import LAMBDA, OnProcessed, Tensors
from searchspaces.option import Number, Option, Spec

OUTLIERS = 1e-4  # the share of entries at either end whose magnitudes are pulled in
LARGEST = 80.0  # exponents of e end here: a little above, float32 does


class PCB(OnProcessed):
    """`W = theta_0 + lambda * sum_k c_k (b_k a_k / sum_j b_j)`, entry by entry: Parameter Competition Balancing,
    Du et al., NeurIPS 2024, 2410.02396, as `pcb-merging.py` of the authors' code (duguodong7/pcb-merging) has it.

    `a_k` is `tau_k` with the 0.01 % least and the 0.01 % largest magnitudes pulled in to the next one. An entry's score
    is `exp(K N(|a_k|)^2) tanh(tau_k sum_j tau_j)`: how large it is in its own expert, N taking the least to 0 and the
    largest to 1, and how much it agrees with the others. `b_k` is 0 up to the score above which the share `ratio` lies,
    and goes from there in proportion to 1 for the largest. Ranks are over all merged tensors of an expert together. All
    coefficients 1 are the authors' merge; their lambda, 1.2 in their code, is searched for, and by task it is c.

    Where the paper differs the code is followed: the paper has softmax for exp and for tanh. The authors' scripts for
    vision scale task vectors before tanh and pull in 1 % at either end; this is the one that they show as the method. A
    common factor of an expert's scores cancels: with more than 80 experts all of them are smaller by one, since
    `exp(K)` is no float32. Equal magnitudes all have N = 0, and scores that are equal from there on b = 1 where they
    are above 0: the code divides 0 by 0. One expert alone has no competitors, and stays itself (the code would drop its
    smaller entries).
    """

    summary: ClassVar[str] = "average of task vectors, each entry weighed by size and agreement (PCB-Merging)"
    options: ClassVar[Mapping[str, Spec]] = {
        "lambda": LAMBDA,
        "ratio": Number(
            0.1,
            0.0,
            1.0,
            above=True,
            prepared=True,
            says="The share of entries that stay, those of the highest scores; 1 keeps all.",
        ),
    }
    version: ClassVar[int] = 2
    usual = 1.0  # the published merge

    def __init__(self, options: Mapping[str, Option]) -> None:
        super().__init__(options)
        self._ratio = float(options["ratio"])
        self._bounds: list[Bounds] = []

    def survey(self, tensors: Tensors) -> None:
        """The magnitudes and scores between which each expert's entries are weighed: four passes over all models."""
        magnitudes = ranked(
            lambda: ([part.abs_() for part in parts] for parts in task_vectors(tensors())),
            lambda n: [int(n * OUTLIERS), max(0, int(n * (1 - OUTLIERS) - 1))],
        )
        ends = [(least.number, most.number) for least, most in magnitudes]

        def scores() -> Iterator[list[torch.Tensor]]:
            for parts in task_vectors(tensors()):
                total = sum(parts[1:], parts[0])  # in the order of `process`
                yield [_score(part, total, *end, len(parts)) for part, end in zip(parts, ends, strict=True)]

        found = ranked(scores, lambda n: [min(int(n * (1 - self._ratio)), n - 1), n - 1])
        self._bounds = [Bounds(*end, *(s.number for s in score)) for end, score in zip(ends, found, strict=True)]

    def process(self, given: Given) -> Iterator[torch.Tensor]:
        """`b_k a_k / sum_j b_j`, of any shape; 0 where all b are. Three times over the experts, so that one is held."""
        base, experts, count = given.base.float(), given.experts, len(given.experts)
        if count == 1:
            yield from given.averaged()
            return
        total, weights = torch.zeros(base.shape), torch.zeros(base.shape)
        for expert in experts.values():
            total += expert.float() - base
        for expert, bounds in zip(experts.values(), self._bounds, strict=True):
            weights += bounds.weigh(expert.float() - base, total, count)
        weights.clamp_(min=1e-12)
        for expert, bounds in zip(experts.values(), self._bounds, strict=True):
            delta = expert.float() - base
            weight = bounds.weigh(delta, total, count).div_(weights)
            yield weight.mul_(delta.sign()).mul_(delta.abs_().clamp_(bounds.least, bounds.most))


class Bounds(NamedTuple):
    """Of one expert: the least and largest magnitude, and the scores whose weight is 0 and 1."""

    least: float
    most: float
    low: float
    high: float

    def weigh(self, delta: torch.Tensor, total: torch.Tensor, count: int) -> torch.Tensor:
        """`b_k` of a task vector, for the sum of all K of them."""
        score = _score(delta, total, self.least, self.most, count)
        if self.high <= self.low:
            return ((score >= self.high) & (score > 0)).float()
        return score.sub_(self.low).div_(self.high - self.low).clamp_(0.0, 1.0)


def _score(delta: torch.Tensor, total: torch.Tensor, least: float, most: float, count: int) -> torch.Tensor:
    agree = (delta * total).tanh_()
    if most <= least:
        return agree
    size = delta.abs().clamp_(least, most).sub_(least).div_(most - least)
    return size.square_().mul_(count).sub_(max(0.0, count - LARGEST)).exp_().mul_(agree)
