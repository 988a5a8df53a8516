"""What may a task file of the user's hold? Read strictly; code is named before it runs, templates are sandboxed."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.errors import DataError

LIMIT = 1_000_000
"""Bytes of one task file."""
MAX_DEPTH = 100
"""Of values inside values in it."""


@dataclass(frozen=True)
class TaskFile:
    """A task file with what it includes: its keys (functions as text), the files read, and the code that it names."""

    config: dict[str, Any]
    files: tuple[Path, ...]
    code: tuple[str, ...]  # `task.yaml, line 3: !function utils.pick`, ...


def read(path: Path, home: Path) -> TaskFile:
    """Read a task file and all that it includes, running nothing.

    Raises `DataError` for what is no YAML mapping, is larger than `LIMIT`, has aliases, or includes a file that is not
    below the folder `home`.
    """
    return _read(path, home.resolve(), ())


def _read(path: Path, home: Path, seen: tuple[Path, ...]) -> TaskFile:
    from lm_eval.tasks._yaml_loader import load_yaml

    path = path.resolve()
    if path in seen:
        raise DataError(f"{path.name}: includes itself; remove the circle")
    if not path.is_relative_to(home):
        raise DataError(f"{seen[-1].name}: includes {path}, which is not in {home}; copy it there")
    code = _tags(path)
    try:
        config = load_yaml(path, resolve_func=False, recursive=False)
    except Exception as error:  # the harness's own loader says it in its own way
        raise DataError(f"{path}: not a task file ({error}); see docs/harness.md") from error
    code += [f"{path.name}: {named}" for named in _keys(config)]
    files = [path]
    merged: dict[str, Any] = {}
    includes = config.pop("include", [])
    for name in includes if isinstance(includes, list) else [includes]:
        found = _read(path.parent / str(name), home, (*seen, path))
        found.config.pop("task_list", None)  # as in the harness: it belongs to the included file
        merged.update(found.config)
        files += found.files
        code += found.code
    return TaskFile({**merged, **config}, tuple(dict.fromkeys(files)), tuple(code))


def _tags(path: Path) -> list[str]:
    """The places where a tag names a function; refuses what a reader of YAML could be made to choke on."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise DataError(f"{path}: not a task file (it is no file); expected YAML")
        if path.stat().st_size > LIMIT:
            raise DataError(f"{path}: expected a task file of at most {LIMIT} bytes, got {path.stat().st_size}")
        found, depth = [], 0
        for event in YAML(typ="safe", pure=True).parse(path.read_text(encoding="utf-8")):
            line = event.start_mark.line + 1
            if isinstance(event, AliasEvent):
                raise DataError(f"{path}, line {line}: aliases are refused; write the value out")
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise DataError(
                    f"{path}, line {line}: values inside values over {MAX_DEPTH} deep; expected a task file"
                )
            tag = str(getattr(event, "tag", None) or "")
            if tag and not tag.startswith(("tag:yaml.org,2002:", "!!")) and tag != "!":
                found.append(f"{path.name}, line {line}: {tag} {getattr(event, 'value', '')}".rstrip())
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise DataError(f"{path}: not a task file ({error}); expected YAML") from error
    return found


def _keys(config: Any) -> Iterator[str]:
    """What else of a task file makes the harness run Python: classes, prompt files, metrics of the hub."""
    from lm_eval.api import metrics, registry

    assert metrics  # imported for what it registers
    if isinstance(config, list):
        for value in config:
            yield from _keys(value)
    elif isinstance(config, dict):
        yield from (f"{key}: {config[key]}" for key in ("class", "use_prompt") if config.get(key))
        if config.get("hf_evaluate") or (
            isinstance(metric := config.get("metric"), str) and metric not in registry.metric_registry
        ):
            how = "loaded by the library `evaluate`, which runs its code"
            yield f"metric: {config.get('metric')} ({_meant(config)}{how})"
        for value in config.values():
            yield from _keys(value)


def _meant(config: dict[str, Any]) -> str:
    """What to say first of a metric that looks like a misspelt one of the harness."""
    from lm_eval.api import registry

    named = str(config.get("metric"))
    near = difflib.get_close_matches(named, registry.metric_registry, n=1)
    return f"did you mean {near[0]!r}? as it is written, " if near and near[0] != named else ""


@contextmanager
def templates(sandboxed: bool) -> Iterator[None]:
    """While this is open, a template that asks for a column which the document lacks says those that it has; and where
    `sandboxed`, the harness renders Jinja in a sandbox: no private attributes, no changes to what it gets.

    The harness's environment is a global of its module, made without one.
    """
    from jinja2 import BaseLoader, StrictUndefined, Template, UndefinedError
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval import utils

    class Telling(Template):
        def render(self, *args: Any, **columns: Any) -> str:
            try:
                return super().render(*args, **columns)
            except UndefinedError as error:
                raise UndefinedError(f"{error}; the document's columns are: {', '.join(columns)}") from error

    before = utils.env
    env = before.overlay()
    if sandboxed:
        env = ImmutableSandboxedEnvironment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
        env.filters.update(before.filters)
    env.template_class = Telling
    utils.env = env
    try:
        yield
    finally:
        utils.env = before
