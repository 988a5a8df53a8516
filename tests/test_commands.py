"""What each command prints, and with which code it ends, from `init` to `report`."""

from __future__ import annotations

import io
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import worlds
from program import mergeopt
from rich.console import Console

from evaluators.evaluator import Measure
from optimizer import Job, Run
from optimizer.answer import Answer
from optimizer.commands import remote
from optimizer.objectives import Objective
from optimizer.output import progress, show
from optimizer.record.ledger import Ledger
from optimizer.record.results import Candidate, Results
from optimizer.remote import wire
from searchspaces.cache import holds
from searchspaces.cache.once import made_once


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    worlds.classification(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def test_the_cache_is_shown_and_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MERGEOPT_CACHE_GB", "7.5")
    assert mergeopt("cache", "--clear") == 0  # there is none yet
    for kind, name, size in [("ranks", "0" * 32, 30_000_000), ("ranks", "1" * 32, 20_000_000), ("grams", "2" * 32, 1)]:
        home = tmp_path / "mergeopt" / kind / name
        made_once(home, "things", 0, lambda folder, size=size: (folder / "data").write_bytes(bytes(size)))
    capsys.readouterr()
    assert mergeopt("cache") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path / 'mergeopt'}: 0.05 GB of at most 7.50") and "ranks             0.05 GB" in said
    assert mergeopt("cache", "--clear", "--json") == 0
    kept = json.loads(capsys.readouterr().out)
    assert kept["bytes"].keys() == {"ranks", "grams"} and kept["limit"] == 7_500_000_000  # this process uses them
    assert kept["removed"] == {}
    assert mergeopt("cache", "--clear") == 0
    said = capsys.readouterr().out
    assert said.startswith("removed nothing\n") and "it stays until they end" in said
    holds.release()
    torn = tmp_path / "mergeopt" / "statistics" / f".{'3' * 32}.work"
    torn.mkdir(parents=True)
    (torn / "sums").write_bytes(bytes(10_000_000))
    assert mergeopt("cache", "--clear") == 0
    said = capsys.readouterr().out
    assert said.startswith("removed 0.06 GB:\n") and "  ranks             0.05 GB\n" in said
    assert "  statistics        0.01 GB\n" in said and "stays until" not in said and not torn.exists()
    assert mergeopt("cache", "--clear", "--json") == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == {}


def test_from_models_to_an_export(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        code = mergeopt(*arguments)
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out

    pairs = ["--expert", "spam=experts/spam", "--expert", "mood=experts/mood", "--data", "spam=data/spam.jsonl"]
    run("init", "--base", "base", *pairs, "--data", "mood=data/mood.jsonl", "--out", "mine.yaml")
    # a job elsewhere has the paths that it sees, and says which columns there are
    Path("jobs").mkdir()
    said = run("init", "--base", "base", *pairs, "--data", "mood=data/mood.jsonl", "--out", "jobs/other.yaml")
    other = Job.load("jobs/other.yaml")
    assert other.models.base == "../base" and other.evaluators[1].options["data"] == "../data/mood.jsonl", said
    text = Path("jobs/other.yaml").read_text()
    assert "mergeopt check jobs/other.yaml" in text and "columns that are there: text, label" in text
    text = Path("mine.yaml").read_text().replace("kind: ray, workers: 2, threads: 1", "kind: inline")
    text = text.replace("evaluations: 200", "evaluations: 16").replace(
        "label: label", "label: label\n    classes: [neg, pos]"
    )
    Path("mine.yaml").write_text(text)
    found = json.loads(run("check", "mine.yaml", "--json"))
    assert found["dimension"] == 8 and found["evaluations"] == 16 and found["candidate_seconds"] > 0
    assert "8 coefficients in 4 groups" in run("check", "mine.yaml")
    assert "16/16" in run("run", "mine.yaml", "--name", "first")
    status = json.loads(run("status", "first", "--json"))
    assert status["finished"] and status["answered"] == 16 and status["failed"] == 0
    assert "16 of 16" in run("status", "first")
    rows = json.loads(run("front", "first", "--json"))
    assert any(r["front"] for r in rows) and all(r["heldout"]["spam.accuracy"]["count"] == 30 for r in rows)
    assert "held-out" in run("front", "first", "--all")
    shown = json.loads(run("show", "first", "expert: spam", "--json"))
    assert set(shown["coefficients"]["embeddings"].items()) == {("spam", 1.0), ("mood", 0.0)}
    assert json.loads(run("show", "first", "expert spam", "--json")) == shown  # as references are called
    assert mergeopt("show", "first", "expert other") == 2
    refused = capsys.readouterr().err
    assert "or one of: " in refused and "expert: spam" in refused and "uniform" in refused and "NAME" not in refused
    assert "spam.accuracy" in run("show", "first")
    exported = run("export", "first", "best", "--out", "merged")
    assert "its scores on reload are those of the ledger" in exported
    why = next(line for line in exported.splitlines() if line.startswith("mergekit cannot express it: "))
    assert "mergekit fails on BertModel" in why
    assert f"{why}." in (world / "merged" / "README.md").read_text().replace("`", "")
    assert (world / "merged" / "model.safetensors").is_file()
    assert "20/20" in run("resume", "first", "--evaluations", "20")
    run("report", "first", "--out", "page.html")
    assert (world / "page.html").stat().st_size > 1_000_000


def test_a_first_job_finds_the_way_by_gradients(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [w for n in ("spam", "mood") for w in ("--expert", f"{n}=experts/{n}", "--data", f"{n}=data/{n}.jsonl")]
    assert mergeopt("init", "--base", "base", *given, "--out", "plain.yaml") == 0
    assert mergeopt("init", "--base", "base", *given, "--gradients", "--out", "slopes.yaml") == 0
    plain, slopes = (Path(name).read_text() for name in ("plain.yaml", "slopes.yaml"))
    assert "4 layer groups = 8 coefficients" in plain and " tensor groups = " in slopes
    assert "  - mood.accuracy\n  # or NAME.cross_entropy: it moves with every item" in plain
    # the commented line of the one is the entry of the other
    taken = plain.replace("\ndriver: ", "\n# driver: ").replace(
        "\n# driver: {name: auto, g", "\ndriver: {name: auto, g"
    )
    Path("taken.yaml").write_text(taken)
    assert Job.load("plain.yaml").driver.gradients is None
    assert Job.load("taken.yaml").driver == Job.load("slopes.yaml").driver != Job.load("plain.yaml").driver
    text = slopes.replace("kind: ray, workers: 2, threads: 1", "kind: inline").replace("steps: 60", "steps: 4")
    text = text.replace("label: label", "label: label\n    classes: [neg, pos]").replace(
        "evaluations: 200", "evaluations: 14"
    )
    Path("slopes.yaml").write_text(text)
    run = Run.create(Job.load("slopes.yaml"), "runs")
    run.search()
    assert run.results().gradients == 4 and len(run.results().candidates) == 14


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "none.yaml"], "no job file at none.yaml"),
        (["status", "nobody"], "no run at"),
        (["run", "job.yaml", "--runs", "/proc/nowhere"], "cannot use /proc/nowhere"),
        (["init", "--base", "base", "--expert", "spam", "--out", "x.yaml"], "expected NAME=PATH"),
        (["init", "--base", "base", "--expert", "spam=experts/spam", "--out", "job.yaml"], "exists already"),
        (["init", "--base", "base", "--expert", "spam=experts/none", "--out", "x.yaml"], "experts/none"),
    ],
)
def test_a_users_mistake_is_one_message_and_code_2(
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert mergeopt(*arguments) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_a_run_that_is_not_there_is_told_with_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mergeopt("front", "digits") == 2
    assert "there is none in runs; make one with 'mergeopt run job.yaml'" in capsys.readouterr().err
    for name in ("second", "first", "a\x1b]0;b"):
        (tmp_path / "kept" / name).mkdir(parents=True)
        (tmp_path / "kept" / name / "ledger.db").touch()
    (tmp_path / "kept" / "no-run").mkdir()
    assert mergeopt("mirror", "digits", "--storage", "sqlite:///x.db", "--runs", "kept") == 2
    said = capsys.readouterr().err
    assert "in kept there are: a�]0;b, first, second; name one of these, a run's folder, or" in said
    assert "--runs" in said and "no-run" not in said and "\x1b" not in said


@pytest.mark.parametrize("option", ["--fork=other", "--metrics-port=0", "--log-json"])
def test_what_means_nothing_on_a_cluster_is_refused_and_not_dropped(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote, "resume", lambda *given: pytest.fail("it was sent"))
    assert mergeopt("resume", "far", "--address", "http://localhost:1", option) == 2
    said = capsys.readouterr().err
    assert option.partition("=")[0] in said and "not with --address" in said


@pytest.mark.parametrize("module", ["optimizer", "optimizer.commands.cli"])
def test_the_program_is_also_run_as_a_module_and_knows_its_version(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mergeopt", "--version"])
    monkeypatch.delitem(sys.modules, module if module != "optimizer" else "optimizer.__main__", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert not ended.value.code
    assert capsys.readouterr().out == f"mergeopt {wire.version()}\n"


def test_help_begins_with_what_everybody_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mergeopt("--help") == 0
    words = capsys.readouterr().out.replace("│", " ").split("\n")
    listed = [line.split()[0] for line in words if line.startswith("  ") and line[2:3].isalpha()]
    assert listed[:5] == ["demo", "init", "check", "run", "resume"]
    assert listed.index("methods") < listed.index("launch") < listed.index("cluster")


def test_a_ledgers_server_is_tried_by_check_and_a_missing_driver_is_one_message(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("job.yaml").write_text(Path("job.yaml").read_text() + "ledger: postgresql://me@/db?host=/nowhere\n")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for command in ("check", "run"):
        assert mergeopt(command, "job.yaml") == 2
        assert "needs the package psycopg; pip install 'mergeopt[postgres]'" in capsys.readouterr().err
    assert not list(Path("runs").iterdir())


def test_the_rate_leaves_out_what_the_first_answer_had_to_prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    shown = progress.SearchProgress(Console(file=out, width=200), live=False)
    front = SimpleNamespace(hypervolume=0.5, best=lambda: None, numbers=())
    search = SimpleNamespace(
        **{"steps": 0, "gradients": 0, "evaluations": 24, "phase": "search"},
        **{"front": front, "objectives": (), "repeated": 0, "failed": 0},
    )
    for search.answered, at in ((10, 1300.0), (11, 1306.0), (12, 1312.0)):  # nine are of before; the first took minutes
        now[0] = at
        shown.on_answer(search, Answer(search.answered, "calibration", seconds=300.0))
    assert [line.split("  ")[1:] for line in out.getvalue().splitlines()] == [
        ["hypervolume 0.5000"],
        ["10.0/min", "hypervolume 0.5000", "78 s left"],
        ["10.0/min", "hypervolume 0.5000", "72 s left"],
    ]


def test_once_steps_are_spent_lines_tell_of_candidates_and_are_no_more_than_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, out = [1000.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.SearchProgress(Console(file=out, width=200), live=False)
    front = SimpleNamespace(hypervolume=0.5, best=lambda: None, numbers=())
    search = SimpleNamespace(steps=2, evaluations=120, phase="search", front=front, objectives=(), repeated=0, failed=0)
    for search.gradients, search.answered in ((1, 20), (2, 20), *((2, 20 + i) for i in range(1, 13))):
        now[0] += 1.0
        shown.on_answer(search, Answer(search.gradients + search.answered, "calibration", seconds=1.0))
    assert [line.split("  ")[:-1] for line in out.getvalue().splitlines()] == [
        ["1/2 steps", "hypervolume 0.5000"],
        ["2/2 steps", "hypervolume 0.5000"],
        ["2/2 steps", "60.0/min", "hypervolume 0.5000", "26 of at most 120 scored"],
        ["2/2 steps", "60.0/min", "hypervolume 0.5000", "32 of at most 120 scored"],
    ]
    assert out.getvalue().endswith("88 s left at most\n")


def test_a_run_that_cannot_start_leaves_its_name_free(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path("job.yaml").read_text()
    Path("job.yaml").write_text(text.replace("classes: [neg, pos]", "classes: [a, b]"))
    assert mergeopt("run", "job.yaml") == 2
    assert not (world / "runs" / "pico").exists()
    Path("job.yaml").write_text(text)
    assert mergeopt("run", "job.yaml") == 0


def test_a_run_of_another_name_is_otherwise_the_same(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        Path("job.yaml").read_text().replace("text: text, classes: [neg, pos]", "text: text, label: null, head: spam")
    )
    Path("unlabelled.yaml").write_text(text.replace("spam.accuracy, mood.cross_entropy", "spam.entropy, mood.entropy"))
    assert mergeopt("run", "unlabelled.yaml", "--name", "other") == 0
    metrics = Run("runs/other").results().candidates[0].measures
    assert set(metrics) == {"spam.entropy", "mood.entropy"}, "labels are not read"


def test_where_a_standard_error_is_not_known_the_value_stands_alone(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.py").write_text("def f(model, rows, tokenizer): return {'m': float(next(model.parameters()).sum())}")
    Path("mine.yaml").write_text("""
models: {base: base, experts: {spam: experts/spam}, heads: ["classifier.*"]}
evaluators: [{kind: function, name: f, function: "mine.py:f", metrics: {m: max}, data: data/spam.jsonl}]
objectives: [f.m]
driver: {name: sobol}
budget: {evaluations: 4}
executor: {kind: inline}
""")
    said = {}
    for command in ("run mine.yaml --name m --allow-code", "front m", "front m --json", "show m best"):
        assert mergeopt(*command.split()) == 0, command
        said[command] = capsys.readouterr().out
    rows = json.loads(said["front m --json"])
    assert rows and all(row[split]["f.m"]["stderr"] is None for row in rows for split in ("calibration", "heldout"))
    value = f"{rows[0]['calibration']['f.m']['value']:.3f}"
    assert value in said["front m"] and value in said["show m best"]
    assert "±" not in said["front m"] + said["show m best"]
    assert mergeopt("export", "m", "best", "--out", "out", "--allow-code") == 0
    card = Path("out/README.md").read_text()
    assert f"| f.m | {rows[0]['calibration']['f.m']['value']:.4f} (30 items) |" in card
    assert mergeopt("report", "m") == 0
    assert '"stderr":[null]' in Path("runs/m/report.html").read_text()


def test_candidates_of_the_same_scores_share_a_line_and_anchors_have_their_own() -> None:
    def scored(number: int, value: float, stage: str = "sobol") -> Candidate:
        return Candidate(number, stage, "", np.zeros(1), {"a": Measure(value, None, 10)})

    found = [scored(3, 0.5), scored(1, 0.5), scored(7, 0.4), scored(0, 0.5, "anchor: base"), scored(9, 0.5)]
    results = cast(Results, SimpleNamespace(objectives=(Objective("a", "max"),)))
    assert show._alike(results, found) == {3: [1, 9], 1: [], 9: []}


def test_a_budget_that_is_lowered_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    kept = {"evaluations": 30, "said_evaluations": 30}
    ledger = SimpleNamespace(meta=lambda key, *other: kept[key], set_meta=kept.__setitem__)
    run = SimpleNamespace(job=SimpleNamespace(budget=SimpleNamespace(evaluations=30)))
    for wanted, said in ((40, ""), (10, "the budget is 10 candidates now, it was 40\n")):
        Run._set_budget(cast(Run, run), cast(Ledger, ledger), wanted)
        assert capsys.readouterr().err == said and kept["evaluations"] == wanted
