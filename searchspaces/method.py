"""What does a merge method owe? Options with defaults, and for a linear one the scales of base and task vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces.errors import RecipeError

Option: TypeAlias = bool | int | float | str
Mix: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]


class Method(Protocol):
    """How task vectors become merged weights. Made from complete, checked options (see `complete`)."""

    summary: ClassVar[str]
    defaults: ClassVar[Mapping[str, Option]]
    linear: ClassVar[bool]  # merged weights are `mix` applied to base and task vectors
    random: ClassVar[bool]  # draws from the run's seed, which then is part of the recipe
    processes: ClassVar[bool]  # task vectors are changed before they are merged: the method is `Processing` too

    unit: float  # the coefficient at which one expert alone, all others 0, gives that expert
    affine: bool  # `mix` is affine in the coefficients, and not only differentiable
    sweep: tuple[float, ...]  # global coefficients worth asking before any search

    def __init__(self, options: Mapping[str, Option]) -> None: ...

    def mix(self, coefficients: NDArray[np.float64]) -> Mix:
        """Scales of base `(G,)` and of task vectors `(G, K)` for coefficients `(G, K)`.

        A group's merged weights are `base_scale * theta_0 + sum_k expert_scale_k * (theta_k - theta_0)`.
        """
        ...

    def pull(self, coefficients: NDArray[np.float64], scales: Mix) -> NDArray[np.float64]:
        """The chain rule through `mix`: from a loss's derivative by the scales to that by the coefficients, `(G, K)`.

        `scales` are the derivatives with respect to base scales `(G,)` and expert scales `(G, K)`.
        """
        ...


Tensors: TypeAlias = Callable[[], Iterator[tuple[str, torch.Tensor, Mapping[str, torch.Tensor]]]]
"""Name, base and experts (by name) of each merged tensor, one after the other, from the start with every call."""


class Processing(Method, Protocol):
    """A method that merges processed task vectors. What it does depends on models and options alone, not on recipes.

    A change of what it does is a change of `version`: files that another version made are left alone.
    """

    version: ClassVar[int]

    def survey(self, tensors: Tensors) -> None:
        """Look at all tensors, as often as needed, before any is processed: thresholds over a whole model, say."""
        ...

    def process(self, name: str, base: torch.Tensor, experts: Mapping[str, torch.Tensor]) -> Iterator[torch.Tensor]:
        """Each expert's base + processed task vector, one after the other; no argument is changed.

        In their own shape, and in the dtype that holds theirs and the base's (`torch.promote_types`): an entry that is
        the base's then stays it, to the bit.
        """
        ...


def complete(name: str, defaults: Mapping[str, Option], options: Mapping[str, Option]) -> dict[str, Option]:
    """A method's options with its defaults filled in; raises RecipeError for unknown ones and for wrong types."""
    found = dict(defaults)
    for key, value in options.items():
        if key not in defaults:
            known = ", ".join(sorted(defaults)) or "none"
            raise RecipeError(f"method {name} has no option {key!r}; there are: {known}")
        wanted = type(defaults[key])
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted or (isinstance(value, float) and not math.isfinite(value)):
            raise RecipeError(f"method {name}: option {key} must be a finite {wanted.__name__}, got {value!r}")
        found[key] = value
    return found
