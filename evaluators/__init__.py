"""Which evaluators are there? One literal table: a new evaluator is one file and one line here."""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING

from evaluators.errors import OptionError, meant

if TYPE_CHECKING:
    from evaluators.evaluator import Evaluator

EVALUATORS: dict[str, str] = {
    "classification": "evaluators.classification:Classification",
    "language": "evaluators.language:Language",
    "function": "evaluators.function:Function",
    "harness": "evaluators.harness.evaluator:Harness",
}
"""Kind -> `module:Class`. Other people's come in through entry points of the group `mergeopt.evaluators`."""


def table() -> dict[str, str]:
    """`EVALUATORS` and the entry points of installed packages; raises `OptionError` where one takes a kind of ours."""
    found = dict(EVALUATORS)
    for entry in metadata.entry_points(group="mergeopt.evaluators"):
        if found.setdefault(entry.name, entry.value) != entry.value:
            owner = entry.dist.name if entry.dist else "an installed package"
            raise OptionError(
                f"{owner} offers an evaluator of kind {entry.name!r} ({entry.value}), which already means "
                f"{found[entry.name]}; uninstall one of the two"
            )
    return found


def load(kind: str) -> type[Evaluator]:
    """The evaluator class of a kind, imported now; raises `OptionError` for a kind that is not in the table."""
    known = table()
    if kind not in known:
        raise OptionError(f"no evaluator of kind {kind!r}; {meant(kind, known)}there are: {', '.join(sorted(known))}")
    module, _, name = known[kind].partition(":")
    found: type[Evaluator] = getattr(import_module(module), name)
    return found
