"""Which way is down? A loss's derivative by the coefficients, from that by the weights, in one streaming pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces.composition import Composition
from searchspaces.errors import NonFinite
from searchspaces.models.layout import Place
from searchspaces.weights.compositions import Compositions, Map
from searchspaces.weights.packed import Packed
from searchspaces.weights.sources import Sources

SLICE = 1 << 21  # elements: what one thread takes at a time, so that a large embedding does not keep the others waiting


@dataclass(frozen=True, eq=False)
class Slope:
    """One merged tensor whose gradient is wanted: its place in the model, and base and experts."""

    name: str
    sources: Sources
    parameter: Place

    @cached_property
    def norms(self) -> NDArray[np.float64]:
        """`|theta_k|`, `(K,)`; read once."""
        return self.sources.norms()

    def sizes(self) -> NDArray[np.float64]:
        """`sum |theta_k - theta_0|` for each expert, `(K,)`."""
        return self.sources.sizes()

    def grams(self) -> NDArray[np.float64]:
        """As of `Sources`, `(K + 2, K)`."""
        return self.sources.grams()


def products(slopes: Sequence[Slope], compositions: Compositions | None, map_: Map) -> NDArray[np.float64]:
    """`<G_t, u_k>` for each tensor t and expert k, then `<G_t, theta_0>` and `<G_t, G_t>`.

    u_k is what the weight of expert k scales in a composition; without compositions, its task vector. float64 of
    shape `(tensors, K + 2)`; a parameter without a gradient counts as one of zeros. `map_` may run things side by side:
    slices are summed in their order all the same.
    """
    count = slopes[0].sources.count
    parts = [
        (number, slope, compositions and compositions.at(slope.name), grad.reshape(-1), cut)
        for number, slope in enumerate(slopes)
        if (grad := slope.parameter.grad) is not None
        for cut in slope.sources.slices(SLICE)
    ]
    out = np.zeros((len(slopes), count + 2))
    for (number, *_), found in zip(parts, map_(_slice, parts), strict=True):
        out[number] += found
    return out


def check_finite(slopes: Sequence[Slope], found: NDArray[np.float64]) -> None:
    """Raises NonFinite, naming the tensor, where what `products` gave has NaN or infinity."""
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(bad):
        raise NonFinite(f"the gradient of merged tensor {slopes[bad[0]].name!r} has NaN or infinity")


def _slice(part: tuple[int, Slope, Composition | Packed | None, torch.Tensor, tuple[int, int]]) -> NDArray[np.float64]:
    _, slope, what, grad, cut = part
    return slope.sources.products(grad, what, *cut)


def cosines(slopes: Sequence[Slope], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """`cos(G_t, theta_k)` of what `products` gave, `(tensors, K)`; 0 where either is."""
    norms = np.array([slope.norms for slope in slopes])
    inner = found[:, :-2] + found[:, -2:-1]
    scale = norms * np.sqrt(found[:, -1:])
    return np.asarray(np.divide(inner, scale, out=np.zeros_like(inner), where=scale > 0))
