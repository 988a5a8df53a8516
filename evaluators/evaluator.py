"""What does an evaluator owe? Metrics in natural units, each with its standard error and item count."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from pydantic import BaseModel

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Metric:
    """One number that an evaluator reports, which way is better, and between which bounds it lies, where known.

    `whole`: it is of all items together, and no mean over them, so that some items could not tell it.
    """

    name: str
    goal: Literal["max", "min"]
    summary: str
    low: float = -math.inf
    high: float = math.inf
    whole: bool = False


@dataclass(frozen=True)
class Measure:
    """A metric's value in natural units, its standard error over items (None: not known), and the number of items."""

    value: float
    stderr: float | None
    count: int


@dataclass(frozen=True, eq=False)
class Scores:
    """What one candidate scored: `measures` by metric name, and `per_item` values, float32 of shape `(n,)`.

    Per-item values are in the order of the rows that were asked, NaN for an item that a metric says nothing of; a
    metric that is no mean over items has none.
    """

    measures: Mapping[str, Measure]
    per_item: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Splits:
    """Row numbers of the calibration and of the held-out items, and of those that only gradients see: all disjoint,
    each sorted. `alike` has a number for each row of the data, the same for rows of equal content.

    `blocks` are calibration rows that are scored before the others, one block after the other: rows of different ones
    never go through a model together, so that a block costs what its rows cost. Iteration gives what may be batched.
    """

    calibration: Indices
    heldout: Indices
    train: Indices = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    alike: Indices | None = None  # None: no two rows are equal
    blocks: tuple[Indices, ...] = ()

    def parted(self, train: Indices) -> Splits:
        """The same with these calibration rows as `train`."""
        return Splits(np.setdiff1d(self.calibration, train), self.heldout, np.sort(train), self.alike)

    def in_blocks(self, blocks: Sequence[Indices]) -> Splits:
        """The same with these blocks of calibration rows."""
        return replace(self, blocks=tuple(np.sort(block) for block in blocks))

    def __iter__(self) -> Iterator[Indices]:
        rest = np.setdiff1d(self.calibration, np.concatenate(self.blocks)) if self.blocks else self.calibration
        return iter((*self.blocks, rest, self.heldout, self.train))


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
    shrink: int = 1  # every batch is to be this many times smaller: memory was short

    def size(self, asked: int | None) -> int:
        """Items that go through the model together, where the user asked for so many."""
        return max(1, (asked or self.batch_size) // self.shrink)


class Evaluator(Protocol):
    """Scores a merged model on items.

    A class in the table `evaluators.EVALUATORS` has also the attribute `Options`, a pydantic model that refuses
    unknown keys. Making one validates the options (`OptionError`), reads and checks the items (`DataError`), and loads
    no model; `root` is the folder that relative data paths start from. Where `runs_code` is true, making one runs
    Python code that a job file names: whoever makes it asks the user first. A class of which only some options name
    code has the static method `code(options, root)`, which tells where they do, running nothing.

    Where items were chosen for the user, `provenance` says in sentences which are calibration and which are held out.
    What was read that is no file of the user's (a data set of the hub) is known by `contents`: sha256 in hex by name.
    A class that reads no head of the model's, but one of the task's own, has `brings_head`, true. One whose metrics
    follow from its options alone has the static method `reports(options)`, which tells them and reads no items:
    objectives and constraints are then checked on paper, too.
    """

    runs_code: ClassVar[bool]
    Options: ClassVar[type[BaseModel]]

    name: str
    metrics: tuple[Metric, ...]
    losses: Mapping[str, str]  # kinds of loss that can be differentiated, and what each is: see `Differentiable`
    splits: Splits  # may be set anew before `prepare`, to part what gradients see from what candidates are scored on
    files: tuple[Path, ...]  # the data files that were read, for content hashes

    def __init__(self, name: str, options: BaseModel | Mapping[str, Any], root: Path) -> None: ...

    def prepare(self, setting: Setting) -> None:
        """Tokenise, collate and move what does not depend on the weights. Once per worker and `shrink`."""
        ...

    def score(self, model: Any, items: Indices) -> Scores:
        """Scores of the model as it is now on these rows of either split, shape `(n,)`, at least one, in any order.

        `model` is the resident model, or another of its architecture. The same weights give the same bits, and an
        item's own results do not depend on which others are asked with it. Raises `NonFinite` where logits or losses
        are not finite.
        """
        ...


def brings_head(evaluator: Evaluator) -> bool:
    """Whether an evaluator, prepared or not, has a head of its own; the others read the model's."""
    return bool(getattr(evaluator, "brings_head", False))


TAUGHT = ("kl", "hidden")
"""Kinds of loss that follow a teacher."""


@dataclass(frozen=True)
class Loss:
    """What is differentiated: the weighted sum of these kinds of loss, each a mean over items (`language`: tokens)."""

    weights: Mapping[str, float]  # by kind
    temperature: float = 1.0  # of kind `kl`: KL(softmax(teacher / T) || softmax(model / T)) * T^2


class Differentiable(Evaluator, Protocol):
    """An evaluator with losses that a gradient can be taken of.

    Kinds `kl` and `hidden` follow a teacher: the expert of this task, whose outputs on every item are computed once and
    kept in a file, so that no second model is ever in memory.
    """

    teacher: str | None  # the expert that `kl` and `hidden` follow; None where it has none
    learns: bool  # a metric needs the teacher, whatever the loss

    def teach(self, model: Any, file: Path, hidden: bool, room: Callable[[int], None] = lambda needed: None) -> None:
        """Write the outputs of `model`, which now is the teacher, on the items of both splits to a safetensors file.

        After `prepare`; with `hidden`, hidden states too. `room` is called with the bytes that they will take, before
        any is written: whoever keeps the file makes room for it. Raises `NonFinite` where they are not finite, and
        `DataError` where the disk has no room.
        """
        ...

    def learn(self, file: Path) -> None:
        """Take the teacher's outputs from a file that `teach` wrote, by mmap. After `prepare`.

        Raises `DataError` where the file is of other items, whatever their number, or of other classes.
        """
        ...

    def loss(self, model: Any, items: Indices, loss: Loss, of: Indices | None = None) -> Iterator[torch.Tensor]:
        """Scalars, one a microbatch, whose sum is the loss over these rows `(n,)`, with the graph to the weights.

        Where the rows are a share of the minibatch `of`, it is their part of the loss over all of that.
        Each is to be differentiated before the next is drawn: one microbatch's graph is in memory at a time. The model
        is in eval mode: no dropout. Raises `NonFinite` where the loss is not finite, `OptionError` for a kind that is
        not among `losses`.
        """
        ...


class Observed(Evaluator, Protocol):
    """An evaluator on whose items a model's statistics can be gathered (`evaluators.statistics`), after `prepare`."""

    def unpadded(self, rows: Indices, size: int) -> list[Indices]:
        """These rows in groups of one length, at most `size` each, so that what goes in has no padding."""
        ...

    def observe(self, model: Any, rows: Indices) -> None:
        """Run the model on these rows, a group of `unpadded`, for what watches its layers."""
        ...

    def likelihoods(self, model: Any, row: int) -> Iterator[tuple[float, torch.Tensor]]:
        """Answers to one row that the model might give: a share each, and the log-likelihood, a scalar with the graph.

        The expectation over answers is the sum by these shares. Each is to be differentiated before the next is drawn.
        """
        ...

    def predictions(self, row: int) -> int:
        """How many predictions one row asks for: what `likelihoods` are sums over."""
        ...
