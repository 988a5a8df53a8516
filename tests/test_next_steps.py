"""Does the command line say, in a terminal of 80 columns, what is going on, what is missing, and what to do next?"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import worlds
from ledgers import Made
from program import Program
from rich.console import Console

from optimizer import Job, Run
from optimizer.answer import Answer
from optimizer.errors import JobError
from optimizer.jobs import counted, demo
from optimizer.jobs.job import EvaluatorEntry
from optimizer.output import progress
from optimizer.searching.search import Search

RUNGS = "fidelity: {rungs: [6, 12], keep: 0.5, final: 0.2}"


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="module")
def rungs(tmp_path_factory: pytest.TempPathFactory) -> Run:
    job = worlds.classification(tmp_path_factory.mktemp("rungs"), evaluations=40, extra=RUNGS)
    return worlds.searched(job)


def phrase(text: str) -> str:
    """What was said, without where lines end."""
    return " ".join(text.split())


@pytest.mark.parametrize("count", [1, 3])
def test_a_comparison_fits_the_terminal_and_names_each_objective_once(
    tmp_path: Path, mergeopt: Program, count: int
) -> None:
    made = Made(tmp_path / "run", objectives=count)
    made.more(20)
    made.heldout([0, 1, 12])
    made.close()
    said = mergeopt("compare", tmp_path / "run", "12", "a0").out
    assert max(map(len, said.splitlines())) <= 80 and "…" not in said
    for i in range(count):
        assert said.count(f"t{i}.accuracy") == 1
    figures = [line for line in said.splitlines() if line.strip().startswith(("calibration", "held-out"))]
    assert len(figures) == 2 * count and all(line.count("±") == 3 for line in figures)


def test_a_comparison_in_a_terminal_too_narrow_for_a_table_says_each_figure(
    tmp_path: Path, mergeopt: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    made = Made(tmp_path / "run")
    made.more(20)
    made.close()
    said = mergeopt("compare", tmp_path / "run", "12", "a0").out
    assert max(map(len, said.splitlines())) <= 40 and "…" not in said
    assert phrase(said).count("A less B") == 2 and "Held-out items score the front" in phrase(said)


def test_a_comparison_says_of_estimates_that_they_are_and_how_they_are_measured(rungs: Run, mergeopt: Program) -> None:
    some = next(c for c in rungs.results().candidates.values() if c.share < 1)
    said = phrase(mergeopt("compare", rungs.folder, str(some.number), "best").out)
    assert f"A was scored on {some.share:.0%} of the calibration items, so its scores are estimates" in said
    assert f"export {rungs.folder} {some.number}'" in said.replace("' '", "") and "B was scored" not in said
    found = json.loads(mergeopt("compare", rungs.folder, str(some.number), "best", "--json").out)
    assert (found["a"]["share"], found["b"]["share"]) == (some.share, 1.0)
    assert mergeopt("export", rungs.folder, str(some.number)).code == 0  # what it advises


def test_rungs_are_worked_out_on_paper(tmp_path: Path, mergeopt: Program) -> None:
    job = worlds.classification(tmp_path, evaluations=40, extra=RUNGS)
    found = json.loads(mergeopt("check", job, "--paper", "--json").out)["fidelity"]
    assert found["items"] == {"spam": 30, "mood": 30} and found["uncounted"] == {}
    assert [(r["items"], r["in_all"], r["share"]) for r in found["rungs"]] == [
        (6, 12, 1),
        (12, 24, 0.5),
        (None, 60, 0.25),
    ]
    assert found["usual_share"] == pytest.approx((6 + 0.5 * 6 + 0.25 * 18) / 30)
    said = phrase(mergeopt("check", job, "--paper").out)
    assert (
        "6 items of each task (12 in all tasks): every candidate" in said and "(60 in all tasks): the best 25%" in said
    )
    assert "a candidate takes" not in said and "so before the end one of these takes about 0.45 of the items" in said
    share = (10 + 30 * 0.45) / 40 + 0.2 * (
        1 - 6 / 30
    )  # base, experts, averages and sweep are whole; a fifth at the end
    assert (
        f"of 40 candidates 10 are scored on all whatever they promise (10 anchors), so the whole search takes about "
        f"{share:.2f}" in said
    )
    assert "20% of the candidates, of those that stopped the most promising, are scored on all" in said


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[6, 12]", "[6, 30]", "evaluator 'spam' has 30 calibration items; name at most 29"),
        ("[6, 12]", "[6, 12], estimate: none", "fidelity.estimate: no 'none'"),
        ("driver: {name: sobol}", "driver: {name: supervised}", "evaluator 'spam' has 8 calibration items"),
        ("text: text, ", "text: text, limt: 3, ", "unknown option 'limt'"),
    ],
    ids=["too many", "estimate", "gradients see some", "option"],
)
def test_rungs_that_cannot_be_are_refused_on_paper(
    tmp_path: Path, mergeopt: Program, old: str, new: str, message: str
) -> None:
    job = worlds.classification(tmp_path, extra=RUNGS)
    job.write_text(job.read_text().replace(old, new))
    said = mergeopt("check", job, "--paper")
    assert said.code == 2 and message in said.err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{name: sobol}", "{name: cma, popsise: 4}", "driver 'cma': popsise: no such option; its options are: sigma0"),
        ("{name: sobol}", "{name: cma, preferences: []}", "driver.preferences: the list is empty"),
        ("{name: sobol}", "{name: sobol, preferences: [[1, 1]]}", "remove driver.preferences"),
        ("{name: sobol}", "{name: pareto, ends: []}", "driver.ends: the list is empty"),
        ("objectives:", "constraints: [spam.accuracy >= 50]\nobjectives:", "spam.accuracy is between 0 and 1"),
        ("objectives:", "constraints: [spam.acuracy >= 0.5]\nobjectives:", "no evaluator reports 'spam.acuracy'"),
        ("[spam.accuracy", "[spam.macro_f1", "fidelity: spam.macro_f1 is no mean over items"),
        ("objectives:", "constraints: [mood.macro_f1 >= 0.5]\nobjectives:", "fidelity: mood.macro_f1 is no mean"),
        ("[spam.accuracy", "[spam.kl", "no evaluator reports 'spam.kl'"),
        ("name: mood,", "name: mood, teacher: nobody,", "its teacher 'nobody' is no expert; there are: spam, mood"),
    ],
)
def test_what_a_job_alone_shows_to_be_wrong_is_refused_on_paper(
    tmp_path: Path, mergeopt: Program, old: str, new: str, message: str
) -> None:
    job = worlds.classification(tmp_path, extra=RUNGS)
    assert old in job.read_text()
    job.write_text(job.read_text().replace(old, new))
    said = mergeopt("check", job, "--paper")
    assert said.code == 2 and message in phrase(said.err)


def test_what_paper_cannot_know_is_said_in_its_last_line(tmp_path: Path, mergeopt: Program) -> None:
    job = worlds.classification(tmp_path)
    said = mergeopt("check", job, "--paper")
    assert said.code == 0 and phrase(said.out).endswith(
        "not checked on paper items and labels; whether the starting point can be scored"
    )
    job.write_text(
        job.read_text()
        .replace("objectives: [", "  - {kind: harness, name: sums, task: arithmetic_2da}\nobjectives: [sums.any, ")
        .replace("budget:", "constraints: [sums.any >= 50]\nbudget:")
    )
    said = mergeopt("check", job, "--paper")
    assert said.code == 0 and "not checked on paper what evaluator 'sums' reports; items and" in phrase(said.out)
    job.write_text(job.read_text().replace("spam.accuracy", "spam.acuracy"))
    said = mergeopt("check", job, "--paper")
    assert said.code == 2 and "no evaluator reports 'spam.acuracy'" in phrase(said.err)


def test_items_that_cannot_be_counted_on_paper_are_said_to_be_so(tmp_path: Path, mergeopt: Program) -> None:
    job = worlds.classification(tmp_path, extra=RUNGS)
    (tmp_path / "data" / "mood.jsonl").unlink()
    said = mergeopt("check", job, "--paper")
    assert said.code == 0 and "items of mood are not counted: data/mood.jsonl: no such file" in phrase(said.out)
    assert "all items: the best" in phrase(said.out), "how many that are in all is not known"
    job.write_text(job.read_text().replace("data/mood.jsonl", "datasets:org/name"))
    assert "items of mood are not counted: its items are on the hub" in phrase(mergeopt("check", job, "--paper").out)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("gone.jsonl", "gone.jsonl: no such file or folder"),
        ("{calibration: data/mood.jsonl, heldout: gone.jsonl}", "gone.jsonl: no such file or folder"),
        ("pipe.jsonl", "got a pipe, a device or a socket"),
        ("data", "expected a folder written by `datasets` save_to_disk"),
        ("job.yaml", "cannot read .yaml; expected .jsonl"),
    ],
)
def test_data_that_is_not_here_is_told_on_paper_and_not_waited_for(
    tmp_path: Path, mergeopt: Program, data: str, message: str
) -> None:
    job = worlds.classification(tmp_path)
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert json.loads(mergeopt("check", job, "--paper", "--json").out)["missing"] == []
    job.write_text(job.read_text().replace("data: data/mood.jsonl", f"data: {data}"))
    said = mergeopt("check", job, "--paper")
    assert said.code == 0, "who plans for another host is told, not refused"
    assert f"cannot run here: evaluator 'mood': {data if data[0] != '{' else ''}" in phrase(said.out)
    assert message in phrase(said.out)
    (why,) = json.loads(mergeopt("check", job, "--paper", "--json").out)["missing"]
    assert message in why
    refused = mergeopt("check", job)
    assert refused.code == 2 and "Traceback" not in refused.err


def test_a_task_that_is_a_path_is_looked_for_on_paper_and_a_name_is_not(tmp_path: Path) -> None:
    job = Job.load(worlds.classification(tmp_path))
    (tmp_path / "tasks").mkdir()

    def missing(task: str) -> list[str]:
        entry = {"kind": "harness", "name": "t", "task": task, "data": "datasets:org/name"}
        return counted.missing(job.model_copy(update={"evaluators": [EvaluatorEntry.model_validate(entry)]}))

    assert [missing(task) for task in ("arc_easy", "./tasks", "./tasks/mine")] == [[], [], []]
    assert "evaluator 't': task './tasks/mine.yaml': no file mine.yaml" in missing("./tasks/mine.yaml")[0]
    assert "no such file or folder" in missing("none/mine")[0]


def test_progress_says_what_goes_on_when_the_search_is_over(tmp_path: Path, mergeopt: Program) -> None:
    job = worlds.classification(tmp_path, evaluations=40, extra=RUNGS)
    lines = mergeopt("run", job, "--runs", tmp_path / "runs").out.splitlines()
    finalists = [i for i, line in enumerate(lines) if line.endswith(progress.LAST["finalists"])]
    heldout = [i for i, line in enumerate(lines) if line.endswith(progress.LAST["heldout"])]
    assert finalists and heldout and max(finalists) < min(heldout)
    assert lines[finalists[0]].startswith("0/") and lines[heldout[0]].startswith("0/"), (
        "before the first has its scores"
    )
    done, total = lines[heldout[-1]].split()[0].split("/")
    assert done == total
    again = mergeopt("resume", tmp_path / "runs" / "pico").out
    assert progress.LAST["heldout"] not in again, "nothing is left to be scored"


@pytest.mark.parametrize("phase", progress.LAST)
def test_a_live_line_says_so_before_there_is_an_answer(phase: str) -> None:
    out = io.StringIO()
    search: Any = SimpleNamespace(phase=phase, waiting=5, reported=lambda: [1, 2, 3], references={"base": "", "e": ""})
    with progress.SearchProgress(Console(file=out, width=120, force_terminal=True), live=True) as shown:
        shown.on_phase(search)
    assert "0/5" in out.getvalue() and progress.LAST[phase] in out.getvalue()


def walked(seconds: list[float], patch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that are left after each candidate, of a hundred, where each took so long."""
    now, left = [0.0], []
    patch.setattr(progress.time, "monotonic", lambda: now[0])
    patch.setattr(progress, "duration", lambda s: left.append(s) or "")
    shown = progress.SearchProgress(Console(file=io.StringIO()), live=False)
    front = SimpleNamespace(hypervolume=0.5, best=lambda: None, numbers=())
    search: Any = SimpleNamespace(
        steps=0, evaluations=100, phase="calibration", front=front, objectives=(), repeated=0, failed=0
    )
    for search.answered, took in enumerate(seconds, 1):
        now[0] += took
        shown.on_answer(search, Answer(search.answered, "calibration"))
    return left


def test_the_time_that_is_left_goes_with_the_pace_of_late_and_does_not_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = walked([20.0, *[0.1, 19.9] * 30], monkeypatch)  # of two workers that answer together
    late = pairs[20:]
    assert all(abs(a - b) / a < 0.1 for a, b in pairwise(late))
    slower = walked([*[1.0] * 40, *[4.0] * 40], monkeypatch)
    assert slower[-1] == pytest.approx(4.0 * 20, rel=0.15), "candidates of long ago say little of those to come"


def stopped(when: Callable[[Search], bool], tmp_path: Path) -> Run:
    run = Run.create(Job.load(worlds.classification(tmp_path)), tmp_path / "runs")
    run.search(lambda search, answer: search.stop() if when(search) else None)
    return run


def test_a_front_without_heldout_scores_says_so_and_how_they_are_had(tmp_path: Path, mergeopt: Program) -> None:
    run = stopped(lambda search: search.answered == 9, tmp_path)
    said = phrase(mergeopt("front", run.folder).out).replace("' '", "")
    assert "Nothing has been scored on held-out items yet" in said and "--evaluations=9" in said
    assert mergeopt("resume", run.folder, "--evaluations=9").code == 0  # what it advises
    assert "Nothing has been scored on held-out items" not in phrase(mergeopt("front", run.folder).out)
    assert all(c.heldout for c in run.results().on_front) and len(run.results().scored) == 9


def test_a_service_for_a_folder_that_is_not_there_says_so(
    tmp_path: Path, mergeopt: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.service.serving.serve", lambda *asked: None)
    said = mergeopt("serve", "--runs", tmp_path / "nosuch")
    assert said.code == 0 and "there is no folder" in said.out and "yet" in said.out
    assert "no folder" not in mergeopt("serve", "--runs", tmp_path).out
    (tmp_path / "file").write_text("")
    said = mergeopt("serve", "--runs", tmp_path / "file")
    assert said.code == 2 and "expected a folder" in said.err


def test_a_demo_that_was_interrupted_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(JobError, match="has been run here; remove"):
        demo.prepare(tmp_path, 20, print)
    Made(tmp_path / "runs" / demo.NAME).close()
    with pytest.raises(JobError, match=f"'mergeopt resume {tmp_path}/runs/digits' goes on with it, or remove"):
        demo.prepare(tmp_path, 20, print)
