"""Which task do the user's own files mean? A file, the one of its folder, or a name in it; and what it refers to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.errors import DataError, OptionError
from evaluators.harness import guard, task_index
from evaluators.harness.process import quiet
from evaluators.options import expanded

BUILDERS = ("json", "csv", "parquet", "text", "arrow")
"""Data set paths that mean files of the user's."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a name means: an entry of the harness's index, that index, and the user's files that it was read from."""

    name: str
    entry: Any
    index: dict[str, Any]
    own: frozenset[str]  # names in the index that come from the user's files
    files: tuple[Path, ...]
    code: tuple[str, ...]


def local(task: str, root: Path) -> Found:
    """A task file: `path/to/task.yaml`, a folder that holds one task, or `folder/NAME`.

    A file that is named is the task, whatever other files in its folder call theirs; files that nothing refers to do
    not count.
    """
    path = root / expanded(task)
    home, wanted = _place(task, path, root)
    own, read = _own_index(home, path)
    wanted = wanted or _only(task, own)
    if wanted not in own:
        raise OptionError(f"task {task!r}: {home} has no task {wanted!r}; {task_index.near(wanted, own)}")
    names = _reached(wanted, own)
    for name in names:
        places = [place for place, one in read.items() if _called(one.config) == name]
        if len(places) > 1 and own[name].yaml_path != path:
            remedy = "say the path of the file" if name == wanted else "give one of them another name"
            raise OptionError(f"task {task!r}: {places[0]} and {places[1]} are both {name!r}; {remedy}")
    index = {name: own[name] for name in names}
    if any(child not in own for name in names for child in _children(own[name])):
        index = {**task_index.index(), **index}
    used = [read[own[name].yaml_path] for name in names if own[name].yaml_path]  # a tag has none
    files = dict.fromkeys(file for one in used for file in one.files)
    code = [line for one in used for line in one.code]
    if code:  # the modules beside the files are read too: a change of them is a change of the task
        files.update(dict.fromkeys(p for file in list(files) for p in _modules(file.parent, code)))
    files.update(dict.fromkeys(path for one in used for path in _data_files(one)))
    return Found(wanted, own[wanted], index, frozenset(names), tuple(files), tuple(dict.fromkeys(code)))


def _place(task: str, path: Path, root: Path) -> tuple[Path, str]:
    """The folder that a path means, and the task's name in it; no name where it is the folder's only one."""
    if path.is_file():
        wanted = _called(guard.read(path, path.parent).config)
        if not (isinstance(wanted, str) and wanted):
            raise DataError(f"{task}: expected a task file with the key `task` or `group`; see docs/harness.md")
        return path.parent, wanted
    _exists(task, path, root)
    return (path, "") if path.is_dir() else (path.parent, path.name)


def missing(task: str, root: Path) -> str | None:
    """Why a task cannot be read that is a path, before anything is read; None where it may, and for a name."""
    if not is_path(task):
        return None
    try:
        _exists(task, root / expanded(task), root)
    except (OptionError, OSError) as error:
        return str(error)
    return None


def is_path(task: str) -> bool:
    """Whether a task is a path of the user's, and no name."""
    return "/" in task or task.endswith(task_index.SUFFIXES)


def _exists(task: str, path: Path, root: Path) -> None:
    """Raises OptionError where a path is no file, no folder, and no name in a folder."""
    if path.is_file() or path.is_dir():
        return
    if path.name.endswith(task_index.SUFFIXES):
        raise OptionError(f"task {task!r}: {task_index.no_file(path, root)}")
    if path.exists() or not path.parent.is_dir():
        raise OptionError(f"task {task!r}: no such file or folder ({path}); correct the path")


def _called(config: Mapping[str, Any]) -> Any:
    """The name under which the harness's index has a task file."""
    return config.get("group" if "group" in config and "class" not in config else "task")


def _only(task: str, own: Mapping[str, Any]) -> str:
    """The one task of a folder that is no member of another."""
    children = {child for entry in own.values() for child in _children(entry)}
    tops = [name for name, entry in own.items() if entry.kind.name != "TAG" and name not in children]
    if len(tops) != 1:
        told = ", ".join(f"{task.rstrip('/')}/{name}" for name in tops)
        raise OptionError(f"task {task!r}: a folder with {len(tops)} tasks; name one: {told or 'there is none'}")
    return tops[0]


def _modules(folder: Path, code: Sequence[str]) -> list[Path]:
    """The Python files of a folder, and of the packages there of which a function is named (`!function pkg.mod.f`)."""
    named = [line.partition("!function ")[2].split(".")[0] for line in code]
    packages = [folder / name for name in dict.fromkeys(named) if name]
    return sorted([*folder.glob("*.py"), *(p for package in packages for p in package.rglob("*.py"))])


def _data_files(task: guard.TaskFile) -> Iterator[Path]:
    """The data files that a task file names; raises `DataError` for a relative one, which each process would look for
    in a place of its own."""

    def named(value: Any, inside: bool) -> Iterator[str]:
        if isinstance(value, dict):
            for key, below in value.items():
                yield from named(below, inside or key == "data_files")
        elif isinstance(value, list):
            for below in value:
                yield from named(below, inside)
        elif inside and isinstance(value, str) and "://" not in value:
            yield value

    for name in named(task.config, False):
        if not Path(name).is_absolute():
            raise DataError(
                f"{task.files[0]}: data_files: expected an absolute path, got {name!r}; write it out, or name the file "
                "under the evaluator's `data`"
            )
        if Path(name).is_file():  # and not a pattern
            yield Path(name)


def _own_index(home: Path, first: Path) -> tuple[dict[str, Any], dict[Path, guard.TaskFile]]:
    """The harness's index over the user's folder, and its task files as they were read; other YAML there is left alone.

    Of files that share a name the index has one: `first`, where it is among them.
    """
    from lm_eval.tasks._index import TaskIndex

    index: dict[str, Any] = {}
    read: dict[Path, guard.TaskFile] = {}
    for path in sorted([*home.rglob("*.yaml"), *home.rglob("*.yml")], key=lambda path: (path != first, path)):
        try:
            found = guard.read(path, home)
            with quiet():  # it warns of files that share a name, whether they are asked for or not
                TaskIndex.process_cfg(found.config, path, index)
        except (ValueError, TypeError, KeyError):  # DataError is one: a file asked for by name is read again, and heard
            continue
        read[path] = found
    return index, read


def _children(entry: Any) -> list[str]:
    """The names of the members of a group or tag."""
    if entry.kind.name not in ("GROUP", "TAG"):
        return []
    listed = (entry.cfg or {}).get("task")
    return list(members(listed)) if isinstance(listed, list) else sorted(entry.tags)


def members(listed: Sequence[Any]) -> Iterator[str]:
    """The names in a group's list, and in the lists of groups that are written out in it."""
    for child in listed:
        if not isinstance(child, dict):
            yield str(child)
            continue
        yield str(child.get("group") or child.get("task"))
        if isinstance(below := child.get("task"), list):
            yield from members(below)


def _reached(name: str, own: Mapping[str, Any]) -> list[str]:
    """The names of the user's that building `name` reads, itself first."""
    seen: dict[str, None] = {}
    ahead = [name]
    while ahead:
        now = ahead.pop()
        if now in own and now not in seen:
            seen[now] = None
            ahead += _children(own[now])
    return list(seen)
