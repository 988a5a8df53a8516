"""Where does the harness keep its own tasks? Its index, made once per version and user."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from evaluators.errors import OptionError

SUFFIXES = (".yaml", ".yml")
"""What a task file's name ends in."""


def cache() -> Path:
    """Where indices and requests are kept; safe to remove when no run is under way."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))  # which is none where it is not absolute
    return (home if home.is_absolute() else Path.home() / ".cache") / "mergeopt" / "harness"


def bundled(name: str) -> tuple[Any, dict[str, Any]]:
    """The harness's own entry of a name, and the index that it is built from."""
    from lm_eval.tasks._index import Kind, TaskIndex

    if not _file().is_file():  # seconds instead of a quarter of a minute, for a name that stands in a file
        plain = re.compile(rb"^task:[ \t]*[\"']?" + re.escape(name.encode()) + rb"[\"']?[ \t\r]*$", re.MULTILINE)
        for path in sorted(library().glob("**/*.yaml")):
            if plain.search(path.read_bytes()):
                entry = TaskIndex.entry_from_path(path)
                if entry is not None and entry.kind in (Kind.TASK, Kind.PY_TASK):
                    return entry, {name: entry}
    known = index()
    if name not in known:
        raise OptionError(f"no task {name!r} in the harness; {near(name, known)}")
    return known[name], known


def near(name: str, known: Mapping[str, Any]) -> str:
    """What to say of a name that is none of these."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"there are {len(known)}: `lm-eval ls`" if len(known) > 20 else _listed(name, known)


def _listed(name: str, known: Iterable[str]) -> str:
    """The nearest of these first, and not all of very many."""
    order = sorted(known, key=lambda other: (-difflib.SequenceMatcher(None, name, other).ratio(), other))
    more = f" and {len(order) - 10} more" if len(order) > 10 else ""
    return f"there {'are' if order[1:] else 'is'}: {', '.join(order[:10]) or 'none'}{more}"


def files_named(task: str, root: Path) -> list[str]:
    """Task files of this name in the job's folder or one below it, as a job says them."""
    names = (task, *(task + suffix for suffix in SUFFIXES))
    found = [*root.glob("*.y*ml"), *root.glob("*/*.y*ml")]
    return [f"./{path.relative_to(root)}" for path in sorted(found) if path.name in names and path.is_file()]


def no_file(path: Path, root: Path) -> str:
    """What to say of a task file that is not there: where one of its name is, else which are in its folder."""
    if beside := files_named(path.name, root):
        return f"no file {path.name} in {path.parent}; a path of your own has a slash or ends in .yaml: say {beside[0]}"
    if not path.parent.is_dir():
        return f"no such file or folder ({path}); correct the path"
    there = [other.name for other in path.parent.iterdir() if other.suffix in SUFFIXES and other.is_file()]
    return f"no file {path.name} in {path.parent}; {_listed(path.name, there)}"


def library() -> Path:
    """The folder of the harness's task files."""
    import lm_eval

    return Path(str(lm_eval.__file__)).parent / "tasks"


def _file() -> Path:
    import lm_eval

    return cache() / f"index-{lm_eval.__version__}.json"


def index() -> dict[str, Any]:
    """The harness's index of its own tasks; made once per version and user, which takes a quarter of a minute."""
    from lm_eval.tasks._index import Entry, Kind, TaskIndex

    home, file = library(), _file()
    if file.is_file():
        try:
            kept = json.loads(file.read_text())
            return {
                name: Entry(name, Kind[kind], None if path is None else home / path, None, set(tags))
                for name, (kind, path, tags) in kept.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            file.unlink(missing_ok=True)  # half a file: made again
    made = TaskIndex.build([home])
    kept = {
        name: [e.kind.name, None if e.yaml_path is None else str(e.yaml_path.relative_to(home)), sorted(e.tags)]
        for name, e in made.items()
    }
    with suppress(OSError):  # a disk that keeps nothing costs time, and no more
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        partial.write_text(json.dumps(kept))
        partial.replace(file)
    return dict(made)
