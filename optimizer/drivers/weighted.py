"""How much of each expert, going by its scores? Averages whose weights are powers, or a softmax, of the losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from optimizer.driver import Domain, DriverError
from optimizer.drivers.shared.experts import average, checked_vertices, names
from optimizer.drivers.shared.rounds import Plan, Rounds, Wish

Array: TypeAlias = NDArray[np.float64]
Positive = Annotated[float, Field(gt=0)]
Each = Annotated[
    bool, Field(description="Whether there are merges by each objective alone too, where there are several.")
]


class MetricsWeighted(Rounds):
    """Metrics-weighted averaging (arXiv:2504.18580): the experts' average, weighted by a power of their scores.

    Of losses L the weights are `L_k^-p / sum L^-p`; of metrics that are to be large, `score_k^p / sum score^p`. Where
    these have no powers (they are zero, or of both signs), 1 + their place in the experts' range stands for the loss.
    Of several objectives the weights are averaged; and each by itself makes a merge too. Experts that failed are left
    out. All merges are asked at once.
    """

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
        exponents: tuple[Positive, ...] = Field(
            (0.5, 1.0, 2.0, 4.0, 8.0),
            min_length=1,
            description="Powers of the scores, each a merge; larger leans more to the best expert. The paper has one,"
            " tuned.",
        )
        each: Each = True

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        vertices = checked_vertices("metrics_weighted", domain)
        rules = [(f"exponent {p:g}", _power(p)) for p in options.exponents]
        super().__init__(
            *("metrics_weighted", domain, objectives),
            lambda anchors: _plan(domain, vertices, names(domain), rules, options.each),
        )


class Cocktail(Rounds):
    """LM-Cocktail's weights (Xiao et al. 2023, arXiv:2311.13534): a softmax of minus the losses over a temperature.

    `w_k = exp(-L_k / T) / sum exp(-L / T)`, L in the objectives' own units. Of several objectives the weights are
    averaged; and each by itself makes a merge too, which is the paper's case: one target task, known by a few items.
    Experts that failed are left out. All merges are asked at once.
    """

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
        temperatures: tuple[Positive, ...] = Field(
            (5.0, 1.0, 0.2, 0.05),
            min_length=1,
            description="Of the softmax, in units of the losses, each a merge; larger weighs experts more alike. The"
            " authors' code has 5.",
        )
        each: Each = True
        base: bool = Field(False, description="Whether the base is weighed among the experts.")

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        vertices, called = checked_vertices("lm_cocktail", domain), names(domain)
        if options.base:
            if domain.base is None or (domain.base < domain.low).any() or (domain.base > domain.high).any():
                raise DriverError(
                    "driver.base: this space does not reach the base; widen space.bounds to hold 0, take a method that "
                    "starts there, or leave base out"
                )
            vertices, called = np.vstack([vertices, domain.base]), [*called, "base"]
        rules = [(f"temperature {t:g}", _softmax(t)) for t in options.temperatures]
        super().__init__(
            *("lm_cocktail", domain, objectives),
            lambda anchors: _plan(domain, vertices, called, rules, options.each),
        )


def _plan(
    domain: Domain,
    corners: Array,  # (n, dim), the models
    called: Sequence[str],  # n
    rules: Sequence[tuple[str, Callable[[Array], Array]]],  # from losses (n,) to weights (n,) that sum to 1
    each: bool,
) -> Plan:
    """The models alone, then by each rule their average, and that of each objective."""
    found = yield [Wish(f"model {name}", corner) for name, corner in zip(called, corners, strict=True)]
    left = [k for k, outcome in enumerate(found) if outcome.failure is None]
    if not left:
        return
    losses = np.array([found[k].losses for k in left])  # (n, m)
    wishes = []
    for label, rule in rules:
        rows = np.array([rule(column) for column in losses.T])  # (m, n)
        wishes.append(Wish(label, average(domain, corners[left], rows.mean(axis=0))))
        if each and len(rows) > 1:
            wishes += [
                Wish(f"{label}, objective {j}", average(domain, corners[left], row)) for j, row in enumerate(rows, 1)
            ]
    yield wishes


def _power(exponent: float) -> Callable[[Array], Array]:
    def rule(losses: Array) -> Array:
        return _normalised(-exponent * np.log(_as_losses(losses)))

    return rule


def _softmax(temperature: float) -> Callable[[Array], Array]:
    return lambda losses: _normalised(-losses / temperature)


def _as_losses(losses: Array) -> Array:
    """Positive numbers `(n,)`, less is better, whose powers are weights; inf for a score of 0."""
    if (losses > 0).all():
        return losses
    if (losses <= 0).all() and (losses < 0).any():  # scores that are to be large, with their sign turned
        return np.asarray(np.divide(1.0, -losses, out=np.full(len(losses), np.inf), where=losses < 0))
    span = np.ptp(losses)
    return np.asarray(1.0 + (losses - losses.min()) / (span if span > 0 else 1.0))


def _normalised(logs: Array) -> Array:
    """Weights from their logarithms, without overflow."""
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum())
