"""How is each method said to mergekit? A table of those that it has too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from searchspaces import methods
from searchspaces.errors import Inexpressible
from searchspaces.models.pool import Pool
from searchspaces.option import Number
from searchspaces.recipe import Recipe
from searchspaces.weights.compositions import Compositions

FLOOR = 1e-6  # of mergekit's sce

Filters = list[tuple[str, str]]  # (substring of tensor names, group); the first that is in a name counts
Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Said:
    """A recipe about to be said, and the filters under which mergekit gives each tensor its group's numbers."""

    recipe: Recipe
    pool: Pool
    filters: Filters
    copied: Sequence[str]  # float tensors that come from the base as they are

    def by_group(self, values: Numbers, rest: float, whole: bool = False) -> Any:
        """A number by group `(G,)`, as mergekit reads it; `rest` is that of tensors which come from the base."""
        plain = [int(v) for v in values] if whole else values.tolist()
        row = dict(zip(self.recipe.groups, plain, strict=True))
        if not self.filters:
            return row[self.recipe.groups[0]]
        listed: list[dict[str, Any]] = [
            {"filter": text, "value": row[group] if group else rest} for text, group in self.filters
        ]
        # what no filter names is no tensor of ours: it stays as the base has it
        return [*listed, {"value": rest}]

    def folder(self, name: str) -> Any:
        """Where an expert is, or the base where the name is empty."""
        checkpoint = self.pool.opened[name] if name else self.pool.base
        path = str(Path(checkpoint.folder).absolute())
        # in a plain string mergekit takes these for a LoRA, and for a revision
        return {"model": {"path": path}} if "+" in path or "@" in path else path

    def model(self, name: str, **parameters: Any) -> dict[str, Any]:
        """An expert's entry, or the base's where the name is empty."""
        return {"model": self.folder(name), **({"parameters": parameters} if parameters else {})}

    def numbers(self, name: str) -> Numbers:
        """A number among the options, `(G, K)` in the recipe's order of experts."""
        shape = self.recipe.coefficients.shape
        return np.broadcast_to(np.asarray(self.recipe.options[name], dtype=np.float64), shape)

    def flags(self) -> dict[str, Any]:
        """What is the same for all tensors and experts."""
        return {name: value for name, value in self.recipe.options.items() if isinstance(value, bool)}

    def document(
        self,
        models: Sequence[dict[str, Any]],
        parameters: Mapping[str, Any],
        base: bool,
        method: str = "",
        dtype: str = "float32",
    ) -> dict[str, Any]:
        """`base`: mergekit is given one; `method` is its name there where that differs; `dtype` is what it sums in."""
        named = {"base_model": self.folder("")} if base else {}
        head: dict[str, Any] = {"merge_method": method or self.recipe.method}
        listed = {"parameters": dict(parameters)} if parameters else {}
        return head | named | {"models": list(models)} | listed | {"dtype": dtype}

    def refuse_ties(self) -> None:
        """Raises Inexpressible where entries of equal magnitude fall on a threshold: mergekit keeps others of them."""
        for name, composition in Compositions.of(self.pool, self.recipe).found.items():
            for expert, keep in zip(self.pool.names, composition.keeps or (), strict=False):
                if keep.tied:
                    raise Inexpressible(
                        f"tensor {name!r} of expert {expert!r} has entries of equal magnitude on a threshold of "
                        f"{self.recipe.method}; mergekit keeps others of them, recipe.yaml and the weights say it all"
                    )

    def refuse_copied(self) -> None:
        """Raises Inexpressible where a tensor comes from the base as it is, and the method has no number for that."""
        if self.copied:
            raise Inexpressible(
                f"tensor {self.copied[0]!r} is the base's as it is, and mergekit's {self.recipe.method} merges every "
                "tensor"
            )

    def refuse_base(self, rows: NDArray[np.bool_]) -> None:
        """Raises Inexpressible where coefficients leave a group, one of `rows` `(G,)`, as the base has it."""
        if rows.any():
            group = self.recipe.groups[int(np.argmax(rows))]
            raise Inexpressible(
                f"the coefficients leave group {group!r} as the base has it, which mergekit's {self.recipe.method} "
                "cannot"
            )


def _linear(said: Said) -> dict[str, Any]:
    """Normalised weights are written out: they sum to 1 already, and a group that stays the base has weight 1 on it."""
    c = said.recipe.coefficients
    total = c.sum(axis=1, keepdims=True)
    base = np.zeros(len(c))
    if said.recipe.options["normalize"]:
        base = (total[:, 0] == 0).astype(np.float64)
        c = np.divide(c, total, out=np.zeros_like(c), where=total != 0)
    return _average(said, c, base)


def _layer_swap(said: Said) -> dict[str, Any]:
    """A weight of 1 on the model that a group is taken from."""
    c = said.recipe.coefficients
    return _average(said, c, 1.0 - c.sum(axis=1))


def _average(said: Said, c: Numbers, base: Numbers) -> dict[str, Any]:
    """mergekit's `linear`, with the base among the models; named as base_model it gives config and tokenizer."""
    models = [said.model("", weight=said.by_group(base, 1.0))]
    models += [said.model(e, weight=said.by_group(c[:, k], 0.0)) for k, e in enumerate(said.recipe.experts)]
    return said.document(models, {"normalize": False}, base=True, method="linear")


def _task_vectors(said: Said) -> dict[str, Any]:
    """Weights and what else is by expert in the experts' entries; flags and lambda for all."""
    specs = methods.load(said.recipe.method).options
    numbers = [n for n, spec in specs.items() if isinstance(spec, Number) and spec.per == "expert"]
    if numbers:
        said.refuse_ties()
    models = [said.model("")]
    for k, name in enumerate(said.recipe.experts):
        own = {n: said.by_group(said.numbers(n)[:, k], 1.0) for n in numbers}
        models.append(said.model(name, weight=said.by_group(said.recipe.coefficients[:, k], 0.0), **own))
    scale = said.by_group(said.numbers("lambda")[:, 0], 1.0)
    return said.document(models, {**said.flags(), "lambda": scale}, base=True)


def _random(said: Said) -> dict[str, Any]:
    if (said.numbers("density") < 1).any():
        raise Inexpressible(
            f"mergekit's {said.recipe.method} draws other entries than the recipe's (from another generator, in the "
            "order of tensors) and rescales them in another way: it can say a density of 1 only"
        )
    return _task_vectors(said)


def _model_stock(said: Said) -> dict[str, Any]:
    if len(said.recipe.experts) < 2:
        raise Inexpressible("mergekit's model_stock wants two experts at least")
    _with_its_floor(said)
    scaled = said.recipe.coefficients * said.numbers("lambda")
    said.refuse_base((scaled == 0).all(axis=1))
    _unweighted(said, scaled)
    said.refuse_copied()
    return said.document([said.model(name) for name in said.recipe.experts], said.flags(), base=True)


def _sce(said: Said) -> dict[str, Any]:
    """What stays as the base has it is what keeps no entries."""
    _with_its_floor(said)
    scaled = said.recipe.coefficients * said.numbers("lambda")
    still = (scaled == 0).all(axis=1)
    _unweighted(said, scaled[~still])
    kept = np.where(still, 0.0, said.numbers("select_topk")[:, 0])
    models = [said.model(name) for name in said.recipe.experts]
    return said.document(models, {"select_topk": said.by_group(kept, 0.0)}, base=True)


def _with_its_floor(said: Said) -> None:
    if (said.numbers("floor") != FLOOR).any():
        raise Inexpressible(
            f"mergekit's {said.recipe.method} has a fixed floor of {FLOOR:g}, the recipe another: set it to that"
        )


def _unweighted(said: Said, scaled: Numbers) -> None:
    """Raises Inexpressible for another merge than the published one, coefficients times lambda all 1."""
    if (np.abs(scaled - 1) > 1e-12).any():
        raise Inexpressible(
            f"mergekit's {said.recipe.method} has neither weights nor lambda: it can say coefficients of 1 (times "
            "lambda) only"
        )


def _slerp(said: Said) -> dict[str, Any]:
    t = said.by_group(said.recipe.coefficients[:, 0], 0.0)
    return said.document([said.model(""), said.model(said.recipe.experts[0])], {"t": t}, base=True, dtype="float64")


def _nuslerp(said: Said) -> dict[str, Any]:
    said.refuse_copied()
    said.refuse_base((said.recipe.coefficients == 0).all(axis=1))
    return _on_sphere(said)


def _multislerp(said: Said) -> dict[str, Any]:
    """Two task vectors of weights 0, not normalised, are all that it leaves as the base is."""
    c, options = said.recipe.coefficients, said.recipe.options
    if c.shape[1] != 2 or not options["task_vectors"] or options["normalize_weights"]:
        said.refuse_copied()
        said.refuse_base((c == 0).all(axis=1))
    if options["normalize_weights"]:
        said.refuse_base(c.sum(axis=1) == 0)
    return _on_sphere(said)


def _on_sphere(said: Said) -> dict[str, Any]:
    """Between whole weights, or task vectors where there is a base."""
    c = said.recipe.coefficients
    flags = said.flags()
    task_vectors = flags.pop("task_vectors")
    if "along" in said.recipe.options:
        flags |= ALONG[str(said.recipe.options["along"])]
    models = [said.model(e, weight=said.by_group(c[:, k], 0.0)) for k, e in enumerate(said.recipe.experts)]
    return said.document(models, flags, base=task_vectors, dtype="float64")


def _karcher(said: Said) -> dict[str, Any]:
    """In float64: in float32 mergekit's angles between models that are near each other are rounding errors."""
    c = said.recipe.coefficients
    said.refuse_base(c.sum(axis=1) == 0)
    if (c != c[:, :1]).any():
        raise Inexpressible("mergekit's karcher has no weights: it can say equal coefficients only")
    said.refuse_copied()
    steps = said.by_group(said.numbers("max_iter")[:, 0], 0, whole=True)
    parameters = {"max_iter": steps, "tol": said.by_group(said.numbers("tol")[:, 0], 0.0)}
    return said.document([said.model(e) for e in said.recipe.experts], parameters, base=False, dtype="float64")


SAID: Mapping[str, Callable[[Said], dict[str, Any]]] = {
    "linear": _linear,
    "task_arithmetic": _task_vectors,
    "ties": _task_vectors,
    "breadcrumbs": _task_vectors,
    "breadcrumbs_ties": _task_vectors,
    "dare_linear": _random,
    "dare_ties": _random,
    "della": _random,
    "della_linear": _random,
    "model_stock": _model_stock,
    "sce": _sce,
    "slerp": _slerp,
    "nuslerp": _nuslerp,
    "multislerp": _multislerp,
    "karcher": _karcher,
    "layer_swap": _layer_swap,
}
"""The methods that mergekit has too, and how each is said; what a recipe asks beyond that raises Inexpressible."""

ALONG: Mapping[str, Mapping[str, bool]] = {
    "flat": {"nuslerp_flatten": True},
    "rows": {"nuslerp_flatten": False, "nuslerp_row_wise": False},
    "columns": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
}
"""How mergekit's nuslerp says along what it goes."""
