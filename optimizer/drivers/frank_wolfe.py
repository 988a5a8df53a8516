"""Which expert is worth going towards? Frank-Wolfe over the experts: step by step, or chosen and then learned."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from optimizer.driver import Domain, Outcome, Point, Wants
from optimizer.drivers.shared.experts import checked_vertices
from optimizer.drivers.walks import descent
from optimizer.drivers.walks.adam import AdamRule, Bounds
from optimizer.drivers.walks.descent import Descent


class FrankWolfe(Descent):
    """Steps towards experts (FW-Merging, hard; Chen et al., ICCV 2025, arXiv:2503.12649, algorithm 1).

    In coefficient space it is exact: the feasible set is, for each group, the hull of the starting point and of the
    experts; the linear minimisation oracle picks the vertex v with the least `<gradient, v>`, one for the whole model
    or one a group; and `c += gamma_t (v - c)` with `gamma_t = step * 2 / (t + 2)`. Rule `cosine` is that of the
    authors' code: the expert with the least sum over tensors of `cos(dL/dW, theta_k)`. There the first point is their
    merge of all experts, by task arithmetic or TIES: `start: space`, here.
    """

    class Options(descent.Options):
        """Published: 10 iterations, 100 items a task, `step` 0.1 for vision and 1 for language, one expert a time."""

        steps: descent.Steps = 10
        batch: descent.Batch = 100
        every: descent.Every = 1
        patience: descent.Patience = None
        start: descent.Start = "base"
        rule: Literal["inner", "cosine"] = Field(
            "inner",
            description="By what an expert is chosen: `inner` is the gradient's inner product with the point, `cosine`"
            " that of the authors' code, the sum over tensors of its cosine with the expert's weights.",
        )
        scope: Literal["model", "group"] = Field(
            "model", description="One expert a step for the whole `model`, or one for each `group`."
        )
        step: float = Field(
            1.0,
            gt=0,
            le=1,
            description="The part that is gone of the step 2 / (t + 2) towards the expert; more is faster.",
        )

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        descent.coefficients_alone("Frank-Wolfe", domain)
        vertices = checked_vertices("Frank-Wolfe", domain)
        super().__init__(
            *("frank_wolfe", domain, objectives, options), lambda start: _Hard(domain, vertices, start, options)
        )


class _Hard:
    whole = False
    done = False

    def __init__(
        self, domain: Domain, vertices: NDArray[np.float64], start: Point, options: FrankWolfe.Options
    ) -> None:
        self.wants: Wants = "cosines" if options.rule == "cosine" else "gradient"
        self._shape, self._options = domain.shape, options
        ours = vertices if options.rule == "cosine" else np.vstack([vertices, start])
        self._vertices = ours.reshape(len(ours), *domain.shape)  # (K or K + 1, G, K)
        self._point = self._good = start
        self._step = options.step
        self._count = 0

    @property
    def point(self) -> Point:
        return self._point

    def update(self, outcome: Outcome) -> Point:
        assert outcome.gradient is not None
        slope = outcome.gradient[0].reshape(self._shape)
        # of each vertex in each group: its inner product with the gradient, or the cosine that came back
        values = slope.T if self._options.rule == "cosine" else (self._vertices * slope).sum(axis=2)
        if self._options.scope == "model":
            values = np.broadcast_to(values.sum(axis=1, keepdims=True), values.shape)
        vertex = self._vertices[values.argmin(axis=0), np.arange(self._shape[0])].ravel()
        self._good = self._point
        self._point = self._point + self._step * 2 / (self._count + 2) * (vertex - self._point)
        self._count += 1
        return self._point

    def turn(self) -> bool:
        return False

    def back(self) -> None:
        self._point, self._step = self._good, self._step / 2


class SoftFrankWolfe(Descent):
    """Adds experts, and learns the coefficients of those added (FW-Merging, soft; arXiv:2503.12649, algorithm 2).

    In each round the oracle picks, for each task, the unused expert towards which its loss falls fastest,
    `<gradient of that task, e_k>` over the whole model, on all training items (on a few, noise lets irrelevant experts
    in, and they stay); an expert towards which no task's loss falls stays out. What is added begins at `enter` of its
    way. Then `inner` steps of Adam (fewer where `patience` ends them) on the coefficients of all that were added; the
    others stay where they started. It ends after `rounds`, or when the oracle adds none. The authors' code picks by
    the cosine rule, merges the chosen onto the last round's model with coefficients that begin at 0.3, and learns them
    by entropy.
    """

    class Options(descent.Options):
        """Published: 10 to 15 rounds of 500 steps, lr 1e-3. `steps` bounds all of it, questions for the oracle too."""

        lr: descent.Lr = 1e-3
        steps: descent.Steps = 6000
        rounds: int = Field(12, ge=1, description="How often at most the best expert of each task is added.")
        inner: int = Field(500, ge=1, description="Steps on the coefficients of those added, after each round.")
        enter: float = Field(
            0.1,
            gt=0,
            le=1,
            description="Where the coefficient of an expert that is added begins; 1 is the whole expert.",
        )
        start: descent.Start = "base"
        bounds: Bounds = "clamp"

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        descent.coefficients_alone("Frank-Wolfe", domain)
        vertices = checked_vertices("Frank-Wolfe", domain)
        super().__init__(
            *("frank_wolfe_soft", domain, objectives, options), lambda start: _Soft(domain, vertices, start, options)
        )


class _Soft:
    def __init__(
        self, domain: Domain, vertices: NDArray[np.float64], start: Point, options: SoftFrankWolfe.Options
    ) -> None:
        self._domain, self._vertices, self._options, self._start = domain, vertices, options, start
        self._chosen: set[int] = set()
        self._inner: AdamRule | None = None
        self._left = 0  # steps of this round
        self._rounds = 0
        self._full = False  # the oracle has nobody left to add

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
        return not self._left and (self._full or self._rounds >= self._options.rounds)

    def update(self, outcome: Outcome) -> Point:
        if self._left:
            assert self._inner is not None
            self._left -= 1
            return self._inner.update(outcome)
        assert outcome.gradient is not None
        self._rounds += 1
        added = self._oracle(outcome.gradient)
        self._full = not added or len(self._chosen) + len(added) == self._domain.shape[1]
        if added:
            self._begin(added)
        return self.point

    def _oracle(self, gradients: NDArray[np.float64]) -> list[int]:
        """The experts to add: of each task's gradient (T, dim) the best of those that are left, if it is any good."""
        added: list[int] = []
        for slopes in gradients @ self._vertices.T:  # (K,)
            left = [k for k in np.argsort(slopes, kind="stable").tolist() if k not in self._chosen and k not in added]
            if left and slopes[left[0]] < 0:
                added.append(left[0])
        return added

    def _begin(self, added: list[int]) -> None:
        """A round of Adam on all that are in."""
        groups, experts = self._domain.shape
        before = self.point
        point = before.reshape(groups, experts).copy()
        for k in added:
            point[:, k] = self._options.enter * self._vertices[k].reshape(groups, experts)[:, k]
        self._chosen.update(added)
        free = np.tile(np.isin(np.arange(experts), sorted(self._chosen)), groups)
        lr, bounds = self._options.lr, self._options.bounds
        self._inner = AdamRule(self._domain, point.ravel(), lr, bounds, free=free, good=before)
        self._left = self._options.inner

    def turn(self) -> bool:
        self._left = 0
        return not self.done

    def back(self) -> None:
        if self._inner is not None:
            self._inner.back()
