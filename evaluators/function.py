"""What does the user's own Python function say? Its numbers, checked; it runs only where the user allowed code."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from evaluators import metrics
from evaluators.errors import NonFinite, OptionError
from evaluators.evaluator import Indices, Measure, Metric, Scores, Setting
from evaluators.options import ItemOptions, expanded, parse
from evaluators.splits import load_items
from evaluators.texts import load_tokenizer

Result = Mapping[str, Any]


class FunctionOptions(ItemOptions):
    """Options of kind `function`."""

    function: Annotated[str, Field(pattern=r"^[^:]+:[A-Za-z_]\w*$")]
    """`path/to/file.py:name` (relative to the job's folder) or `module:name`."""
    metrics: Annotated[dict[Annotated[str, Field(pattern=r"^\w+$")], Literal["max", "min"]], Field(min_length=1)]
    """The metrics that the function returns, and which way each is better."""
    columns: list[str] | None = None
    """The columns of the rows that the function gets. Default: all."""


class Function:
    """A user's `function(model, rows, tokenizer)`.

    `model` is the merged model in evaluation mode, on its device, under `torch.inference_mode`; `rows` are the items
    asked for, a list of dicts by column in ascending row order; `tokenizer` is the base model's, or None where it has
    none. It returns a dict with every declared metric: one number (standard error unknown, given as 0), or one number
    for each row (their mean is the metric). It must not change the model, and the same weights must give the same
    numbers.
    """

    runs_code: ClassVar[bool] = True
    Options: ClassVar[type[FunctionOptions]] = FunctionOptions
    losses: ClassVar[Mapping[str, str]] = {}  # what a user's function computes is a number, not a graph

    def __init__(self, name: str, options: FunctionOptions | Mapping[str, Any], root: Path) -> None:
        self.name = name
        asked = parse(FunctionOptions, name, options)
        self._spec = asked.function
        self._items = load_items(asked, root, asked.columns)
        self._rows = self._items.rows
        self.splits, self.files = self._items.splits, self._items.files
        self._function, source = _load(name, asked.function, root)
        self.files += source
        self.metrics = self.reports(asked)

    @staticmethod
    def reports(asked: FunctionOptions) -> tuple[Metric, ...]:
        """The metrics of one with these options."""
        return tuple(Metric(key, goal, f"{key} by {asked.function}") for key, goal in asked.metrics.items())

    def prepare(self, setting: Setting) -> None:
        """Load the tokenizer, where the base has one."""
        has_one = any((setting.folder / file).is_file() for file in ("tokenizer_config.json", "tokenizer.json"))
        self._tokenizer = load_tokenizer(setting.folder) if has_one else None

    @torch.inference_mode()
    def score(self, model: Any, items: Indices) -> Scores:
        """The function's numbers on these rows; raises `OptionError` for a wrong result, `NonFinite` for NaN in it."""
        self._items.check(self.name, items)
        model.eval()
        order = np.argsort(items, kind="stable")
        rows = [dict(self._rows[row]) for row in items[order].tolist()]
        result = self._function(model, rows, self._tokenizer)
        if not isinstance(result, Mapping):
            raise OptionError(
                f"evaluator {self.name!r}: {self._spec} returned {type(result).__name__}, expected a dict of metrics"
            )
        declared = [metric.name for metric in self.metrics]
        if set(result) != set(declared):
            raise OptionError(
                f"evaluator {self.name!r}: {self._spec} returned {', '.join(map(str, result)) or 'nothing'}, but "
                f"`metrics` declares {', '.join(declared)}; make them the same"
            )
        measures: dict[str, Measure] = {}
        per_item: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}
        for key in declared:
            values = self._numbers(key, result[key], len(rows))
            if values.ndim == 0:
                measures[key] = Measure(float(values), None, len(rows))  # no items to tell how sure
            else:
                measures[key] = metrics.mean(values)
                per_item[key] = np.empty(len(rows), dtype=np.float32)
                per_item[key][order] = values
        return Scores(measures, per_item)

    def _numbers(self, key: str, value: Any, rows: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """One number, shape `()`, or one for each row, shape `(rows,)`."""
        plain = value.detach().cpu().double().numpy() if isinstance(value, torch.Tensor) else value
        expected = f"a number, or {rows} numbers, one for each row"
        try:
            values = np.asarray(plain, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise OptionError(
                f"evaluator {self.name!r}: metric {key!r} of {self._spec}: expected {expected}; {error}"
            ) from None
        if values.shape not in ((), (rows,)):
            raise OptionError(
                f"evaluator {self.name!r}: metric {key!r} of {self._spec}: expected {expected}, "
                f"got shape {values.shape}"
            )
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise NonFinite(
                f"evaluator {self.name!r}: {bad} of {values.size} values of metric {key!r} by {self._spec} are NaN or "
                "infinite; the candidate has failed"
            )
        return values


def _load(
    name: str, spec: str, root: Path
) -> tuple[Callable[[Any, list[dict[str, Any]], Any], Result], tuple[Path, ...]]:
    """Import the function, and say which file it came from; raises `OptionError` where it is not there."""
    where, _, wanted = spec.rpartition(":")
    files: tuple[Path, ...] = ()
    try:
        if where.endswith(".py"):
            path = root / expanded(where)
            files = (path,)
            found = importlib.util.spec_from_file_location(f"mergeopt_function_{path.stem}", path)
            if found is None or found.loader is None or not path.is_file():
                raise FileNotFoundError(f"no file {path}")
            module = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except Exception as error:  # a user's module may raise anything
        raise OptionError(
            f"evaluator {name!r}: cannot import {where} ({type(error).__name__}: {error}); correct `function`"
        ) from error
    function = getattr(module, wanted, None)
    if not callable(function):
        public = ", ".join(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise OptionError(f"evaluator {name!r}: {where} has no function {wanted!r}; it has: {public or 'none'}")
    return function, files
