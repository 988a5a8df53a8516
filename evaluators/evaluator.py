"""What does an evaluator owe? Metrics in natural units, each with its standard error and item count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Metric:
    """One number that an evaluator reports, and which way is better."""

    name: str
    goal: Literal["max", "min"]
    summary: str


@dataclass(frozen=True)
class Measure:
    """A metric's value in natural units, its standard error over items, and the number of items."""

    value: float
    stderr: float
    count: int


@dataclass(frozen=True, eq=False)
class Scores:
    """What one candidate scored: `measures` by metric name, and `per_item` values, float32 of shape `(n,)`."""

    measures: Mapping[str, Measure]
    per_item: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Splits:
    """Row numbers of the calibration and of the held-out items: disjoint, each sorted."""

    calibration: Indices
    heldout: Indices


@dataclass(frozen=True, eq=False)
class Head:
    """A task's head: the folder of the expert that it belongs to (its config), and its tensors by name."""

    folder: Path
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Setting:
    """Where an evaluator is to work, once per worker."""

    model: torch.nn.Module  # the resident merged model, whose weights change in place between candidates
    folder: Path  # the base model's folder: tokenizer, image processor, config
    device: torch.device
    heads: Mapping[str, Head] = field(default_factory=dict)  # by expert
    batch_size: int = 32


class Evaluator(Protocol):
    """Scores a merged model on items.

    A class in the table `evaluators.EVALUATORS` has also the attribute `Options` (a pydantic model that refuses unknown
    keys) and is made as `Class(name, options, root)`; `root` is the folder that relative data paths start from. Making
    one reads and checks the items, and loads no model.
    """

    name: str
    metrics: tuple[Metric, ...]
    splits: Splits
    files: tuple[Path, ...]  # the data files that were read, for content hashes

    def prepare(self, setting: Setting) -> None:
        """Tokenise, collate and move what does not depend on the weights. Once per worker."""
        ...

    def score(self, model: Any, items: Indices) -> Scores:
        """Scores of the model as it is now on these rows; raises `NonFinite` where logits or losses are not finite."""
        ...
