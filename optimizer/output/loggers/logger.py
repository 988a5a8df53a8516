"""What does a logger of a search owe, and what is it told?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from optimizer.wording import shown

Values = Mapping[str, float]


@dataclass(frozen=True)
class Begun:
    """A run whose search begins, or goes on.

    `id` is the run's own, the same after a resume and in copies; `parameters` the job, flat; `objectives` maps metrics
    to the better direction.
    """

    id: str
    name: str
    folder: Path
    parameters: Mapping[str, str | float | bool]
    objectives: Mapping[str, Literal["max", "min"]]


@dataclass(frozen=True)
class Step:
    """One candidate that was answered on calibration items.

    `at` counts these answers, 1 first, and grows over a resume; a candidate that was told from a share of the items may
    be answered again, on all of them. `values` and `stderr` are by objective, in natural units; there
    are none where it failed, and a standard error may be missing. `estimated`: told from a share of the items. `best`
    are the values of the candidate of the best mean so far.
    """

    at: int
    number: int
    stage: str
    values: Values
    stderr: Values
    best: Values
    hypervolume: float
    seconds: float
    estimated: bool = False
    failure: str | None = None


@dataclass(frozen=True)
class Row:
    """One candidate of the front, best mean first: what it scored on calibration and on held-out items."""

    label: str
    recipe: str
    values: Values
    stderr: Values
    heldout: Values = field(default_factory=dict)
    heldout_stderr: Values = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """A search that has ended, or was stopped; `finished` says which."""

    front: Sequence[Row]
    hypervolume: float
    finished: bool


class Logger(Protocol):
    """Told of a search in its order, from one thread, which is not the search's: it may take its time, and may raise.

    What it raises is told once, and ends it. `end` is left out where the search broke off. `close` comes last, whatever
    came before it.
    """

    def start(self, run: Begun) -> None: ...
    def step(self, step: Step) -> None: ...
    def end(self, run: Ended) -> None: ...
    def close(self) -> None: ...


@runtime_checkable
class Abandonable(Protocol):
    """A logger whose library would keep this process from ending: it is told, from another thread, that nobody waits
    any more for what it is at."""

    def abandon(self) -> None: ...


def scalars(step: Step) -> dict[str, float]:
    """A step's numbers by the names that all loggers have for them."""
    kind = "estimated" if step.estimated else "candidate"
    parts = {kind: step.values, "stderr": step.stderr, "best": step.best}
    found = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    rest = {"hypervolume": step.hypervolume, "seconds": step.seconds, "failed": float(step.failure is not None)}
    return found | rest


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | float | bool]:
    """A job's values by dotted keys, those that are there. Texts are fit to be shown.

    What is listed by name is under its name (`evaluators.spam.data`), other lists are JSON.
    """
    found: dict[str, str | float | bool] = {}
    for key, value in values.items():
        name = f"{prefix}{shown(str(key), 100)}"
        if (listed := _by_name(value)) is not None:
            found |= flat(listed, f"{name}.")
        elif isinstance(value, bool | int | float):
            found[name] = value
        elif value is not None and value != []:
            found[name] = shown(value if isinstance(value, str) else json.dumps(value), 500)
    return found


def _by_name(value: Any) -> Mapping[str, Any] | None:
    """A mapping as it is, and a list of mappings that each have a name of their own by these; None for all else."""
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, list) or not value or not all(isinstance(v, Mapping) and "name" in v for v in value):
        return None
    found = {str(v["name"]): {key: inner for key, inner in v.items() if key != "name"} for v in value}
    return found if len(found) == len(value) else None


def columns(front: Sequence[Row], objectives: Sequence[str]) -> dict[str, list[Any]]:
    """A front as columns: candidate, recipe, and of each objective value and standard error, held-out ones too."""
    found: dict[str, list[Any]] = {"candidate": [r.label for r in front], "recipe": [r.recipe for r in front]}
    for name in objectives:
        found[name] = [r.values.get(name) for r in front]
        found[f"{name} stderr"] = [r.stderr.get(name) for r in front]
        found[f"{name} heldout"] = [r.heldout.get(name) for r in front]
        found[f"{name} heldout stderr"] = [r.heldout_stderr.get(name) for r in front]
    return found
