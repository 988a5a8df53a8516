"""How does a user go on with a run? The command that means it: here, or from where a cluster was given it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_from_afar: ContextVar[str | None] = ContextVar("from_afar", default=None)


@contextmanager
def from_afar(name: str) -> Iterator[None]:
    """In here a run's user is elsewhere: what they are told names the run by `name`, and no path of this host."""
    token = _from_afar.set(name)
    try:
        yield
    finally:
        _from_afar.reset(token)


def command(verb: str, folder: Path, *options: str) -> str:
    """`mergeopt VERB RUN OPTIONS` as it would be typed: of a run under runs/ by its name, else by its folder."""
    name = _from_afar.get()
    if name is not None:
        return shlex.join(["mergeopt", verb, name, *options, "--address", "ADDRESS"])
    return shlex.join(["mergeopt", verb, called(folder), *options])


def called(folder: Path) -> str:
    """How a command line of this host names a run."""
    return folder.name if folder.absolute().parent == Path("runs").absolute() else str(folder)


def front(folder: Path) -> str:
    """The command that shows the whole front: on this host, since it is read where the run was fetched to."""
    return shlex.join(["mergeopt", "front", _from_afar.get() or called(folder), "--all"])


def is_from_afar() -> bool:
    """Whether the user is elsewhere."""
    return _from_afar.get() is not None
