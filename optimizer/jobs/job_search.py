"""What does a job say of its search? The driver, its gradients, and on how many items candidates are scored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from optimizer.jobs.job_space import Strict
from optimizer.rungs.plan import Rule


class Gradients(Strict):
    """What gradients are taken of, and on which items."""

    loss: str | dict[str, float] | None = None
    """One kind of loss, or weights by kind: `{cross_entropy: 1.0, kl: 0.5}` Default: the driver's."""
    temperature: float | None = Field(None, ge=1e-3, le=1e3)
    """Of the kind `kl`. Default: the driver's (1, of `dam` 2)."""
    tasks: list[str] | None = Field(None, min_length=1)
    """The evaluators whose losses are differentiated; each is one task. Default: all."""
    train: float = Field(0.75, gt=0, lt=1)
    """The share of the calibration items that gradients see; candidates are scored on the rest."""
    parts: int | None = Field(None, ge=1, le=1024)
    """In how many parts a gradient is computed, side by side where there are workers; another number rounds
    differently, so it is the run's and not the cluster's. Default: `4`."""


class DriverEntry(BaseModel):
    """The search driver. What is beside the named keys are its own options, checked by itself."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    name: str = "auto"
    """`auto`, `cma`, `tpe`, `gp`, `nsga2`, `nsga3`, `map`, `sobol`, `random` (docs/search.md), an average or another
    heuristic (docs/heuristics.md), or one that asks for gradients: docs/gradients.md"""
    anchors: bool = True
    """Ask base, experts, averages and a sweep of one global coefficient first, for each method; `expert: NAME` is that
    expert itself, `alone: NAME` what a method that changes it makes of it; at most half of the budget
    (docs/job.md#anchors-of-a-small-budget); references: docs/job.md#what-a-run-is-compared-with"""
    preferences: list[list[float]] | None = None
    """Weights of the objectives, one row a search direction, for a driver of one objective (`cma`). Default: a
    spread."""
    scalarisation: Literal["sum", "tchebycheff"] = "sum"
    """What such a driver minimises, in units of the anchors' range: `sum`, the weighted sum, or `tchebycheff`, the
    largest weighted distance from the anchors' best and 0.05 of the sum."""
    gradients: Gradients | None = None
    """For drivers that ask for gradients (docs/gradients.md); `auto` does where this is there, `{}` included."""

    @property
    def parts(self) -> int | None:
        """In how many parts a gradient is computed, where the job says so."""
        return self.gradients.parts if self.gradients is not None else None

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Fidelity(Strict):
    """How candidates are scored on few items before they are worth all."""

    rungs: list[Annotated[int, Field(ge=1, strict=True)]] = Field(min_length=1, max_length=20)
    """Items of each task that a candidate is scored on before it is worth all, growing: `[20, 60]`; all calibration
    items are the last rung, and those of the smallest task are more than these."""
    rule: Rule = "halving"
    """Who goes on at a rung. `halving`: the best `keep` of the last 100 candidates there, by the hypervolume that each
    is expected to add to the front, its error taken into account. `racing`: all but those that one of the front beats
    in every objective with probability `sure`, by the differences on the items that both were scored on."""
    keep: float = Field(0.1, gt=0, lt=1)
    """The share of candidates that goes on at a rung, by `halving`."""
    final: float = Field(0.1, ge=0, le=1)
    """When the search is over, this share of all candidates that were answered is scored on all items: of those that
    had stopped the ones that promise most beside each other. Not counted by `budget.evaluations`; not done where
    `budget.hours`, `gpu_hours` or `money` ended the search, since that is spent."""
    sure: float = Field(0.95, ge=0.5, lt=1)
    """How sure it must be that a candidate is worse before it stops at a rung, by `racing`."""
    estimate: str = "paired"
    """How a score on all items is told from some: docs/fidelity.md#estimates"""
    choose: str = "turns"
    """Which items come first. `turns`: others for each candidate until all had their turn, then anew in another order,
    so that the search as a whole sees all (but for less than a rung of them) and cannot fit a few; `random`: the same
    drawn ones for all; `clusters`, `herding`: those that stand for the others, by the first eight candidates. Items of
    a turn go through the model in batches of their own; chosen ones take the whole batches that they are in, which
    suits evaluators of small batches."""

    @model_validator(mode="after")
    def _rungs_grow(self) -> Fidelity:
        if any(b <= a for a, b in zip(self.rungs, self.rungs[1:], strict=False)):
            raise ValueError(f"rungs: expected numbers of items that grow, got {self.rungs}; sort them, each once")
        return self

    def usual_share(self, items: int) -> float:
        """What share of a task's items a candidate is scored on, on average; at most that where the rule is `racing`.

        Of `halving` a share `keep` of those that come to a rung goes on.
        """
        keep = self.keep if self.rule == "halving" else 1.0
        ends = [*self.rungs, items]
        blocks = [b - a for a, b in zip([0, *ends], ends, strict=False)]
        return sum(keep**rung * block for rung, block in enumerate(blocks)) / items

    def final_share(self, items: int) -> float:
        """What share of all candidates' items is scored at the end, where those that go on then had stopped first."""
        return self.final * (1 - self.rungs[0] / items)
