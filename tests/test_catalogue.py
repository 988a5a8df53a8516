"""Is a user told of every method, driver and evaluator what is true of it, those of other packages too?"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from program import mergeopt
from ruamel.yaml import YAML

import evaluators
from optimizer import drivers
from optimizer.commands import catalogue
from optimizer.jobs.job_space import Space
from searchspaces import METHODS, CoefficientSpace, methods

KINDS = ["methods", "drivers", "evaluators"]


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert mergeopt(*arguments) == code
    found = capsys.readouterr()
    return found.err if code else found.out


@pytest.mark.parametrize(
    ("command", "names"), [*zip(KINDS, [METHODS, drivers.DRIVERS, evaluators.EVALUATORS], strict=True)]
)
def test_each_of_a_table_is_listed_and_told_whole(
    command: str, names: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, command)
    listed = json.loads(said(capsys, command, "--json"))
    assert [one["name"] for one in listed] == list(names)
    for one in listed:
        assert f"{one['name']} " in text and one["summary"] in text
    last = listed[-1]
    assert json.loads(said(capsys, command, last["name"], "--json")) == last
    whole = said(capsys, command, last["name"])
    assert whole.startswith(f"{last['name']}: {last['summary']}\n")
    assert all(f"\n  {option}  {told['kind']}" in whole for option, told in last["options"].items())
    assert all(told.get("says", "") in whole for told in last["options"].values())
    for option, told in last["options"].items():
        assert all(f"{option}: {written}" in whole for written in told.get("written", []))
    assert ("it searches coefficients alone" in whole) == last.get("linear", False)
    assert ("with `head: EXPERT`" in whole) == bool(last.get("statistics"))
    message = said(capsys, command, last["name"][:-1] + "x", code=2)
    assert f"did you mean {last['name']!r}" in message and "Traceback" not in message


@pytest.mark.parametrize(
    ("told", "name"),
    [
        *((catalogue.method, name) for name in METHODS),
        *((catalogue.driver, name) for name in drivers.DRIVERS),
        *((catalogue.evaluator, name) for name in evaluators.EVALUATORS),
    ],
)
def test_every_option_of_every_row_says_what_it_is(told: Callable[[str], dict[str, Any]], name: str) -> None:
    for option, found in told(name)["options"].items():
        assert len(found["says"].split()) > 2, f"{name}: {option}"


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_is_in_a_job_is_a_job(name: str) -> None:
    found = catalogue.method(name)
    space = YAML(typ="safe", pure=True).load(catalogue.in_a_job(found).replace(", ...]", "]"))["space"]
    least = found["experts"][0]
    if space.get("options", {}) and isinstance(next(iter(space["options"].values())), dict):
        space["options"] = {}  # a list to be filled in
    parsed = Space.model_validate(space)
    CoefficientSpace(["h.0.w"], ["a", "b"][: max(2, least)][: found["experts"][1]], parsed.method, parsed.said)
    for option, told in found["options"].items():
        for written in told["written"]:  # as it is printed, but for a list to be filled in
            if not told["prepared"]:
                way = Space.model_validate({"options": YAML(typ="safe", pure=True).load(f"{option}: {written}")})
                made = CoefficientSpace(["h.0.w"], ["a", "b"][: found["experts"][1]], name, way.said)
                assert [name for name, *_ in made.searched] == [option]
        if told["search"] != "needs low and high" and not told["prepared"]:
            made = CoefficientSpace(["h.0.w"], ["a", "b"][: found["experts"][1]], name, {option: "search"})
            low, high = (made.domain.low[-1], made.domain.high[-1])
            labels = made.domain.labels.get(len(made.domain.names) - 1)
            assert told["search"] == (", ".join(labels) if labels else f"{low:g} to {high:g}")


def test_the_docs_table_says_the_same_of_every_method() -> None:
    text = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
    text = text.partition("## The table")[2].partition("\n## ")[0]
    rows = {row[0].strip(" `"): row[1:] for line in text.splitlines() if len(row := line.strip("|").split(" | ")) == 5}
    for name in METHODS:
        found, (_, options, linear, mergekit) = catalogue.method(name), rows[name]
        assert linear.startswith("yes" if found["linear"] else "no"), name
        assert (mergekit.strip() != "no") == found["mergekit"], name
        assert all(f"`{option}` (" in options for option in found["options"] if option != "lambda"), name


def test_a_method_of_another_package_is_listed_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = EntryPoint("mine", "searchspaces.methods.tsv_m:TsvM", "mergeopt.methods")
    monkeypatch.setattr(methods.metadata, "entry_points", lambda group: EntryPoints([theirs]))
    listed = json.loads(said(capsys, "methods", "--json"))
    assert listed[-1]["name"] == "mine" and listed[-1]["options"]["share"]["prepared"] is True
    assert "processes task vectors" in said(capsys, "methods", "mine")
    methods.load.cache_clear()


def test_each_row_of_the_methods_table_says_by_itself_what_is_merged() -> None:
    rows = (Path(__file__).parent.parent / "docs/methods.md").read_text().splitlines()
    said = {row.split("`")[1]: row.split("|")[2] for row in rows if row.startswith("| `") and row.count("|") == 6}
    assert said.keys() == METHODS.keys()
    assert not [name for name, text in said.items() if "the same" in text]  # which row is meant changes with the next


@pytest.mark.parametrize("kind", evaluators.EVALUATORS)
def test_every_option_of_an_evaluator_says_what_it_is(kind: str) -> None:
    options = catalogue.evaluator(kind)["options"]
    assert options and not [name for name, option in options.items() if not option["says"]]
