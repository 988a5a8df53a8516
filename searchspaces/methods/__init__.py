"""Which merge methods are there? One literal table: a new method is one file and one line here."""

from __future__ import annotations

import difflib
from functools import lru_cache
from importlib import import_module, metadata
from typing import TYPE_CHECKING

from searchspaces.errors import RecipeError

if TYPE_CHECKING:
    from searchspaces.method import Method

METHODS: dict[str, str] = {
    "linear": "searchspaces.methods.linear:Linear",
    "task_arithmetic": "searchspaces.methods.task_arithmetic:TaskArithmetic",
    "ties_once": "searchspaces.methods.ties_once:TiesOnce",
}
"""Name -> `module:Class`. Other people's come in through entry points of the group `mergeopt.methods`."""


def table() -> dict[str, str]:
    """`METHODS` and the entry points of installed packages; raises RecipeError where one takes a name of ours."""
    found = dict(METHODS)
    for entry in metadata.entry_points(group="mergeopt.methods"):
        if found.setdefault(entry.name, entry.value) != entry.value:
            owner = entry.dist.name if entry.dist else "an installed package"
            raise RecipeError(
                f"{owner} offers a method {entry.name!r} ({entry.value}), which already means "
                f"{found[entry.name]}; uninstall one of the two"
            )
    return found


@lru_cache
def load(name: str) -> type[Method]:
    """The class of a method, imported now; raises RecipeError for a name that is not in the table."""
    known = table()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RecipeError(f"no merge method {name!r}; {hint}there are: {', '.join(sorted(known))}")
    module, _, attribute = known[name].partition(":")
    found: type[Method] = getattr(import_module(module), attribute)
    return found
