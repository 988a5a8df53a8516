"""Which job is sent to a cluster, and do its paths mean anything there?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optimizer.errors import JobError
from optimizer.jobs.job import Job
from optimizer.jobs.plain_yaml import read_yaml


def shipped(path: Path, name: str | None, root: str | None) -> Job:
    """The job as the cluster is to read it: its paths are the cluster's, and its workers run there.

    Relative paths start from `root`, or from an absolute `root` of the job itself. Raises JobError where there are
    relative paths and neither: the folder of the job file is one of this host.
    """
    Job.load(path)  # refusals that need no cluster, with the file's name
    data = dict(read_yaml(path))
    root = root or data.get("root")
    if root is not None and not str(root).startswith("/"):
        raise JobError(f"root: expected an absolute folder of the cluster, got {str(root)!r}")
    if root is None and (relative := list(_relative(data))):
        raise JobError(
            f"{path}: {'; '.join(relative[:4])}{' …' if len(relative) > 4 else ''}: relative paths start from the job "
            "file's folder, which the cluster does not have; name the folder there with --root, or write absolute paths"
        )
    executor = {**(data.get("executor") or {}), "address": "auto"}  # the cluster that the job is on
    data.update(executor=executor, root=str(root or "/"), **({"name": name} if name else {}))
    return Job.parse(data, Path("/"), str(path))


def _relative(data: dict[str, Any]) -> Iterator[str]:
    """Keys with paths that are neither absolute, nor of a home folder, nor models of the hub."""
    models = data["models"]
    for key, value in (("base", models["base"]), *((f"experts.{n}", v) for n, v in models["experts"].items())):
        if "@" not in value and not value.startswith(("/", "~")):
            yield f"models.{key}: {value}"
    for entry in data["evaluators"]:
        for option in ("data", "function", "task"):
            said = entry.get(option)
            for value in said.values() if isinstance(said, dict) else [said]:
                # a task without an ending is one that the harness has itself
                is_path = isinstance(value, str) and (option != "task" or value.endswith((".yaml", ".yml")))
                if is_path and not value.startswith(("/", "~")):
                    yield f"evaluators.{entry['name']}.{option}: {value}"
