"""What is Fisher merging? An average entry by entry, weighted by how much an expert's predictions hang on the entry."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch

from searchspaces.errors import PoolError
from searchspaces.given import Given
from searchspaces.method import LAMBDA, OnProcessed
from searchspaces.option import Number, Option, Spec

log = logging.getLogger(__name__)


class Fisher(OnProcessed):
    """`W = theta_0 + lambda * sum_k c_k tau'_k` with `tau'_k = F_k tau_k / sum_j F_j`, entry by entry.

    F_k is expert k's diagonal Fisher information on its own calibration items, at least `floor` everywhere (Matena &
    Raffel, NeurIPS 2022, 2111.09832, with equal weights of the models; the floor is their code's). All coefficients 1
    give the published merge, and other coefficients scale the experts' shares: that stays linear, where the paper's
    weights of models inside the fraction are not. Where nothing was gathered of a tensor for an expert, its F is the
    floor; where all F of an entry are 0 (a floor of 0), experts are averaged. The floor is absolute, and Fishers are
    not: a warning tells of experts most of whose entries are at it.
    """

    summary: ClassVar[str] = "task arithmetic on task vectors weighted by diagonal Fisher information, entry by entry"
    options: ClassVar[Mapping[str, Spec]] = {
        "lambda": LAMBDA,
        "floor": Number(
            1e-6,
            0.0,
            1.0,
            prepared=True,
            says="The least information that an entry counts with; more averages what is little known.",
        ),
    }
    version: ClassVar[int] = 2
    gathers: ClassVar[str] = "fisher"
    usual = 1.0  # the published merge

    def __init__(self, options: Mapping[str, Option]) -> None:
        super().__init__(options)
        self._floor = float(options["floor"])
        self._entries = 0
        self._floored: Counter[str] = Counter()

    def process(self, given: Given) -> Iterator[torch.Tensor]:
        """Each expert's share of each entry, times its task vector. Raises PoolError for a Fisher that does not fit."""
        base, experts, statistics = given.base, given.experts, given.statistics
        for expert in experts.keys() & statistics.keys():
            _check(given.name, expert, statistics[expert], base)
        total = torch.zeros(base.shape, dtype=torch.float64)  # of large ones the sum may be no float32
        self._entries += base.numel()
        for expert in experts:  # once to sum, once to share: no more than one expert's Fisher is held
            own = self._of(expert, statistics, base)
            self._floored[expert] += int((own <= self._floor).sum())
            total += own
        for expert, tensor in experts.items():
            share = torch.where(total > 0, self._of(expert, statistics, base) / total, 1 / len(experts))
            yield (tensor.float() - base.float()).mul_(share.float())

    def conclude(self) -> None:
        """Warn of experts most of whose entries have no more than the floor: it decides there, and not their data."""
        for expert, count in self._floored.items():
            if 2 * count > self._entries:
                log.warning(
                    "method fisher: %.0f %% of expert %r's entries have a Fisher information of at most %g, the floor; "
                    "where all experts' have, they are averaged: lower option floor, or give the expert more items",
                    100 * count / self._entries, expert, self._floor,
                )  # fmt: skip

    def _of(self, expert: str, statistics: Mapping[str, torch.Tensor], base: torch.Tensor) -> torch.Tensor:
        found = statistics.get(expert)
        return torch.full(base.shape, self._floor) if found is None else found.float().clamp(min=self._floor)


def _check(name: str, expert: str, found: torch.Tensor, base: torch.Tensor) -> None:
    fits = found.shape == base.shape
    if not fits or not bool(torch.isfinite(found).all()) or bool((found < 0).any()):
        what = "NaN, infinity or a negative entry" if fits else f"shape {tuple(found.shape)}"
        raise PoolError(
            f"expert {expert!r}: the Fisher information of {name!r} {tuple(base.shape)} has {what}; remove the "
            "statistics, and look at the expert's data"
        )
