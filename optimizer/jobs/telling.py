"""How is a job that does not fit told? Key, rule and what arrived, a line for each."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from optimizer.wording import in_line, shown

PLAIN = {
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of keys to values",
    "list_type": "a list",
    "string_type": "text",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
}
"""Pydantic's kinds of errors that say Python's names for what YAML calls otherwise."""


def kind(value: Any) -> str:
    """A value and its type, as part of a message."""
    return "nothing" if value is None else shown(f"{type(value).__name__} {value!r}", 80)


def explained(model: type[BaseModel], source: str, error: ValidationError) -> str:
    """Pydantic's findings, one a line: key, rule, what arrived."""
    lines = []
    for e in error.errors(include_url=False):
        # the names of an option's forms are pydantic's way, and no keys of the job
        where = in_line(".".join(str(p) for p in e["loc"] if str(p)[:1] != "(")) or "job"
        if e["type"] == "extra_forbidden":
            lines.append(
                f"{where}: unknown key; {_near(model, e['loc'])}remove it, or see docs/job.md for the keys there are"
            )
        elif e["type"] == "missing":
            lines.append(f"{where}: required, and missing")
        elif e["type"] == "string_pattern_mismatch":
            lines.append(f"{where}: expected letters, digits, '.', '_' or '-' (at most 64), got {kind(e['input'])}")
        elif e["type"] in PLAIN:
            lines.append(f"{where}: expected {PLAIN[e['type']]}, got {kind(e['input'])}")
        elif e["type"] == "value_error" and _section(model, e["loc"]):  # of several keys, which it names itself
            lines.append(f"{where}: {e['msg'].removeprefix('Value error, ')}")
        else:
            lines.append(f"{where}: {e['msg'].removeprefix('Value error, ')}, got {kind(e['input'])}")
    return f"{source}:\n  " + "\n  ".join(lines) if len(lines) > 1 else f"{source}: {lines[0]}"


def _near(model: type[BaseModel], place: tuple[int | str, ...]) -> str:
    """A key that is like an unknown one, as part of a message; `place` leads to that from the job."""
    known = _section(model, place[:-1])
    near = difflib.get_close_matches(str(place[-1]), known.model_fields, n=1) if known else []
    return f"did you mean {near[0]!r}? else " if near else ""


def _section(model: type[BaseModel], place: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The section of the job that a place is; None where it is a value."""
    known = model
    for part in place:
        found = known.model_fields.get(part) if isinstance(part, str) else None
        kind = found.annotation if found is not None else None
        sections = [k for k in (kind, *get_args(kind)) if isinstance(k, type) and issubclass(k, BaseModel)]
        if len(sections) != 1:  # `X | None` is X
            return None
        known = sections[0]
    return known
