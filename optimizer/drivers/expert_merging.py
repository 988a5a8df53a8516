"""How do coefficients make the merge answer as each expert does? Expert Merging, by layer, and in pieces of layers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from optimizer.driver import Domain, Outcome, Point, Wants
from optimizer.drivers.walks import descent
from optimizer.drivers.walks.adam import AdamRule, Bounds
from optimizer.drivers.walks.descent import Descent


class ExpertMerging(Descent):
    """Adam on `c = sigmoid(a)` between the bounds, aligned to the experts' logits and hidden states (arXiv:2509.25712).

    To the loss comes `stay` times the sum over experts of `|c - start|`, averaged over groups.
    """

    class Options(descent.Options):
        """Few items are needed: the authors take 5 to 10 a task."""

        lr: descent.Lr = 1e-2
        steps: descent.Steps = 200
        stay: float = Field(
            5.0,
            ge=0,
            description="The weight, beside the loss, of the coefficients' distance from their start; more stays"
            " nearer.",
        )
        bounds: Bounds = "sigmoid"

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        super().__init__(
            *("expert_merging", domain, objectives, options),
            lambda start: _rule(domain, start, start, options),
        )


class ExpertMergingPlus(Descent):
    """Expert Merging++: one coefficient for each layer and expert first, then more for the layers that matter.

    The importance of a layer is `I = sum_k |c_k| |tau_k|_1`, as a share of that of all layers (coefficients learned in
    the first half of the steps). Of `pieces` pieces in all, layer g is cut in `floor(pieces I_g^kappa / sum I^kappa)`,
    one at least, of about equal size along its groups; the second half learns a coefficient for each piece and expert.
    The space's granularity is the finest that pieces can have: `tensor`, or `module`.
    """

    class Options(ExpertMerging.Options):
        """`patience` ends the first half too, and the pieces begin."""

        pieces: int | None = Field(
            None, ge=1, description="Coefficients of each expert in all; more are finer. Default: four for each layer."
        )
        kappa: float = Field(
            1.0, ge=0, description="How many more pieces a layer gets that matters; 0: each gets as many as any other."
        )

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        super().__init__(
            *("expert_merging_pp", domain, objectives, options), lambda start: _Pieces(domain, start, options)
        )


class _Pieces:
    """Tied by layer; then one question for sizes; then tied by piece."""

    whole = False
    done = False

    def __init__(self, domain: Domain, start: Point, options: ExpertMergingPlus.Options) -> None:
        self._domain, self._start, self._options = domain, start, options
        self._layers = np.unique(domain.layers, return_inverse=True)[1]
        self._inner = _rule(domain, start, start, options, _ties(domain, self._layers))
        self._left = options.steps // 2  # of the first half
        self._asked = False

    @property
    def point(self) -> Point:
        return self._inner.point

    @property
    def wants(self) -> Wants:
        return "sizes" if self._left <= 0 and not self._asked else "gradient"

    def update(self, outcome: Outcome) -> Point:
        if outcome.question.wants == "sizes":
            assert outcome.gradient is not None
            self._asked = True
            weights = (np.abs(self.point) * outcome.gradient[0]).reshape(self._domain.shape).sum(axis=1)
            total = self._options.pieces or 4 * len(set(self._domain.layers))
            pieces = cut(self._layers, weights, total, self._options.kappa)
            ties, good = _ties(self._domain, pieces), self._inner.good
            self._inner = _rule(self._domain, self._start, self.point, self._options, ties, good)
            return self.point
        self._left -= 1
        return self._inner.update(outcome)

    def turn(self) -> bool:
        if self._asked:
            return False
        self._left = 0
        return True

    def back(self) -> None:
        self._inner.back()


def cut(
    layers: NDArray[np.int64],  # (G,), the layer of each group
    weights: NDArray[np.float64],  # (G,), |c| |tau|_1 of each group
    total: int,
    kappa: float,
) -> NDArray[np.int64]:
    """The piece of each group, `(G,)`: layers cut, along their groups, in pieces of about equal weight."""
    count = int(layers.max()) + 1
    importance = np.bincount(layers, weights, minlength=count)
    shares = (importance / importance.max()) ** kappa if importance.max() > 0 else np.ones(count)
    pieces = np.zeros(len(layers), dtype=np.int64)
    begun = 0
    for layer in range(count):
        groups = np.flatnonzero(layers == layer)
        wanted = int(np.clip(np.floor(total * shares[layer] / shares.sum()), 1, len(groups)))
        pieces[groups] = begun + _along(weights[groups], wanted)
        begun += wanted
    return pieces


def _along(weights: NDArray[np.float64], wanted: int) -> NDArray[np.int64]:
    """The piece of each of `(n,)` groups in their order: `wanted` pieces, none of them empty."""
    count, whole = len(weights), weights.sum() or 1.0
    middle = np.cumsum(weights) - weights / 2
    found = np.zeros(count, dtype=np.int64)
    for i in range(1, count):
        ideal = int(wanted * middle[i] / whole)
        # at most one on from the last, and enough groups left for the pieces that are still to come
        found[i] = max(min(ideal, found[i - 1] + 1, wanted - 1), wanted - (count - i), found[i - 1])
    return found


def _ties(domain: Domain, groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """From the piece of each group to the tie of each coordinate: experts stay apart."""
    experts = domain.shape[1]
    return (groups[:, None] * experts + np.arange(experts)).ravel()


def _rule(
    domain: Domain,
    start: Point,
    point: Point,
    options: ExpertMerging.Options,
    ties: NDArray[np.int64] | None = None,
    good: Point | None = None,
) -> AdamRule:
    def penalty(now: Point) -> NDArray[np.float64]:
        apart = now - start
        # the sigmoid of a logit is not its argument to the bit, and a sign would make a full step of that
        return np.asarray(options.stay * np.where(np.abs(apart) > 1e-12, np.sign(apart), 0.0) / domain.shape[0])

    return AdamRule(domain, point, options.lr, options.bounds, penalty=penalty, ties=ties, good=good)
