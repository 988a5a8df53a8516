"""What the door of a job file lets in: values as YAML 1.2 means them, and refusals that name key, rule and value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimizer.errors import JobError
from optimizer.jobs.job import Job
from optimizer.jobs.job_space import Searched, Space
from optimizer.jobs.plain_yaml import MAX_BYTES

GOOD = """
name: demo
models: {base: models/base, experts: {a: models/a, "no": models/b}}
space: {bounds: [0, 1e0], options: {lambda: 1e-1}}
evaluators: [{kind: classification, name: a, data: a.jsonl}]
objectives: [a.accuracy]
driver: {name: cma, sigma: 1e-3}
"""


def load(tmp_path: Path, text: str) -> Job:
    (tmp_path / "job.yaml").write_text(text)
    return Job.load(tmp_path / "job.yaml")


def test_a_job_read_and_written_is_the_same_job(tmp_path: Path) -> None:
    job = load(tmp_path, GOOD)
    (tmp_path / "elsewhere").mkdir()
    assert load(tmp_path / "elsewhere", job.yaml()) == job


def test_yaml_values_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    job = load(tmp_path, GOOD)
    assert job.driver.options == {"sigma": 0.001}
    assert list(job.models.experts) == ["a", "no"]
    assert job.space.options == {"lambda": 0.1}


def test_options_keep_their_types_and_forms(tmp_path: Path) -> None:
    said = {
        "flag": True, "count": 3, "share": 0.5, "word": "tensor", "asked": "search", "by": {"a": 0.3, "no": 1},
        "range": {"low": 0.1, "high": 1, "per": "both", "start": 0.2},
        "listed": {"values": [1, 2.5]}, "open": {"per": "group"},
    }  # fmt: skip
    listed = GOOD.replace("{lambda: 1e-1}", json.dumps(said)).replace("space: {", "space: {method: [ties, linear], ")
    space = load(tmp_path, listed).space
    assert space.methods == ["ties", "linear"] and space.searched == ["asked", "range", "listed", "open"]
    assert space.said == {**said, "listed": {"per": "model", "values": [1, 2.5]}}
    assert [type(space.said[name]) for name in ("flag", "count", "share")] == [bool, int, float]
    job = load(tmp_path, listed)
    assert load(tmp_path, job.yaml()) == job and Job.model_validate_json(job.model_dump_json()) == job


def test_a_start_may_be_by_group(tmp_path: Path) -> None:
    said = {"a": {"model.layers.0": 0.1, "*": 0.25}, "no": 0.5}
    job = load(tmp_path, GOOD.replace("space: {", f"space: {{start: {json.dumps(said)}, "))
    assert job.space.start == said and load(tmp_path, job.yaml()) == job


def test_the_docs_name_every_key_of_the_space_and_of_a_searched_option() -> None:
    text = (Path(__file__).parents[1] / "docs" / "job.md").read_text()
    assert all(f"`space.{key}`" in text for key in Space.model_fields)
    assert all(f"{key}:" in text for key in Searched.model_fields)


def test_relative_paths_start_at_the_job_file_and_root_moves_them(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD).path("models/base") == tmp_path / "models/base"
    assert load(tmp_path, GOOD + "root: ..\n").path("x").resolve() == (tmp_path.parent / "x").resolve()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "colour: red\n", r"colour: unknown key"),
        (GOOD.replace("lambda: 1e-1", "e: {low: 0.1, hi: 1}"), r"space\.options\.e\.hi: unknown key"),
        (GOOD.replace("lambda: 1e-1", "e: {per: tensor}"), r"space\.options\.e\.per: .*'expert', 'group' or 'both'"),
        (GOOD.replace("lambda: 1e-1", "e: [1, 2]"), r"space\.options\.e: expected a value, 'search'.*got list"),
        (GOOD.replace("lambda: 1e-1", "e: null"), r"space\.options\.e: expected a value.*got nothing"),
        (GOOD.replace("lambda: 1e-1", "e: .inf"), r"space\.options\.e: expected a value.*got float inf"),
        (GOOD.replace("lambda: 1e-1", "e: {a: x}"), r"space\.options\.e\.a: expected a finite number, got str 'x'"),
        (
            GOOD.replace("lambda: 1e-1", "e: {a: '1'}"),
            r"options\.e\.a: expected a finite number; write it without quotes",
        ),
        (
            GOOD.replace("{lambda: 1e-1}", "density"),
            r"space\.options: expected options and their values, such as \{dens",
        ),
        (GOOD.replace("bounds: [0, 1e0]", "bounds: [0, 1, 2]"), r"space\.bounds: expected \[low, high\], or \{EXPERT"),
        (GOOD.replace("bounds: [0, 1e0]", "bounds: {a: 1}"), r"space\.bounds: expected .*got dict \{'a': 1\}$"),
        (GOOD.replace("space: {", "space: {start: x, "), r"space\.start: expected a number, or \{EXPERT: number"),
        (GOOD.replace("space: {", "space: {methods: x, "), r"space\.methods: unknown key; did you mean 'method'\?"),
        (GOOD.replace("space: {", "space: {frozen: x, "), r"space\.frozen: expected a list, got str 'x'"),
        (GOOD.replace("lambda: 1e-1", "e: {low: yes}"), r"space\.options\.e\.low: expected a finite number"),
        (GOOD.replace("lambda: 1e-1", "e: {low: true}"), r"space\.options\.e\.low: expected a finite number"),
        (GOOD.replace("lambda: 1e-1", "e: {values: [1]}"), r"space\.options\.e\.values: List should have at least 2"),
        (
            GOOD.replace("lambda: 1e-1", "e: {values: [1, 2], low: 0}"),
            r"space\.options\.e: a list of values has no low",
        ),
        (
            GOOD.replace("space: {", "space: {method: [], "),
            r"space\.method: expected the name of a merge method, or a list",
        ),
        (GOOD.replace("space: {", "space: {method: [a, a], "), r"space\.method: a method is listed twice"),
        (GOOD + "name: twice\n", r"duplicate key"),
        (
            GOOD.replace("bounds: [0, 1e0]", "bounds: [false, true]"),
            r"space\.bounds: expected \[low, high\].*, got list \[False, True\]",
        ),
        (
            GOOD.replace("bounds: [0, 1e0]", "bounds: ['0', 1]"),
            r"space\.bounds.*; write numbers without quotes, got list \['0', 1\]",
        ),
        (
            GOOD.replace("bounds: [0, 1e0]", "bounds: [-1e400, 1]"),
            r"space\.bounds: expected \[low, high\].*, got list \[-inf, 1\]",
        ),
        (GOOD.replace("bounds: [0, 1e0]", "start: true"), r"space\.start: expected a number.*, got bool True"),
        (GOOD.replace("bounds: [0, 1e0]", "start: {a: .nan}"), r"space\.start: expected a number.*nan"),
        (GOOD.replace("bounds: [0, 1e0]", "simplex: 1"), r"space\.simplex: expected true or false, got int 1"),
        (GOOD.replace("[a.accuracy]", "[]"), r"objectives: List should have at least 1 item"),
        (
            GOOD.replace("[a.accuracy]", f"[{', '.join(f'a.m{i}' for i in range(32))}]"),
            r"objectives: .*at most 31 items",
        ),
        (GOOD.replace("name: demo", "name: ../../etc"), r"name: expected letters, digits"),
        (GOOD.replace("{a: models/a", "{'a/b': models/a"), r"models\.experts.*expected letters, digits"),
        (GOOD.replace("{a: models/a", '{"a\\n\\eb": models/a'), r"models\.experts\.a\\n\\x1bb.*expected letters"),
        (GOOD.replace("{lambda: 1e-1", '{"a\\nb": .inf, lambda: 1e-1'), r"options\.a\\nb: expected a value"),
        (GOOD.replace("models/base", "3"), r"models\.base: expected text, got int 3"),
        (GOOD + "budget: {evaluations: 0}\n", r"budget\.evaluations: .*greater than or equal to 1"),
        (GOOD + "executor: {kind: slurm}\n", r"executor\.kind: .*'inline' or 'ray'"),
        (GOOD + "executor: {pool: gpu}\n", r"executor\.pool: .*'auto', 'device' or 'stream'"),
        (GOOD + "executor: {device: {}}\n", r"executor\.device.*at least 1 item"),
        (GOOD + "executor: {device: {a: 0, b: disk}}\n", r"'b' is to be on 'disk'"),
        (GOOD + "executor: {device: {a: 0, b: -1}}\n", r"'b' is to be on -1"),
        (GOOD + "executor: {device: {a: 0, b: 'cpu:1'}}\n", r"'b' is to be on 'cpu:1'"),
        (GOOD + "executor: {device: {a: 0, b: cpu}}\n", r"all modules on accelerators, or all on the cpu"),
        (GOOD + "executor: {device: {a: 0, b: 1}}\n", r"2 accelerators, and gpus sets 0 aside.*set gpus: 2"),
        (GOOD + "executor: {device: {a: 0, b: 'cuda:1'}, gpus: 1}\n", r"2 accelerators, and gpus sets 1 aside"),
        (GOOD + "executor: {device: {a: 1, b: 2}, gpus: 2}\n", r"numbered from 0, and with gpus: 2 none is cuda:2"),
        (GOOD + "executor: {device: 'cuda:1', gpus: 1}\n", r"with gpus: 1 none is cuda:1"),
        (GOOD.replace("}]", "}, {kind: language, name: a, data: b}]"), r"the name 'a' is used twice"),
        (GOOD + "executor: {patience: .inf}\n", r"executor\.patience: .*finite number, got float inf"),
        (GOOD + "executor: {cpus: .inf}\n", r"executor\.cpus: .*finite number"),
        (GOOD + "executor: {timeout: .inf}\n", r"executor\.timeout: .*finite number"),
        (GOOD + "executor: {timeout: inf}\n", r"executor\.timeout: .*finite number"),
        (GOOD.replace("a.jsonl", "a.jsonl, limit: .nan"), r"evaluators\.0\.limit: expected a finite number, got nan"),
        (
            GOOD.replace("a.jsonl", "a.jsonl, few: {x: [1, -.inf]}"),
            r"evaluators\.0\.few\.x\.1: expected a finite number",
        ),
        (GOOD.replace("1e-3", ".inf"), r"driver\.sigma: expected a finite number, got inf"),
        (GOOD + "root: null\n", r"root: expected the folder where relative paths start, got nothing"),
        (GOOD + "root: 5\n", r"root: expected the folder .*got int 5"),
        (GOOD + "root: [a]\n", r"root: expected the folder .*got list"),
        ("a: &x 1\nb: *x\n", r"aliases \(\*x\) are refused"),
        (GOOD + "ledger: postgresql://me:canary@host/db\n", r"ledger: .*me:\*\*\*@host.* holds a password.*PGPASSWORD"),
        (GOOD + "ledger: postgresql://me@host/db?password=canary\n", r"ledger: .*holds a password"),
        (GOOD + "ledger: mysql://me@host/db\n", r"ledger: expected postgresql://USER@HOST/DATABASE"),
        (GOOD + "ledger: postgresql://me@host/db?passfile=/etc/shadow\n", r"unknown parameter 'passfile'"),
        (GOOD + "ledger: postgresql://me@host:99999/db\n", r"expected postgresql.*Port out of range"),
        ("a: " + "[" * 60 + "]" * 60, r"values inside values over 50 deep"),
        ("a: !!bool 3\n", r"a value is none of its kind"),
        ("a: " + "9" * 5000, r"a value is none of its kind: Exceeds the limit"),
        ("- 1\n", r"expected a mapping of keys"),
        ("", r"expected a mapping of keys.*got nothing"),
        ("a: [\n", r"not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", r"not valid YAML|expected"),
        ("# " + "x" * MAX_BYTES, r"has at most"),
    ],
)
def test_a_bad_job_is_refused_in_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(JobError, match=message) as caught:
        load(tmp_path, text)
    assert caught.value.exit_code == 2
    assert "job.yaml" in str(caught.value) and "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("executor", "count"),
    [
        ("{device: auto, gpus: 2}", 0),
        ("{device: cuda, gpus: 1}", 1),
        ("{device: cuda, gpus: 0.5}", 1),
        ("{device: 'cuda:1'}", 1),
        ("{device: {a: 0, b: 'cuda:0'}, gpus: 1}", 1),
        ("{device: {a: 0, b: 1}, gpus: 2}", 2),
        ("{device: {a: 0, b: 1}, kind: inline}", 2),
        ("{device: {a: cpu, b: cpu}}", 0),
    ],
)
def test_devices_are_counted_as_ray_will(tmp_path: Path, executor: str, count: int) -> None:
    job = load(tmp_path, GOOD + f"executor: {executor}\n")
    assert len(job.executor.accelerators) == count
    assert load(tmp_path, job.yaml()).executor == job.executor


def test_a_missing_job_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="mergeopt init"):
        Job.load(tmp_path / "none.yaml")
