"""Do the docs' tables and the JSON Schema of jobs say what jobs are checked by?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import docs_world
import pytest
from jsonschema import Draft7Validator, Draft202012Validator
from jsonschema.protocols import Validator
from program import Program

from evaluators import EVALUATORS
from optimizer import Job
from optimizer.drivers import DRIVERS
from optimizer.errors import JobError
from optimizer.jobs import docs
from optimizer.jobs.job import EvaluatorEntry
from optimizer.jobs.job_search import DriverEntry
from optimizer.jobs.plain_yaml import read_yaml
from optimizer.jobs.schema import job_schema

DOCS = Path(__file__).parents[1] / "docs"

JOB = """
name: all
models: {base: base, experts: {spam: spam, mood: org/mood@main}, heads: ["classifier.*"], dtype: bfloat16}
space:
  method: [task_arithmetic, ties]
  options: {density: {low: 0.1, high: 0.9, per: expert}, ties.lambda: search, normalize: true, weight: {spam: 0.5}}
  bounds: {spam: [0, 1], mood: [-1, 2.5]}
  start: 0.2
evaluators:
  - {kind: classification, name: spam, data: data/spam.jsonl, text: text, calibration: 100, scale: 1}
  - {kind: language, name: words, data: {calibration: a.csv, heldout: b.csv}, teacher: mood}
  - {kind: function, name: mine, data: data/x.jsonl, function: "f.py:f", metrics: {m: max}}
  - {kind: harness, name: gsm8k, task: gsm8k, num_fewshot: 5, limit: 0.5}
objectives: [spam.accuracy, words.loss]
constraints: ["gsm8k.exact_match >= 0.2"]
driver: {name: cma, sigma0: 0.1, preferences: [[1, 0], [0, 1]]}
fidelity: {rungs: [20, 60], rule: racing, estimate: gp_irt}
budget: {evaluations: 100, hours: 2.5}
executor: {kind: ray, workers: 4, device: {model.layers: 0, lm_head: 1}, gpus: 2}
"""


@pytest.fixture(scope="module", params=[Draft202012Validator, Draft7Validator], ids=["2020-12", "7"])
def schema(request: pytest.FixtureRequest) -> Validator:
    """As it says that it is to be read, and as editors read it that know no dialect after draft 7."""
    found = job_schema()
    request.param.check_schema(found)
    made: Validator = request.param(found)
    return made


def plain(text: str, folder: Path) -> Any:
    (folder / "job.yaml").write_text(text)
    return read_yaml(folder / "job.yaml")


@pytest.mark.parametrize("path", [DOCS / name for name in (*docs.PAGES, docs.SCHEMA)], ids=lambda p: p.name)
def test_what_is_generated_is_not_stale(path: Path) -> None:
    assert docs.pages(DOCS)[path] == path.read_text(), "the docs are stale: run 'make docs'"


def test_a_table_that_was_changed_by_hand_is_stale_and_is_made_anew(tmp_path: Path) -> None:
    row = "| `space.granularity` | `layer` |"
    for name in docs.PAGES:
        (tmp_path / name).write_text((DOCS / name).read_text().replace(row, "| `space.granularity` | `tensor` |"))
    assert (tmp_path / "job.md").read_text() != (DOCS / "job.md").read_text()
    docs.main(tmp_path)
    assert all((tmp_path / name).read_text() == (DOCS / name).read_text() for name in docs.PAGES)
    assert json.loads((tmp_path / docs.SCHEMA).read_text())["properties"].keys() == Job.model_fields.keys()
    (tmp_path / "job.md").write_text(f"{docs.BEGIN.format('nothing')}\n{docs.END}\n")
    with pytest.raises(ValueError, match="no table is called 'nothing'; there are: job, "):
        docs.main(tmp_path)


def test_every_key_and_every_option_says_what_it_is() -> None:
    for name in docs.PAGES:
        begin = docs.BEGIN.partition("{}")[0]
        made = [part.partition(docs.END)[0] for part in (DOCS / name).read_text().split(begin)[1:]]
        rows = [line for part in made for line in part.splitlines() if line.startswith("| `")]
        assert rows and not [row for row in rows if row.replace("|", " | ").split(" | ")[-2].strip() in ("", "none |")]
    sections: dict[str, Any] = job_schema(installed=False)["$defs"]
    spoken = ("Models", "Space", "Searched", "Fidelity", "Budget", "ExecutorEntry", "Gradients", "VllmOptions")
    kinds = [name for name in sections if name.startswith((EvaluatorEntry.__name__, DriverEntry.__name__))]
    said = [
        f"{section}.{key}"
        for section in (*spoken, *kinds)
        for key, field in sections[section]["properties"].items()
        if field is not True and not field.get("description")
    ]
    assert len(kinds) == len(EVALUATORS) + len(DRIVERS) + 2 and not said


def test_a_job_that_uses_every_form_is_valid_by_both(schema: Validator, tmp_path: Path) -> None:
    data = plain(JOB, tmp_path)
    Job.parse(data, tmp_path)
    assert not [error.message for error in schema.iter_errors(data)]
    resolved = json.loads(Job.parse(data, tmp_path).model_dump_json())  # as a run's folder has it
    assert not [error.message for error in schema.iter_errors(resolved)]


SLIPS = {
    "a section": ("budget:", "budgt:"),
    "a key": ("granularity", "granulraity"),
    "a value of few": ("rule: racing", "rule: race"),
    "a method": ("ties]", "tise]"),
    "a driver": ("name: cma", "name: cmaes"),
    "a driver's option": ("sigma0", "sigma"),
    "another driver's option": ("sigma0: 0.1", "startup: 3"),
    "a kind": ("kind: language", "kind: languages"),
    "an evaluator's option": ("num_fewshot", "fewshot"),
    "another evaluator's option": ("teacher: mood", "pooling: mean"),
    "an estimate": ("gp_irt", "gpirt"),
    "a number as text": ("evaluations: 100", "evaluations: many"),
    "what is missing": ("kind: function, name: mine, ", "kind: function, "),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_marked(schema: Validator, tmp_path: Path, slip: str) -> None:
    good, bad = SLIPS[slip]
    text = JOB.replace("start: 0.2", "start: 0.2\n  granularity: layer")
    assert text.count(good) == 1 and schema.is_valid(plain(text, tmp_path))
    assert not schema.is_valid(plain(text.replace(good, bad), tmp_path))


def test_the_default_driver_has_its_own_options_where_none_is_named(schema: Validator, tmp_path: Path) -> None:
    text = JOB.replace("name: cma, sigma0: 0.1", "steps: 3")
    assert schema.is_valid(plain(text, tmp_path))
    assert not schema.is_valid(plain(text.replace("steps", "sigma0"), tmp_path))


def test_the_command_prints_the_schema(mergeopt: Program) -> None:
    code, out, _ = mergeopt("schema")
    assert code == 0 and json.loads(out) == job_schema()


@pytest.mark.parametrize("gradients", [False, True], ids=["scores", "gradients"])
def test_what_init_writes_is_valid(
    schema: Validator, mergeopt: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gradients: bool
) -> None:
    monkeypatch.chdir(docs_world.files(tmp_path))
    experts = [text for name in docs_world.TASKS for text in ("--expert", f"{name}=models/{name}")]
    assert mergeopt("init", "--base", "models/base", *experts, *["--gradients"] * gradients).code == 0
    text = Path("job.yaml").read_text()
    assert schema.is_valid(plain(text, tmp_path)) and "yaml-language-server: $schema=job.schema.json" in text


def test_the_jobs_of_the_repository_are_valid(schema: Validator) -> None:
    found = [path for path in (DOCS.parent / "benchmarks").rglob("*.yaml") if "\nevaluators:" in path.read_text()]
    assert found
    for path in found:
        assert not [error.message for error in schema.iter_errors(read_yaml(path))], path


def test_what_the_schema_and_the_job_refuse_is_the_same_of_names(tmp_path: Path, schema: Validator) -> None:
    data = plain(JOB.replace("name: all", "name: ../all"), tmp_path)
    with pytest.raises(JobError, match="name: expected letters, digits"):
        Job.parse(data, tmp_path)
    assert not schema.is_valid(data)
