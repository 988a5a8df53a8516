"""What can a job say? The tables of docs/, and docs/job.schema.json, made from the classes that a job is checked by."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from optimizer.jobs.job import Job
from optimizer.jobs.job_search import Fidelity, Gradients
from optimizer.jobs.schema import job_schema

PAGES = ("job.md", "fidelity.md", "gradients.md", "harness.md")
SCHEMA = "job.schema.json"
Row = tuple[str, str, str]
BEGIN, END = "<!-- made by 'make docs' of {}: change it there -->", "<!-- until here -->"


def pages(folder: Path) -> dict[Path, str]:
    """What each generated file of `docs/` says now, by its path; the prose around tables is as it is on the disk."""
    found = {folder / name: _filled(folder / name) for name in PAGES}
    return {**found, folder / SCHEMA: json.dumps(job_schema(installed=False), indent=1) + "\n"}


def _filled(page: Path) -> str:
    """A page with its tables made anew. Raises ValueError where it has a mark that is nobody's."""

    def made(mark: re.Match[str]) -> str:
        if mark["name"] not in TABLES:
            raise ValueError(f"{page}: no table is called {mark['name']!r}; there are: {', '.join(TABLES)}")
        return f"{BEGIN.format(mark['name'])}\n{TABLES[mark['name']](page.name)}\n{END}"

    marks = re.escape(BEGIN).replace(r"\{\}", r"(?P<name>[\w ]+)") + ".*?" + re.escape(END)
    return re.sub(marks, made, page.read_text(), flags=re.DOTALL)


def _job(page: str) -> str:
    return _table("key", _rows(Job, page))


def _evaluator(kind: str) -> Callable[[str], str]:
    """What a kind of evaluators has beside the options of items."""

    def made(page: str) -> str:
        import evaluators
        from evaluators.options import ItemOptions

        options = evaluators.load(kind).Options
        common = ItemOptions.model_fields if issubclass(options, ItemOptions) else {}
        return _table("option", [_row(n, f, page) for n, f in options.model_fields.items() if n not in common])

    return made


def _part(model: type[BaseModel]) -> Callable[[str], str]:
    """A section of the job by itself."""
    return lambda page: _table("key", _rows(model, page))


def _items(page: str) -> str:
    from evaluators.options import ItemOptions

    return _table("option", _rows(ItemOptions, page))


def _vllm(page: str) -> str:
    from evaluators.vllm_host import VllmOptions

    return _table("option", _rows(VllmOptions, page))


def _drivers(page: str) -> str:
    """Every driver's own options, and their defaults."""
    from optimizer.drivers import DRIVERS

    lines = ["| driver | what it is | its options |", "|---|---|---|"]
    for name, entry in DRIVERS.items():
        fields = entry.load().Options.model_fields
        said = {one: _default(field)[0] for one, field in fields.items()}
        own = ", ".join(f"`{one}`{f' ({default})' * (default != 'none')}" for one, default in said.items())
        lines.append(f"| `{name}` | {entry.summary} | {own or 'none'} |")
    return "\n".join(lines)


def _driver_options(page: str) -> str:
    """Each option of the drivers, once where several have the same, and which these are."""
    from optimizer.drivers import DRIVERS

    having: dict[tuple[str, str], list[str]] = {}
    for name, entry in DRIVERS.items():
        for option, field in entry.load().Options.model_fields.items():
            _, _, text = _row(option, field, page)
            default = (field.description or "").partition("Default: ")[2].removesuffix(".")
            having.setdefault((option, f"{text}{f'; left out: {default}' * bool(default)}"), []).append(name)
    rows = [(f"`{option}`", ", ".join(f"`{n}`" for n in names), text) for (option, text), names in having.items()]
    return _table("option", rows, "of")


TABLES: dict[str, Callable[[str], str]] = {
    "job": _job,
    "fidelity": _part(Fidelity),
    "gradients": _part(Gradients),
    "items": _items,
    "classification": _evaluator("classification"),
    "language": _evaluator("language"),
    "function": _evaluator("function"),
    "harness": _evaluator("harness"),
    "vllm": _vllm,
    "drivers": _drivers,
    "options of drivers": _driver_options,
}
"""By the names that marks have, what makes the table: of the page's name, for links."""


def _rows(model: type[BaseModel], page: str, above: str = "") -> Iterator[Row]:
    """Key, default and what it says, of a section and those in it."""
    for name, field in model.model_fields.items():
        if name == "hashes":  # which a run writes, and nobody else
            continue
        inner = _section(field)
        if (
            inner is None or field.default is None or field.annotation is not inner
        ):  # a section may be left out, or many
            yield _row(above + name, field, page)
        if inner is not None:
            yield from _rows(inner, page, f"{above}{name}.")


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a key opens, or each of a list; None where it is a value."""
    kinds = [field.annotation, *get_args(field.annotation)]
    sections = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel) and k.__module__ in SECTIONS]
    return sections[0] if sections else None


SECTIONS = {f"optimizer.jobs.{name}" for name in ("job", "job_space", "job_search", "job_means")}


def _row(name: str, field: FieldInfo, page: str) -> Row:
    default, text = _default(field)
    kinds = [field.annotation, *get_args(field.annotation)]
    named = [f"`{one}`" for kind in kinds if get_origin(kind) is Literal for one in get_args(kind)]
    if not all(one in text for one in named):
        text = f"{', '.join(named)}: {text}"
    return f"`{name}`", default, _linked(text, page)


def _default(field: FieldInfo) -> tuple[str, str]:
    """What holds where a key is left out, in words where its description has them, and the rest of the description."""
    text, _, said = " ".join((field.description or "").split()).partition("Default: ")
    text = text.strip().removesuffix(".")
    text = text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text
    if field.is_required():
        return "required", text
    value = field.get_default(call_default_factory=True)
    if said or value is None:
        return said.removesuffix(".") or "none", text
    return f"`{_plain(value)}`", text


def _plain(value: Any) -> str:
    """A default as a job would say it."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_plain(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _linked(text: str, page: str) -> str:
    """Names of pages as links, which descriptions have none of: an editor shows them as they are."""

    def link(found: re.Match[str]) -> str:
        name, place = found["name"], found["place"] or ""
        shown = "below" if name == page else f"docs/{name}"
        return f"[{shown}]({place if name == page else name + place})"

    return re.sub(r"docs/(?P<name>\w+\.md)(?P<place>#[\w-]+)?", link, text)


def _table(first: str, rows: Iterator[Row] | list[Row], second: str = "default") -> str:
    lines = [f"| {first} | {second} | what it says |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)])


def main(folder: Path) -> None:
    """Write what has changed."""
    for path, text in pages(folder).items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
