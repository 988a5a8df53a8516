"""What do a model's layers see of a task's items, and how much do its predictions hang on each weight?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from evaluators.errors import NonFinite
from evaluators.evaluator import Indices, Observed

TOGETHER = 32
"""Items that go through the model together while Grams are gathered: of one length, so that no padding is read."""

EXACT = 10
"""Classes up to which the expectation over a prediction is computed, a backward pass each; above, a class is drawn."""


LOOK = "look at the expert's scores, or set models.dtype to float32"

SAID = 5
"""Rows that an error names at most."""


class Layer(Protocol):
    """Linear layers that multiply one stored tensor: by its last dimension, or by its `first`."""

    @property
    def modules(self) -> Sequence[torch.nn.Module]: ...
    @property
    def width(self) -> int: ...
    @property
    def first(self) -> bool: ...


class Weight(Protocol):
    """Where a model keeps a stored tensor, and its gradient in the stored shape."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def grad(self) -> Tensor | None: ...
    def forget(self) -> None: ...
    def requires_grad_(self, wanted: bool) -> None: ...


class Gatherer(Protocol):
    """Sums over items, which can be written down between any two steps, and taken up again.

    `sums` are all that it has gathered, by a name of its own: float32 sums and int64 counts.
    """

    kind: ClassVar[str]
    sums: dict[str, Tensor]

    def steps(self, evaluator: Observed, rows: Indices) -> list[Indices]:
        """The rows of an evaluator, parted into what goes through the model together."""
        ...

    def watching(self) -> Any:
        """A context manager; steps are taken inside."""
        ...

    def step(self, evaluator: Observed, model: Any, rows: Indices) -> None:
        """Add these rows, one of `steps`; raises `NonFinite` where they show that a sum is no longer finite."""
        ...

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what is found, by the stored tensor's name."""
        ...

    def found(self) -> Iterator[tuple[str, Tensor]]:
        """The means in the order of `shapes`, float32 on the CPU; raises `NonFinite` where one is not finite."""
        ...


class Grams:
    """The mean of `x x^T` over all inputs `x` (positions) of a linear layer, whatever it is of items.

    float32 `(n, n)`, and `(n, n, 1)` where the inputs are the stored tensor's first dimension. A layer that no item
    reaches has none.

    Sums are float32, of inputs in the model's own dtype; no labels are needed.
    """

    kind: ClassVar[str] = "gram"

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self._layers = layers
        self._keys: dict[str, str] = {}  # tensors of one layer share a Gram, under the first one's name
        first: dict[tuple[int, ...], str] = {}
        self.sums: dict[str, Tensor] = {}
        for name, layer in layers.items():
            key = self._keys[name] = first.setdefault(tuple(map(id, layer.modules)), name)
            if key == name:
                device = next(layer.modules[0].parameters()).device
                self.sums[f"sum {name}"] = torch.zeros(layer.width, layer.width, device=device)
                self.sums[f"count {name}"] = torch.zeros((), dtype=torch.int64)

    @staticmethod
    def room(layer: Layer) -> int:
        """Bytes that a layer's sum and its mean take."""
        return 8 * layer.width**2

    def steps(self, evaluator: Observed, rows: Indices) -> list[Indices]:
        """Items of one length, `TOGETHER` at most."""
        return evaluator.unpadded(rows, TOGETHER)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on the layers, which are gone afterwards."""
        hooks = [
            module.register_forward_hook(self._seen(name), with_kwargs=True)
            for name, key in self._keys.items()
            if name == key
            for module in self._layers[name].modules
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _seen(self, name: str) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Any) -> None:
            inputs = args[0] if args else next(iter(kwargs.values()))
            inputs = inputs.detach().flatten(0, -2).float()
            self.sums[f"sum {name}"].addmm_(inputs.T, inputs)
            self.sums[f"count {name}"] += len(inputs)

        return hook

    def step(self, evaluator: Observed, model: Any, rows: Indices) -> None:
        with torch.no_grad():
            evaluator.observe(model, rows)
        # an input that is not finite is on the diagonal for good
        found = {n: bool(s.diagonal().isfinite().all()) for n, s in self.sums.items() if s.dim()}
        if bad := [name for name, finite in found.items() if not finite]:
            raise NonFinite(_not_finite(bad[0].removeprefix("sum "), _rows(evaluator, rows)))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            name: (layer.width, layer.width, 1) if layer.first else (layer.width, layer.width)
            for name, layer in self._layers.items()
            if int(self.sums[f"count {self._keys[name]}"])
        }

    def found(self) -> Iterator[tuple[str, Tensor]]:
        for name, shape in self.shapes().items():
            key = self._keys[name]
            mean = self.sums[f"sum {key}"].cpu() / int(self.sums[f"count {key}"])
            yield name, _finite(name, mean).reshape(shape)


class Fishers:
    """The diagonal of the Fisher information: `E_x E_{y ~ p(y | x)} (d log p(y | x) / d w)^2` for each weight w.

    The mean over an expert's predictions, of the expectation over what it would answer (Matena & Raffel 2022).
    This is the true Fisher information, not the empirical one: no label is read. With at most `EXACT` classes the
    expectation is exact; else one answer is drawn for each prediction, from the model's own distribution and by a seed
    of the item's own. One item at a time, so that gradients are squared item by item. float32 in the stored shape.
    """

    kind: ClassVar[str] = "fisher"

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        self._weights = weights
        # where the weights lie: squares of gradients do not cross a bus item by item
        self.sums = {f"sum {n}": torch.zeros(w.shape, device=w.device) for n, w in weights.items()}
        self.sums["count"] = torch.zeros((), dtype=torch.int64)

    @staticmethod
    def room(weight: Weight) -> int:
        """Bytes that a weight's sum and gradient take."""
        return 8 * int(np.prod(weight.shape))

    def steps(self, evaluator: Observed, rows: Indices) -> list[Indices]:
        """One item each."""
        return [rows[i : i + 1] for i in range(len(rows))]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The weights require gradients, and no longer do afterwards."""
        try:
            for weight in self._weights.values():
                weight.requires_grad_(True)
            yield
        finally:
            for weight in self._weights.values():
                weight.forget()
                weight.requires_grad_(False)

    def step(self, evaluator: Observed, model: Any, rows: Indices) -> None:
        for row in rows.tolist():
            for share, likelihood in evaluator.likelihoods(model, row):
                if not bool(likelihood.isfinite()):
                    raise NonFinite(f"a likelihood is {likelihood.item()}, on {_rows(evaluator, rows)}; {LOOK}")
                if not likelihood.requires_grad:  # none of these weights was read
                    continue
                likelihood.backward(retain_graph=True)  # type: ignore[no-untyped-call]
                for name, weight in self._weights.items():
                    if (grad := weight.grad) is not None:
                        slope = grad.float()
                        self.sums[f"sum {name}"].addcmul_(slope, slope, value=share)
                for weight in self._weights.values():  # after all are read: several may be parts of one parameter
                    weight.forget()
            self.sums["count"] += evaluator.predictions(row)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(weight.shape) for name, weight in self._weights.items()}

    def found(self) -> Iterator[tuple[str, Tensor]]:
        count = max(int(self.sums["count"]), 1)
        for name in self._weights:
            yield name, _finite(name, self.sums[f"sum {name}"].cpu() / count)


def expected(log: Tensor, key: str) -> Iterator[tuple[float, Tensor]]:
    """Log-likelihoods `(classes,)` with their graph, each with its probability; a drawn one where they are many."""
    chance = log.detach().exp()
    if len(log) <= EXACT:
        yield from zip(chance.tolist(), log.unbind(), strict=True)
    else:
        yield 1.0, log[int(drawn(chance[None], seed(key)))]


def seed(key: str) -> torch.Generator:
    """A stream of random numbers that is a function of the key alone."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    return torch.Generator().manual_seed(number % 2**63)


def drawn(chances: Tensor, stream: torch.Generator) -> Tensor:
    """A class for each row of probabilities `(n, classes)`: int64 `(n,)`, where the probabilities are.

    Where they are not finite it is the first: the likelihood of any is not, which whoever differentiates it sees.
    """
    known = chances.cpu()
    if not bool(known.isfinite().all()):
        return torch.zeros(len(chances), dtype=torch.int64, device=chances.device)
    return torch.multinomial(known, 1, generator=stream)[:, 0].to(chances.device)


def _finite(name: str, values: Tensor) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise NonFinite(_not_finite(name, "some item"))
    return values


def _not_finite(name: str, where: str) -> str:
    return f"the statistics of {name!r} are NaN or infinite: the model's states or outputs are, on {where}; {LOOK}"


def _rows(evaluator: Observed, rows: Indices) -> str:
    said = ", ".join(map(str, rows[:SAID].tolist())) + (", ..." if len(rows) > SAID else "")
    return f"{'row' if len(rows) == 1 else 'one of the rows'} {said} of evaluator {evaluator.name!r}"
