"""What is Model Stock? The experts' average, pulled towards the base by the angles between their task vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from searchspaces.composition import Composition
from searchspaces.facts.facts import Facts
from searchspaces.method import LAMBDA, OnTaskVectors
from searchspaces.option import Flag, Number, Option, Spec
from searchspaces.row import Row

SINGULAR = 1e-6


class ModelStock(OnTaskVectors):
    """`W = theta_0 + lambda * (t / K) sum_k c_k tau_k`, `t = K cos / (1 + (K - 1) cos)` (Jang et al., ECCV 2024).

    cos is the mean of the cosines between pairs of task vectors, `tau_i . tau_j / max(|tau_i| |tau_j|, floor)`, tensor
    by tensor, or with `filter_wise` row by row (all but the last dimension are rows; no gradient then). All c = 1 is
    the published merge, and mergekit's with its `floor` of 1e-6; the paper's is 0, by which t does not depend on how
    long task vectors are. Task vectors of zeros have cosine 0; where the denominator is 0, t is; one expert alone has
    t = 1.
    """

    summary: ClassVar[str] = "average of the experts, as near to the base as the angles between them say"
    options: ClassVar[Mapping[str, Spec]] = {
        "filter_wise": Flag(
            False, says="Whether each row has an angle of its own, and not each tensor; no gradients then."
        ),
        "floor": Number(
            1e-6,
            0.0,
            1.0,
            says="The least product of two task vectors' lengths; more stays nearer to the base. The paper's is 0.",
        ),
        "lambda": LAMBDA,
    }
    usual = 1.0  # the published merge
    restores = False

    def __init__(self, options: Mapping[str, Option]) -> None:
        super().__init__(options)
        self.linear = not options["filter_wise"]  # by rows there are no sums over a tensor to take the gradient from

    def compose(self, row: Row, facts: Facts) -> Composition:
        """t in the scale; in the weights where each row has its own."""
        if not row.flag("filter_wise") or len(facts.shape) < 2:
            share = float(_ratio(facts.gram(), row.number("floor"))) / facts.count
            return Composition(1.0, row.coefficients, scale=row.number("lambda") * share)
        shares = _ratio(facts.row_grams(), row.number("floor")) * row.number("lambda") / facts.count
        return Composition(np.ones(len(shares)), shares[:, None] * row.coefficients)


def _ratio(gram: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    """t, of Gram matrices `(..., K + 1, K + 1)`; `floor` is the least that a product of norms counts as."""
    products = gram[..., 1:, 1:]
    count = products.shape[-1]
    if count == 1:
        return np.ones(gram.shape[:-2])
    sizes = np.sqrt(np.maximum(np.diagonal(products, axis1=-2, axis2=-1), 0.0))
    norms = np.maximum(sizes[..., :, None] * sizes[..., None, :], floor)
    cosines = np.clip(np.divide(products, norms, out=np.zeros_like(products), where=norms > 0), -1.0, 1.0)
    upper = np.triu_indices(count, 1)
    cosine = cosines[..., upper[0], upper[1]].mean(axis=-1)
    below = 1.0 + (count - 1) * cosine
    singular = np.abs(below) < SINGULAR
    return np.asarray(np.where(singular, 0.0, count * cosine / np.where(singular, 1.0, below)))
