"""Which expert is worth going towards? Frank-Wolfe over the experts: step by step, or chosen and then learned."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from optimizer import descent
from optimizer.adam import AdamRule, Bounds
from optimizer.descent import Descent
from optimizer.driver import Domain, DriverError, Outcome, Point, Wants


class FrankWolfe(Descent):
    """Steps towards experts (FW-Merging, hard; Chen et al., ICCV 2025, arXiv:2503.12649, algorithm 1).

    In coefficient space it is exact: the feasible set is, for each group, the hull of the starting point and of the
    experts' vertices e_k; the linear minimisation oracle picks the expert with the least `<gradient, e_k>`, one for the
    whole model or one a group; and `c += gamma_t (e_k - c)` with `gamma_t = step * 2 / (t + 2)`. Rule `cosine` is that
    of the authors' code: the least sum over tensors of `cos(dL/dW, theta_k)`.
    """

    class Options(descent.Options):
        """Published: 10 iterations, 100 items a task, `step` 0.1 for vision and 1 for language, one expert a time."""

        steps: int = Field(10, ge=1)
        batch: int = Field(100, ge=0)
        every: int = Field(1, ge=1)
        patience: int | None = Field(None, ge=1)
        start: descent.Start = "base"
        rule: Literal["inner", "cosine"] = "inner"
        scope: Literal["model", "group"] = "model"
        step: float = Field(1.0, gt=0, le=1)

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        check_vertices(domain)
        super().__init__(*("frank_wolfe", domain, objectives, options), lambda start: _Hard(domain, start, options))


class _Hard:
    whole = False
    done = False

    def __init__(self, domain: Domain, start: Point, options: FrankWolfe.Options) -> None:
        self.wants: Wants = "cosines" if options.rule == "cosine" else "gradient"
        self._shape, self._options = domain.shape, options
        self._point = self._good = start
        self._step = options.step
        self._count = 0

    @property
    def point(self) -> Point:
        return self._point

    def update(self, outcome: Outcome) -> Point:
        assert outcome.gradient is not None
        slope = outcome.gradient[0].reshape(self._shape)
        if self._options.scope == "model":
            slope = np.broadcast_to(slope.sum(axis=0), self._shape)
        vertex = np.eye(self._shape[1])[slope.argmin(axis=1)].ravel()
        self._good = self._point
        self._point = self._point + self._step * 2 / (self._count + 2) * (vertex - self._point)
        self._count += 1
        return self._point

    def back(self) -> None:
        self._point, self._step = self._good, self._step / 2


class SoftFrankWolfe(Descent):
    """Adds experts, and learns the coefficients of those added (FW-Merging, soft; arXiv:2503.12649, algorithm 2).

    In each round the oracle picks, for each task, the unused expert with the least `<gradient of that task, e_k>` over
    the whole model, on all training items (on a few, noise lets irrelevant experts in, and they stay); what is added
    begins at `enter`. Then `inner` steps of Adam on the coefficients of all that were
    added; the others stay 0. It ends after `rounds`, or when every expert is in.
    """

    class Options(descent.Options):
        """Published: 10 to 15 rounds of 500 steps, lr 1e-3. `steps` bounds all of it, questions for the oracle too."""

        steps: int = Field(6000, ge=1)
        rounds: int = Field(12, ge=1)
        inner: int = Field(500, ge=1)
        enter: float = Field(0.1, gt=0, le=1)
        start: descent.Start = "base"
        bounds: Bounds = "clamp"

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        check_vertices(domain)
        super().__init__(
            *("frank_wolfe_soft", domain, objectives, options), lambda start: _Soft(domain, start, options)
        )


class _Soft:
    def __init__(self, domain: Domain, start: Point, options: SoftFrankWolfe.Options) -> None:
        self._domain, self._options, self._start = domain, options, start
        self._chosen: set[int] = set()
        self._inner: AdamRule | None = None
        self._left = 0  # steps of this round
        self._rounds = 0

    @property
    def point(self) -> Point:
        return self._start if self._inner is None else self._inner.point

    @property
    def wants(self) -> Wants:
        return "gradient" if self._left else "gradients"

    @property
    def whole(self) -> bool:
        return not self._left

    @property
    def done(self) -> bool:
        full = len(self._chosen) == self._domain.shape[1]
        return not self._left and (full or self._rounds >= self._options.rounds)

    def update(self, outcome: Outcome) -> Point:
        if self._left:
            assert self._inner is not None
            self._left -= 1
            return self._inner.update(outcome)
        assert outcome.gradient is not None
        experts = self._domain.shape[1]
        point = self.point.reshape(self._domain.shape).copy()
        for row in outcome.gradient:
            slope = row.reshape(self._domain.shape).sum(axis=0)
            unused = [k for k in np.argsort(slope, kind="stable").tolist() if k not in self._chosen]
            if unused:
                self._chosen.add(unused[0])
                point[:, unused[0]] = self._options.enter
        free = np.tile(np.isin(np.arange(experts), sorted(self._chosen)), self._domain.shape[0])
        self._inner = AdamRule(self._domain, point.ravel(), self._options.lr, self._options.bounds, free=free)
        self._left = self._options.inner
        self._rounds += 1
        return self.point

    def back(self) -> None:
        if self._inner is not None:
            self._inner.back()


def check_vertices(domain: Domain) -> None:
    """Raise DriverError where base and experts are not all inside the bounds."""
    if (domain.low > 0).any() or (domain.high < 1).any():
        raise DriverError("Frank-Wolfe goes from 0 to each expert at coefficient 1; widen space.bounds to hold [0, 1]")
