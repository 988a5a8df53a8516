"""What does a merge method owe? Options, and of each tensor a composition of its task vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces.composition import Composition
from searchspaces.errors import RecipeError
from searchspaces.facts.facts import Facts
from searchspaces.given import Given
from searchspaces.option import Number, Option, Spec
from searchspaces.row import Row


class Method(Protocol):
    """How task vectors become merged weights. Made from options that `option.complete` has checked."""

    summary: ClassVar[str]
    options: ClassVar[Mapping[str, Spec]]
    linear: bool  # for given options, merged weights are linear in the composition's weights; options may undo it
    random: ClassVar[bool]  # draws from the run's seed, which then is part of the recipe
    processes: ClassVar[bool]  # task vectors are changed before they are merged: the method is `Processing` too
    experts: ClassVar[tuple[int, int | None]]  # how many it merges, at least and at most
    picks: ClassVar[bool]  # a group is one of the models: its coefficients are all 0, or one of them is 1

    unit: float  # the coefficient at which one expert alone, all others 0, gives that expert
    restores: bool  # to rounding; otherwise what the method leaves of it (where it `processes`: of it as processed)
    affine: bool  # the composition's weights are affine in the coefficients, and not only differentiable
    grounded: bool  # all coefficients 0 give the base
    sweep: tuple[float, ...]  # global coefficients worth asking before any search
    usual: float | None  # the one of them that is known best, a published merge's; none: the middle

    def __init__(self, options: Mapping[str, Option]) -> None: ...

    def compose(self, row: Row, facts: Facts) -> Composition:
        """What becomes of one tensor, for its group's row of coefficients and options.

        The weights of a linear method depend on the row alone: what differs by tensor is in keeps, divisors and scale.
        """
        ...

    def pull(self, row: Row, base: float, experts: NDArray[np.float64]) -> NDArray[np.float64]:
        """The chain rule: from a loss's derivative by base scale and weights `(K,)` to that by the coefficients `(K,)`.

        Only of linear ones; the derivatives are sums over the tensors of the row's group.
        """
        ...


def check_linear(name: str, method: Method) -> None:
    """Raises RecipeError where a method, by its name, is not linear in the coefficients: these have no gradient."""
    if not method.linear:
        raise RecipeError(
            f"the method {name!r} with these options is not linear in its coefficients: they have no gradient; take "
            "another method (docs/methods.md says which are linear)"
        )


LEAST = 1e-6
"""Of a `lambda`, either way: with less, the coefficients that would make an expert are beyond all sense."""


class OnTaskVectors:
    """What methods share that add `lambda * (a combination of task vectors)` to the base, linear in the coefficients.

    Their option `lambda` scales the combination, as mergekit's of that name does.
    """

    linear: bool = True
    random: ClassVar[bool] = False
    processes: ClassVar[bool] = False
    experts: ClassVar[tuple[int, int | None]] = (1, None)
    picks: ClassVar[bool] = False
    restores = True
    affine = True
    grounded = True
    sweep: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
    usual: float | None = None

    def __init__(self, options: Mapping[str, Option]) -> None:
        scale = options["lambda"]
        if isinstance(scale, float) and abs(scale) < LEAST:
            raise RecipeError(
                f"option lambda is {scale:g}, which makes every candidate the base; expected {LEAST:g} at least, or "
                "leave it out"
            )
        mean = float(np.mean(np.asarray(scale, dtype=np.float64)))
        self.unit = 1.0 / mean if abs(mean) >= LEAST else 1.0  # of lambdas by group that cancel there is none

    def compose(self, row: Row, facts: Facts) -> Composition:
        """A sum of task vectors by their coefficients."""
        return Composition(1.0, row.coefficients, scale=row.number("lambda"))

    def pull(self, row: Row, base: float, experts: NDArray[np.float64]) -> NDArray[np.float64]:
        """`d_k`: `lambda` is in the composition's `scale`, and the base's scale does not depend on the coefficients."""
        return experts


LAMBDA = Number(
    1.0, -10.0, 10.0, search=(0.2, 2.0), says="A factor of all coefficients; 0 is the base, more goes further from it."
)
"""The option of `OnTaskVectors`."""


Tensors: TypeAlias = Callable[[], Iterator[tuple[str, torch.Tensor, Mapping[str, torch.Tensor]]]]
"""Name, base and experts (by name) of each merged tensor, one after the other, from the start with every call."""


class Processing(Method, Protocol):
    """A method that merges processed task vectors. What it does depends on models and options alone, not on recipes.

    A change of what it does is a change of `version`: files that another version made are left alone.
    """

    version: ClassVar[int]
    gathers: ClassVar[str]  # the kind of statistics, gathered on data, that it needs of each expert; none where empty
    cancels: ClassVar[bool]  # what it makes of experts may be larger than its sum, which narrow numbers would lose

    def survey(self, tensors: Tensors) -> None:
        """Look at all tensors, as often as needed, before any is processed: thresholds over a whole model, say."""
        ...

    def process(self, given: Given) -> Iterator[torch.Tensor]:
        """Each expert's processed task vector, float32 and in its shape, one after the other; nothing given is changed.

        It has elements: what has none is not asked of.
        """
        ...

    def conclude(self) -> None:
        """All tensors have been processed: the place to warn of what was found on the way."""
        ...


class OnProcessed(OnTaskVectors):
    """What `Processing` methods share that take each tensor by itself and need no statistics."""

    processes: ClassVar[bool] = True
    version: ClassVar[int] = 1
    gathers: ClassVar[str] = ""
    cancels: ClassVar[bool] = False

    def survey(self, tensors: Tensors) -> None:
        """Nothing: each tensor is processed by itself."""

    def conclude(self) -> None:
        """Nothing was found that anybody should know."""
