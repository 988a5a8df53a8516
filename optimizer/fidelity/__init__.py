"""Which estimators tell a candidate from some of all items, and which items? One literal table, and choices."""

from __future__ import annotations

from optimizer.fidelity.choice import CHOICES, Choice
from optimizer.fidelity.estimator import Estimate, Estimator, FidelityError
from optimizer.fidelity.irt import GmpIrt, GpIrt, Irt, MpIrt
from optimizer.fidelity.mean import Mean
from optimizer.fidelity.paired import Paired

__all__ = ["CHOICES", "ESTIMATORS", "Choice", "Estimate", "Estimator", "FidelityError"]

ESTIMATORS: dict[str, type[Estimator]] = {
    "mean": Mean,
    "paired": Paired,
    "irt": Irt,
    "gp_irt": GpIrt,
    "mp_irt": MpIrt,
    "gmp_irt": GmpIrt,
}
