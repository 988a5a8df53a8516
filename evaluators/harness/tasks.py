"""Which task does a name mean? One of the harness's own, or a task file of the user's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.errors import DataError, OptionError
from evaluators.harness import guard, task_files, task_index
from evaluators.harness.task_files import Found


@dataclass(frozen=True, eq=False)
class Loaded:
    """The tasks of a name with their data sets, by the harness's name; groups, children before their parents."""

    found: Found
    tasks: Mapping[str, Any]
    groups: tuple[Any, ...]
    root: Any  # the task or group itself; None for a tag

    @property
    def sandboxed(self) -> bool:
        """Whether templates come from a file of the user's."""
        return bool(self.found.own)


def need() -> None:
    """Raise `OptionError` where the harness is not installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise OptionError(
            f"evaluators of kind 'harness' need lm-eval ({error}); install it: pip install 'mergeopt[harness]'"
        ) from error


def find(task: str, root: Path) -> Found:
    """The task, group or tag that `task` means: a path where it has a slash or ends in .yaml or .yml, else a name.

    Raises `OptionError` for a name that is none, with the nearest, and `DataError` for a file that is no task file.
    """
    need()
    if task_files.is_path(task):
        return task_files.local(task, root)
    try:
        entry, index = task_index.bundled(task)
    except OptionError as error:
        beside = task_index.files_named(task, root)
        raise OptionError(f"{error} for your own file say {beside[0]}" if beside else str(error)) from None
    return Found(task, entry, index, frozenset(), (), ())


def load(found: Found, overrides: Mapping[str, Any], where: str) -> Loaded:
    """Build the tasks, which reads their data sets; raises `DataError` where one cannot be had."""
    from lm_eval.api.group import Group
    from lm_eval.tasks._factory import TaskFactory

    _refuse_unsafe(found, where)
    try:
        with guard.templates(bool(found.own)):
            # a copy: the factory writes into the index that it is given
            built = TaskFactory().build(found.entry, overrides=dict(overrides) or None, registry=dict(found.index))
    except Exception as error:  # task files, their functions and `datasets` raise whatever they like
        if isinstance(error, TypeError) and not overrides and (bare := _without_data(found)) is not None:
            raise DataError(f"{where}: task {bare!r} has no dataset_path; say data: FILE in the job") from error
        raise DataError(f"{where}: task {found.name!r} cannot be made: {_reason(error)}") from error
    if isinstance(built, Group):
        groups = tuple(_bottom_up(built))
        return Loaded(found, {task.task_name: task for task in built.get_all_tasks()}, groups, built)
    many = built if isinstance(built, list) else [built]
    return Loaded(found, {task.task_name: task for task in many}, (), built if len(many) == 1 else None)


def _refuse_unsafe(found: Found, where: str) -> None:
    """Raise `OptionError` for a task that runs what a model writes, before the code that would do so is imported."""
    for name, config in _configs(found):
        if config.get("unsafe_code"):
            raise OptionError(f"{where}: task {name!r} runs the code that a model writes; use another task")


def _without_data(found: Found) -> str | None:
    """A task of the user's that says nothing of a data set; None where there is none."""
    keys = ("dataset_path", "custom_dataset", "class")
    tasks = ((name, config) for name, config in _configs(found) if isinstance(config.get("task"), str))
    return next((name for name, config in tasks if name in found.own and not any(map(config.get, keys))), None)


def _configs(found: Found) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the files say of the name and of all that it is built from; functions as text."""
    from lm_eval.tasks._index import Kind
    from lm_eval.tasks._yaml_loader import load_yaml

    ahead, seen = [found.name], set()
    while ahead:
        name = ahead.pop()
        entry = found.index.get(name)
        if entry is None or name in seen:
            continue
        seen.add(name)
        config = load_yaml(entry.yaml_path, resolve_func=False) if entry.yaml_path else {}
        yield name, config
        if isinstance(listed := config.get("task"), list):
            ahead += task_files.members(listed)
        elif entry.kind == Kind.TAG:
            ahead += sorted(entry.tags)


def _bottom_up(group: Any) -> Iterator[Any]:
    for child in group.get_all_groups(recursive=False):
        yield from _bottom_up(child)
    yield group


def _reason(error: BaseException) -> str:
    """What to tell the user of whatever the harness or `datasets` raised."""
    said = f"{type(error).__name__}: {str(error)[:400]}"
    offline = [k for k in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE") if os.environ.get(k, "") not in ("", "0")]
    chain: BaseException | None = error
    while chain is not None:
        if "offline" in type(chain).__name__.lower() or isinstance(chain, ConnectionError):
            why = f"{offline[0]} is set" if offline else "the hub cannot be reached"
            return f"its data set is not on this machine, and {why} ({said}); fetch it once where there is a network"
        chain = chain.__cause__ or chain.__context__
    hint = "its first document may have an empty choice; " if isinstance(error, IndexError) else ""
    return f"{said}; {hint}correct the task, or name another"
