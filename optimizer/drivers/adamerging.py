"""How far does Adam take the coefficients themselves? AdaMerging without labels, and the same with them."""

from __future__ import annotations

from optimizer.driver import Domain
from optimizer.drivers.walks import descent
from optimizer.drivers.walks.adam import AdamRule, Bounds
from optimizer.drivers.walks.descent import Descent


class AdaMerging(Descent):
    """Adam on the coefficients, on the entropy of predictions (Yang et al., ICLR 2024, arXiv:2310.02575, eq. 5 and 6).

    Their task-wise merging is granularity `model`, what they call layer-wise is granularity `tensor`; AdaMerging++ is
    the same on a space of method `ties_once`. `bounds: clamp` is the authors' clamp inside the graph: a coefficient
    that has left the bounds has no gradient.
    """

    class Options(descent.Options):
        """Published: lr 1e-3, 500 steps of 16 items a task."""

        lr: descent.Lr = 1e-3
        bounds: Bounds = "clamp"

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        super().__init__(
            *("adamerging", domain, objectives, options),
            lambda start: AdamRule(domain, start, options.lr, options.bounds),
        )


class Supervised(Descent):
    """Adam on the coefficients, on the loss of labelled items, or on whatever loss the job names."""

    class Options(descent.Options):
        """Labels overfit in tens of steps: the scores on unseen items decide which is the last."""

        lr: descent.Lr = 1e-2
        steps: descent.Steps = 150
        bounds: Bounds = "project"

    def __init__(self, domain: Domain, objectives: int, seed: int, options: Options) -> None:
        super().__init__(
            *("supervised", domain, objectives, options),
            lambda start: AdamRule(domain, start, options.lr, options.bounds),
        )
