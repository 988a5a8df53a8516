"""What of a run's inputs has changed since it was made? Key by key, in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from optimizer import drivers
from optimizer.jobs.job import Hashes, Job
from optimizer.jobs.job_search import Gradients
from optimizer.wording import in_line


def identity(job: Job) -> dict[str, Any]:
    """What a run's answers depend on, as JSON values: all of the job but budget, executor, ledger, name and place."""
    found = job.model_dump(mode="json", exclude={"budget", "executor", "ledger", "name", "root", "hashes"})
    if not job.constraints:  # as of runs from before there were any
        del found["constraints"]
    if job.fidelity is None:  # likewise
        del found["fidelity"]
    if found["driver"]["scalarisation"] == "sum":  # as in runs that were made before one could say otherwise
        del found["driver"]["scalarisation"]
    if job.driver.gradients is None and not drivers.find(job.driver.name).optional:  # as in those, too
        found["driver"]["gradients"] = Gradients().model_dump(mode="json")
    return dict(json.loads(json.dumps(found)))


def edits(made: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """The differences of two jobs' identities, without what follows from another driver's name alone."""
    if made["driver"]["name"] != now["driver"]["name"]:
        made, now = _without_defaults(made), _without_defaults(now)
    return differences(made, now)


def _without_defaults(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """A job's identity without the gradients that its driver has unless the user says otherwise: see `identity`."""
    driver = job["driver"]
    entry = drivers.table().get(driver["name"])
    if entry is None or entry.optional or driver.get("gradients") != Gradients().model_dump(mode="json"):
        return job
    return {**job, "driver": {**driver, "gradients": None}}


def differences(made: Any, now: Any, where: str = "") -> Iterator[str]:
    """One line for each value of a job that is not what it was: `space.method: was 'ties', is 'linear'`."""
    if isinstance(made, Mapping) and isinstance(now, Mapping):
        for key in [*made, *(k for k in now if k not in made)]:
            inner = f"{where}.{in_line(str(key))}" if where else in_line(str(key))
            if key not in made:
                yield f"{inner}: was not set, is {now[key]!r}"
            elif key not in now:
                yield f"{inner}: was {made[key]!r}, is not set"
            else:
                yield from differences(made[key], now[key], inner)
    elif isinstance(made, list) and isinstance(now, list) and len(made) == len(now):
        for i, (a, b) in enumerate(zip(made, now, strict=True)):
            yield from differences(a, b, f"{where}[{_name(a, i)}]")
    elif made != now:
        yield f"{where}: was {made!r}, is {now!r}"


def changed_content(made: Hashes, now: Hashes) -> Iterator[str]:
    """One line for each model, data file or data set whose content is not what it was."""
    for what, before, after in (("model", made.models, now.models), ("data", made.data, now.data)):
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                yield f"{what} {name!r}: sha256 was {_short(before.get(name))}, is {_short(after.get(name))}"


def _name(entry: Any, index: int) -> str:
    return str(entry["name"]) if isinstance(entry, Mapping) and "name" in entry else str(index)


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]
