"""Which methods, drivers and evaluators are there, and what can be set of each? Told from tables and classes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.commands.arguments import AsJson

if TYPE_CHECKING:
    from pydantic import BaseModel

    from searchspaces.option import Spec

app = typer.Typer()

Name = Annotated[
    str | None, typer.Argument(help="One of them, whole; by default all, a line each.", show_default=False)
]


@app.command("methods")
def methods_command(name: Name = None, json_out: AsJson = False) -> None:
    """The merge methods, those of installed packages too; of one, its options and what they are in a job."""
    from searchspaces import methods

    _tell(name, json_out, methods.table(), method, in_a_job)


@app.command("drivers")
def drivers_command(name: Name = None, json_out: AsJson = False) -> None:
    """The search drivers, those of installed packages too; of one, its options."""
    from optimizer import drivers

    _tell(name, json_out, drivers.table(), driver, lambda found: f"driver: {{name: {found['name']}}}")


@app.command("evaluators")
def evaluators_command(name: Name = None, json_out: AsJson = False) -> None:
    """The kinds of evaluators, those of installed packages too; of one, its options."""
    import evaluators

    _tell(
        name,
        json_out,
        evaluators.table(),
        evaluator,
        lambda found: f"evaluators: [{{kind: {found['name']}, name: NAME, ...}}]",
    )


@app.command("schema")
def schema_command() -> None:
    """A JSON Schema of job files, for editors: keys, names and options, those of installed packages too."""
    from optimizer.jobs.schema import job_schema

    typer.echo(json.dumps(job_schema(), indent=1))


OWN = (
    "an evaluator of kind classification or language, called like the expert, or with `head: EXPERT` (classification) "
    "or `teacher: EXPERT`"
)


def method(name: str) -> dict[str, Any]:
    """What a merge method is, as JSON values. Raises RecipeError for a name that is in no table."""
    from searchspaces import methods
    from searchspaces.mergekit_methods import SAID
    from searchspaces.option import complete

    kind = methods.load(name)
    rule = kind(complete(name, kind.options, {}))
    least, most = kind.experts
    said = name in SAID and not kind.random  # its masks are drawn in another way
    gathers = str(getattr(kind, "gathers", ""))
    traits = {
        "linear in its coefficients": rule.linear,
        "processes task vectors before they are merged": kind.processes,
        "draws from the seed": kind.random,
        "takes each group from one model": kind.picks,
        f"needs statistics ({gathers}) of each expert on an evaluator's items": bool(gathers),
        "may be said to mergekit": said,
    }
    return {
        "name": name,
        "summary": kind.summary,
        "linear": rule.linear,
        "processes": kind.processes,
        "random": kind.random,
        "picks": kind.picks,
        "statistics": gathers or None,
        "experts": [least, most],
        "mergekit": said,
        "options": {option: _option(spec) for option, spec in kind.options.items()},
        "text": inspect.getdoc(kind) or "",
        "traits": [*(what for what, holds in traits.items() if holds), _many(least, most)],
    }


NEEDS = {
    "experts": "needs a space in which each expert alone is a point",
    "options": "needs a searched number for each expert, beside coefficients that may be negative",
}
"""What `optimizer.drivers.Entry.needs` says, for people."""


def driver(name: str) -> dict[str, Any]:
    """What a search driver is, as JSON values. Raises DriverError for a name that is in no table."""
    from optimizer import drivers

    entry = drivers.find(name)
    kind = entry.load()
    losses, where = ", ".join(entry.loss), ", where the job has driver.gradients" if entry.optional else ""
    traits = [] if entry.objectives == "any" else ["one objective; several by weights"]
    traits += [NEEDS[entry.needs]] if entry.needs else []
    traits += ["ends by itself"] if entry.ends else []
    return {
        "name": name,
        "summary": entry.summary,
        "objectives": entry.objectives,
        "loss": dict(entry.loss),
        "options": _fields(kind.Options),
        "text": inspect.getdoc(kind) or "",
        "traits": [*traits, *([f"asks for gradients of {losses}{where}"] if losses else [])],
    }


def evaluator(name: str) -> dict[str, Any]:
    """What a kind of evaluator is, as JSON values. Raises OptionError for a kind that is in no table."""
    import evaluators

    kind = evaluators.load(name)
    text = inspect.getdoc(kind) or ""
    traits = {
        "runs Python that the job names": kind.runs_code,
        "has losses that gradients are taken of": hasattr(kind, "loss"),
        "serves methods with statistics": hasattr(kind, "observe"),
    }
    return {
        "name": name,
        "summary": text.partition("\n")[0],
        "options": _fields(kind.Options),
        "text": text,
        "traits": [what for what, holds in traits.items() if holds],
    }


def _many(least: int, most: int | None) -> str:
    if most is None:
        return f"{least} expert{'s' * (least > 1)} or more"
    return f"{least} expert{'s' * (least > 1)}" if least == most else f"{least} to {most} experts"


def _option(spec: Spec) -> dict[str, Any]:
    """An option: its kind, its default, what is accepted, and what `search` means of it."""
    from searchspaces.option import Choice, Flag, Number

    if isinstance(spec, Flag):
        kind, accepted, searched = "flag", "true or false", "false, true"
    elif isinstance(spec, Choice):
        kind, accepted, searched = "choice", ", ".join(spec.among), ", ".join(spec.among)
    else:
        kind = "whole number" if spec.whole else "number"
        accepted = f"{'above ' if spec.above else ''}{spec.low:g} to {spec.high:g}"
        searched = f"{spec.search[0]:g} to {spec.search[1]:g}" if spec.search else "needs low and high"
    if spec.prepared:
        searched = "needs values, each prepared by itself"
    by = "group and expert" if isinstance(spec, Number) and spec.per == "expert" else "group"
    differs = by if isinstance(spec, Number) and not spec.prepared else "nothing"
    return {
        "kind": kind,
        "default": spec.default,
        "accepted": accepted,
        "search": searched,
        "prepared": spec.prepared,
        "differs_by": differs,
        "written": _written(spec, differs),
        "says": spec.says,
    }


def _written(spec: Spec, differs: str) -> list[str]:
    """What a job says of an option that is to be searched: plainly, and so that it may differ."""
    from searchspaces.option import Number

    if spec.prepared:
        return [f"{{values: [{_plain(spec.default)}, ...]}}"]
    per = {"nothing": [], "group": ["group"]}.get(differs, ["expert", "group", "both"])
    if isinstance(spec, Number) and spec.search is None:
        span = f"low: {spec.low:g}, high: {spec.high:g}"
        return [f"{{{span}}}", *(f"{{{span}, per: {one}}}" for one in per)]
    return ["search", *(f"{{per: {one}}}" for one in per)]


def _fields(options: type[BaseModel]) -> dict[str, Any]:
    """The options of a driver or an evaluator, from their schema."""
    schema = options.model_json_schema()
    needed = schema.get("required", [])
    return {
        name: {
            "kind": _kind(field),
            "default": field.get("default"),
            "required": name in needed,
            "says": " ".join(field.get("description", "").split()),
        }
        for name, field in schema.get("properties", {}).items()
    }


def _kind(schema: dict[str, Any]) -> str:
    """What a field may be, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one) for one in schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    kind = str(schema.get("type", "mapping"))
    if kind == "array" and isinstance(schema.get("items"), dict):
        return f"list of {_kind(schema['items'])}"
    names = {
        "integer": "whole number",
        "boolean": "true or false",
        "string": "text",
        "object": "mapping",
        "null": "null",
    }
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    bounds = [f"{word} {schema[key]:g}" for key, word in words.items() if key in schema]
    return " ".join([names.get(kind, kind), *bounds])


def in_a_job(found: dict[str, Any]) -> str:
    """A method, as `method` tells of it, as a job says it, with an option to be searched where it has one."""
    ways = {
        option: "{values: [" + f"{_plain(spec['default'])}, ...]" + "}" if spec["prepared"] else "search"
        for option, spec in found["options"].items()
        if spec["search"] != "needs low and high"
    }
    first = next((f", options: {{{option}: {way}}}" for option, way in ways.items()), "")
    return f"space: {{method: {found['name']}, granularity: layer{first}}}"


def _plain(value: object) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def _tell(
    name: str | None,
    json_out: bool,
    table: Iterable[str],
    told: Callable[[str], dict[str, Any]],
    snippet: Callable[[dict[str, Any]], str],
) -> None:
    """Of the one that is named all that there is to say, and what it is in a job; else of each of a table a line."""
    found = [told(one) for one in (table if name is None else [name])]
    if json_out:
        typer.echo(json.dumps(found if name is None else found[0]))
    elif name is None:
        _listed(found)
        typer.echo("\nwhich of them for what: docs/choosing.md")
    else:
        _told(found[0], snippet(found[0]))


def _listed(found: list[dict[str, Any]]) -> None:
    """All, a line each, and below it what is true of it, where that is no matter of course."""
    wide = max(len(one["name"]) for one in found)
    for one in found:
        typer.echo(f"{one['name']:<{wide}}  {one['summary']}")
        if one["traits"]:
            typer.echo(f"{'':<{wide}}    {'; '.join(one['traits'])}")


def _told(found: dict[str, Any], snippet: str) -> None:
    """One, whole."""
    typer.echo(f"{found['name']}: {found['summary']}\n")
    for trait in found["traits"]:
        typer.echo(f"  {trait}")
    if found.get("statistics"):
        typer.echo(f"  for each expert: {OWN}")
    before = "\n" if found["traits"] or found.get("statistics") else ""  # a blank line was written already
    typer.echo(f"{before}{'options:' if found['options'] else 'no options'}")
    for name, option in found["options"].items():
        said = "required" if option.get("required") else f"default {_plain(option['default'])}"
        accepted = f": {option['accepted']}" if "accepted" in option else ""
        typer.echo(f"  {name}  {option['kind']}{accepted}; {said}")
        if option.get("says"):
            typer.echo(f"      {option['says']}")
        if "search" in option:
            differs = "" if option["differs_by"] == "nothing" else f"; may differ by {option['differs_by']}"
            typer.echo(f"      searched: {option['search']}{differs}")
            typer.echo(f"      in a job: {', or '.join(f'{name}: {way}' for way in option['written'])}")
    if found["options"] and found.get("linear"):
        typer.echo("  where a driver asks for gradients, options are values: it searches coefficients alone")
    typer.echo(f"\nin a job:\n  {snippet}\n\n{found['text']}")
