"""What does the harness make of a model's answers? Its own filters, metrics, aggregation and standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.errors import DataError, NonFinite, OptionError
from evaluators.evaluator import Indices, Measure, Metric
from evaluators.harness import bootstrap
from evaluators.harness.tasks import Loaded

WEIGHTED = ("weighted_perplexity", "bits_per_byte", "weighted_mean")
"""Aggregations of (value, weight) pairs: of one document alone they are that document's own value."""

Key = tuple[str, str, str]
"""Task or group, metric and filter, by the harness's names."""

Documents = Mapping[str, Sequence[tuple[int, Any, Any, list[Any]]]]
"""By task: row, view of the task, document, and its instances with responses."""


@dataclass(frozen=True)
class Named:
    """A metric that the evaluator offers, and where the harness has it."""

    metric: Metric
    key: Key
    group: bool  # an aggregate of tasks


def offered(name: str, loaded: Loaded) -> tuple[Named, ...]:
    """The metrics of a task or group, under readable names.

    `acc` for the task or group itself and its first filter; `acc.strict-match` for another filter; `anatomy.acc` for a
    member of a group. Raises `OptionError` where there is none.
    """
    found: list[Named] = []
    for group in loaded.groups:
        prefix = "" if group is loaded.root else f"{_short(group.name)}."
        members = group.get_all_tasks()
        for listed in group.aggregate_metric_list or []:
            with_it = [task for task in members if listed.metric in task.higher_is_better()]
            filters = listed.filter_list or list(dict.fromkeys(f.name for task in with_it for f in task._filters))
            goals = {bool(task.higher_is_better()[listed.metric]) for task in with_it}
            if len(goals) == 1:
                what = f"{listed.metric} of {group.name}, over {len(with_it)} tasks"
                found += _named((group.name, listed.metric), prefix, filters, goals.pop(), what, True)
    for task_name, task in loaded.tasks.items():
        prefix = "" if task is loaded.root else f"{_short(task_name)}."
        filters = [f.name for f in task._filters]
        for metric, higher in task.higher_is_better().items():
            if higher is not None:
                found += _named((task_name, metric), prefix, filters, bool(higher), f"{metric} of {task_name}", False)
    names = [one.metric.name for one in found]
    if not names or len(set(names)) < len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        why = f"offers {twice[0]!r} twice" if twice else "has no metric that says which way is better"
        raise OptionError(f"evaluator {name!r}: task {loaded.found.name!r} {why}; correct its metric_list")
    return tuple(found)


def _named(
    of: tuple[str, str], prefix: str, filters: Sequence[str], higher: bool, what: str, group: bool
) -> Iterator[Named]:
    goal: Any = "max" if higher else "min"
    for number, filtered in enumerate(filters):
        suffix = f".{filtered}" if number else ""
        said = f"{what}, filter {filtered}" if len(filters) > 1 else what
        yield Named(Metric(f"{prefix}{of[1]}{suffix}", goal, said), (*of, filtered), group)


def _short(name: str) -> str:
    """A member's name without that of the group that it was defined in."""
    return name.rpartition("::")[2]


class Scoring:
    """From responses to measures and per-item values, for the tasks of one evaluator."""

    def __init__(self, name: str, loaded: Loaded, named: Sequence[Named], bootstrap: int) -> None:
        self._name, self._loaded, self._named, self._bootstrap = name, loaded, named, bootstrap

    def measures(
        self, documents: Documents, rows: Indices
    ) -> tuple[dict[str, Measure], dict[str, NDArray[np.float32]]]:
        """Measures, and per-item values `(n,)` in the order of `rows`: NaN where a row has no such value."""
        raw = {task: self._process(task, answered) for task, answered in documents.items()}
        with bootstrap.here():
            results = self._aggregate({task: {k: list(v.values()) for k, v in of.items()} for task, of in raw.items()})
        measures = {one.metric.name: self._measure(one, results, raw) for one in self._named}
        per_item = {one.metric.name: self._per_item(one, raw, rows) for one in self._named}
        return measures, {name: values for name, values in per_item.items() if values is not None}

    def _process(
        self, task: str, answered: Sequence[tuple[int, Any, Any, list[Any]]]
    ) -> dict[tuple[str, str], dict[int, Any]]:
        """What the task makes of each document's responses: by metric and filter, the value of each row."""
        raw: dict[tuple[str, str], dict[int, Any]] = {}
        by_view: dict[int, list[Any]] = {}
        for _, view, _, instances in answered:
            by_view.setdefault(id(view), [view]).extend(instances)
        for view, *instances in by_view.values():
            view._instances = instances
            view.apply_filters()
        for row, view, doc, instances in answered:
            for filtered in instances[0].filtered_resps:
                try:
                    results = dict(view.process_results(dict(doc), [i.filtered_resps[filtered] for i in instances]))
                except Exception as error:  # the functions of tasks raise whatever they like
                    raise DataError(
                        f"evaluator {self._name!r}: task {task!r}, document {row}: its answer cannot be scored "
                        f"({type(error).__name__}: {error}); correct the document or the task's process_results"
                    ) from error
                for metric, value in results.items():
                    raw.setdefault((metric, filtered), {})[row] = value
        return raw

    def _aggregate(self, raw: Mapping[str, Mapping[tuple[str, str], list[Any]]]) -> dict[str, Any]:
        """Results by task and group, in the harness's own layout: `acc,none`, `acc_stderr,none`, `sample_len`."""
        from lm_eval.evaluator_utils import _compute_task_aggregations

        results: dict[str, Any] = {}
        for task_name, values in raw.items():
            try:
                found, count = _compute_task_aggregations(self._loaded.tasks[task_name], values, self._bootstrap)
            except OverflowError as error:
                raise NonFinite(
                    f"evaluator {self._name!r}: a metric of task {task_name!r} has no finite value ({error}); the "
                    "candidate has failed"
                ) from error
            except Exception as error:  # aggregations are whoever's
                raise DataError(
                    f"evaluator {self._name!r}: task {task_name!r}: its metrics cannot be put together "
                    f"({type(error).__name__}: {error}); correct its metric_list or process_results"
                ) from error
            results[task_name] = {"name": task_name, "sample_len": count, **found}
        for group in self._loaded.groups:
            results[group.name] = group.aggregate(results)
        return results

    def _measure(
        self, one: Named, results: Mapping[str, Any], raw: Mapping[str, Mapping[tuple[str, str], Mapping[int, Any]]]
    ) -> Measure:
        whose, metric, filtered = one.key
        found = results.get(whose, {})
        value = found.get(f"{metric},{filtered}")
        if not isinstance(value, int | float | np.number):
            given = ", ".join(sorted({f"{m},{f}" for of in raw.values() for m, f in of}))
            raise OptionError(
                f"evaluator {self._name!r}: task {whose!r} declares the metric {metric!r} (filter {filtered!r}) and "
                f"did not give it as a number; it gives: {given}. Name others as objectives, or correct its metric_list"
            )
        if not math.isfinite(value):
            raise NonFinite(f"evaluator {self._name!r}: {one.metric.name} is {value}; the candidate has failed")
        stderr = found.get(f"{metric}_stderr,{filtered}")
        known = isinstance(stderr, int | float | np.number) and math.isfinite(stderr)
        own = raw.get(whose, {}).get((metric, filtered), {})
        count = int(found["sample_count"][f"{metric},{filtered}"]) if one.group else len(own)
        return Measure(float(value), float(stderr) if known else None, count)

    def _per_item(
        self, one: Named, raw: Mapping[str, Mapping[tuple[str, str], Mapping[int, Any]]], rows: Indices
    ) -> NDArray[np.float32] | None:
        """Each row's own value; None for a metric whose values are no numbers (pairs of label and prediction, ...)."""
        whose, metric, filtered = one.key
        tasks = [whose]
        if one.group:
            tasks = [t.task_name for g in self._loaded.groups if g.name == whose for t in g.get_all_tasks()]
        values: dict[int, float] = {}
        for task in tasks:
            aggregation = self._loaded.tasks[task].aggregation().get(metric)
            for row, value in raw[task].get((metric, filtered), {}).items():
                if isinstance(value, tuple) and getattr(aggregation, "__name__", "") in WEIGHTED:
                    value = aggregation([value])
                if not isinstance(value, bool | int | float | np.bool_ | np.number):
                    return None
                values[row] = float(value)
        return np.array([values.get(row, np.nan) for row in rows.tolist()], dtype=np.float32)
