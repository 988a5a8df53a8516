"""What does a team do with the service? Start a search, watch it, stop it, go on, take the merge: on pico models."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import worlds
from ledgers import Made
from served import PATIENCE_SECONDS, TOKEN, Served, serving, until

from optimizer import Job, Run
from optimizer.errors import JobError, RunError, RunLocked
from optimizer.record.results import Results
from optimizer.service import processes, runs
from optimizer.service.board import Board
from optimizer.service.client import Service
from optimizer.service.serving import token_file
from optimizer.service.watching import Watch
from optimizer.views.importance import importance


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of pico models whose search takes long enough to be stopped."""
    return worlds.classification(tmp_path_factory.mktemp("world"), evaluations=5000)


@pytest.fixture(scope="module")
def service(world: Path) -> Iterator[Served]:
    with serving(world.parent / "runs") as served:
        yield served


def test_a_search_is_started_watched_stopped_gone_on_with_and_its_merge_taken(service: Served, world: Path) -> None:
    client = Service(service.url, TOKEN)
    yaml = world.read_text() + f"\nroot: {world.parent}\n"
    news: list[Any] = []

    def watch() -> None:
        news.extend(one for _, one in zip(range(3), client.events(), strict=False))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    assert client.launch(yaml, "live").run == "live"
    assert next(r for r in client.runs() if r.name == "live").status == "starting"
    with pytest.raises(RunLocked, match="there is a run 'live' already"):
        client.launch(yaml, "live")
    until(lambda: client.runs()[0].answered > 12, "a few candidates are answered")
    line = client.runs()[0]
    assert line.status == "running" and line.eta_seconds and line.best is not None and line.hypervolume >= 0
    first = client.candidates("live")
    more = until(lambda: (c := client.candidates("live", since=first.event)).numbers and c, "the run goes on")
    assert not set(more.numbers) & set(first.numbers) and more.event > first.event
    with pytest.raises(RunLocked, match="driven already"):
        client.resume("live")
    client.stop("live")
    until(lambda: client.run("live").status == "stopped", "the run stops")
    stopped = client.run("live")
    assert 12 < stopped.answered < 5000 and stopped.error is None
    assert any("stopping" in line for line in client.log("live").process)
    assert len(client.log("live", tail=7).lines) == 7

    wanted = stopped.answered + 3
    client.resume("live", wanted)
    until(lambda: client.run("live").status == "finished", "the run is finished")
    done = client.run("live")
    assert done.answered == done.evaluations == wanted and done.heldout_done
    assert [c.number for c in Results(service.runs / "live").scored][: len(first.numbers)] == first.numbers

    watcher.join(PATIENCE_SECONDS)
    assert [one.run for one in news] == ["live"] * 3 and news[-1].answered > news[0].answered >= 0

    best = client.candidate("live", "best")
    export = client.export("live", "best", "taken")
    with pytest.raises(RunLocked, match="already"):
        client.export("live", "best", "taken")
    until(lambda: client.export_state(export).state != "running", "the export ends")
    state = client.export_state(export)
    assert (state.state, state.progress, state.rescored, state.error) == ("done", 1.0, True, None), state
    assert Path(str(state.path)) == service.runs / "live" / "exports" / "taken"
    assert (Path(str(state.path)) / "model.safetensors").is_file()
    assert state.candidate == best.label and [e.id for e in client.exports()] == [export]


def test_a_search_that_cannot_start_is_a_line_that_says_why_until_it_is_forgotten(service: Served, world: Path) -> None:
    client = Service(service.url, TOKEN)
    yaml = world.read_text().replace("base: base", "base: nowhere") + f"\nroot: {world.parent}\n"
    client.launch(yaml, "hopeless")

    def line() -> Any:
        return next(r for r in client.runs() if r.name == "hopeless")

    until(lambda: line().status == "failed", "it fails")
    assert "nowhere" in line().error and any("nowhere" in said for said in client.log("hopeless").process)
    with pytest.raises(RunError, match="no run"):
        client.run("hopeless")
    client.cancel("hopeless")
    assert not any(r.name == "hopeless" for r in client.runs())
    until(lambda: client.launch(yaml, "hopeless"), "its name is free again")
    client.cancel("hopeless")


def test_a_job_is_drafted_checked_and_refused_in_sentences(service: Served, world: Path) -> None:
    client, home = Service(service.url, TOKEN), world.parent
    yaml = client.draft(
        str(home / "base"),
        {name: str(home / "experts" / name) for name in ("spam", "mood")},
        {name: str(home / "data" / f"{name}.jsonl") for name in ("spam", "mood")},
    )
    (home / "drafted.yaml").write_text(yaml)
    assert list(Job.load(home / "drafted.yaml").models.experts) == ["spam", "mood"]
    found = client.check(yaml)
    assert found.ok and found.problems == [] and found.plan is not None
    assert found.plan["parameters"] > 0 and found.plan["budget"] == {**found.plan["budget"], "evaluations": 200}  # type: ignore[dict-item]
    said = found.plan["said"]
    assert isinstance(said, dict) and {"models", "a worker", "the pool", "one merge", "all merges"} <= set(said)
    assert "at most 200 candidates: " in said["all merges"] and " by one worker" in said["all merges"]
    refused = client.check(yaml.replace("granularity: layer", "granularity: atom"))
    assert not refused.ok and "granularity" in refused.problems[0]
    missing = client.check(yaml.replace(str(home / "experts" / "spam"), "/nowhere"))
    assert not missing.ok and "/nowhere" in missing.problems[0]
    with pytest.raises(JobError, match="nowhere"):
        client.draft("/nowhere", {"a": "/nowhere"})
    for base, why in [("~nosuch/x", "no folder"), ("a" * 300, "too long"), ("nul\0", "NUL")]:
        with pytest.raises(JobError, match=why):
            client.draft(base, {"a": base}, {"a": base})
    with pytest.raises(JobError, match="name at least one expert"):
        client.draft(str(home / "base"), {})
    away = client.check(yaml.replace(str(home / "data" / "spam.jsonl"), "/nowhere.jsonl"))
    assert not away.ok and "'spam': /nowhere.jsonl: no such file" in away.problems[0]
    with pytest.raises(JobError, match="granularity"):
        client.launch(yaml.replace("granularity: layer", "granularity: atom"), "other")


@pytest.mark.parametrize("how", ["stop", "cancel"])
def test_what_has_just_begun_to_go_on_can_be_ended_at_once(tmp_path: Path, how: str) -> None:
    made = Made(tmp_path / "made")
    made.more(5)
    made.close()
    with serving(tmp_path) as service:
        client = Service(service.url, TOKEN)
        client.resume("made")
        getattr(client, how)("made")
        started = processes.found(tmp_path / ".service" / "launches" / "made")
        assert started is not None
        until(lambda: not started.alive, "it ends")
        line = client.run("made")
        assert (line.status, line.error, line.answered) == ("stopped", None, 5)
        with pytest.raises(RunLocked, match="nobody drives"):
            getattr(client, how)("made")


def test_what_was_killed_before_it_was_a_run_is_said_to_be(service: Served, world: Path) -> None:
    client = Service(service.url, TOKEN)
    client.launch(world.read_text() + f"\nroot: {world.parent}\n", "killed")
    started = processes.found(service.runs / ".service" / "launches" / "killed")
    assert started is not None
    os.kill(started.process.pid, signal.SIGKILL)
    until(lambda: not started.alive, "it ends")
    line = next(r for r in client.runs() if r.name == "killed")
    assert line.status == "failed" and str(line.error).startswith("its process was killed (SIGKILL, by 'kill -9'")
    assert started.error == line.error
    client.cancel("killed")


def test_how_a_process_ended_that_this_service_did_not_start_is_not_made_up(tmp_path: Path) -> None:
    known = processes.start(tmp_path / "one", {"run": "one", "folder": str(tmp_path / "none")}, ["--version"])
    until(lambda: not known.alive, "it ends")
    assert known.ending == "its process ended with exit code 0"
    other = replace(known, process=replace(known.process, began=known.process.began - 1))
    assert other.ending == "its process ended without a word, as one does that is killed"


def test_a_usage_error_is_told_without_its_box() -> None:
    code, _, said = processes.answer(["init", "--bse=x"], PATIENCE_SECONDS)
    assert code == 2 and "No such option" in said and "--bse" in said and not set(said) & set("│╰╭─")


@pytest.mark.parametrize(("code", "said"), [(0, None), (69, RunLocked), (2, JobError)])
def test_a_job_for_a_cluster_is_sent_as_it_is(
    service: Served, world: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: type[Exception] | None
) -> None:
    sent: list[Any] = []

    def answer(command: list[str], seconds: float) -> tuple[int, str, str]:
        sent.append((command[:-1], Path(command[-1]).read_text()))
        return code, "", "a reason"

    monkeypatch.setattr(processes, "answer", answer)
    with nullcontext() if said is None else pytest.raises(said, match="a reason"):
        found = Service(service.url, TOKEN).launch(world.read_text(), "there", "http://head:8265")
        assert (found.run, found.address) == ("there", "http://head:8265")
    assert sent == [(["launch", "--address=http://head:8265", "--name=there", "--"], world.read_text())]


def test_a_run_of_a_terminal_is_followed_as_it_goes(tmp_path: Path) -> None:
    run = Run.create(Job.load(worlds.classification(tmp_path, evaluations=14)), tmp_path / "runs")
    with serving(tmp_path / "runs") as service:
        client, seen = Service(service.url), []

        def on_answer(search: object, answer: object) -> None:
            seen.append((client.runs()[0].answered, len(client.candidates("pico").numbers), client.runs()[0].status))

        run.search(on_answer)
        assert [n for n, _, _ in seen] == [m for _, m, _ in seen]
        assert sorted({n for n, _, _ in seen}) == list(range(1, 15)) and {s for _, _, s in seen} == {"running"}
        assert client.runs()[0].status == "finished"
        assert client.candidates("pico").numbers == sorted(run.results().candidates)


def test_without_the_token_a_client_reads_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = Made(tmp_path / "runs" / "made")
    made.more(60)
    made.close()
    with serving(tmp_path / "runs") as service:
        client = Service(service.url)
        assert client.version().read_only and client.run("made").answered == 60
        with pytest.raises(RunError, match="token"):
            client.stop("made")
        file = token_file(int(service.url.rpartition(":")[2]))
        file.parent.mkdir(parents=True)
        file.write_text(TOKEN)
        own = Service(service.url)  # as 'mergeopt serve' leaves it for its user
        assert not own.version().read_only
        with pytest.raises(RunLocked, match="nobody drives"):
            own.stop("made")
        with pytest.raises(RunLocked, match="failed"):
            own.export("made", "49")
    with pytest.raises(RunError, match="no service answers"):
        client.runs()


def test_what_a_client_returns_is_what_was_sent(tmp_path: Path) -> None:
    made = Made(tmp_path / "made")
    made.more(60)
    made.heldout([0, 5])
    made.close()
    with serving(tmp_path) as service:
        client = Service(service.url)
        best = client.candidate("made", "best")
        assert best.number == Results(tmp_path / "made").pick("best").number
        assert client.compare("made", "best", "a1").a == best
        assert client.pick("made", {"t0.accuracy": 1.0}, ["t1.accuracy >= 0.1"]).meeting > 0
        assert client.coordinates("made", top=3).numbers == client.candidates("made").numbers
        assert len(client.coordinates("made", [best.point_names[0]]).columns) == 1
        assert client.curve("made").answered[-1] == 60
        assert {i.name for i in client.importance("made", "t1.accuracy")} <= set(best.point_names)
        assert json.loads(client.table("made", "json"))[0]["label"] == "a0"
        assert client.job("made").startswith("name: made") and client.job_schema()["type"] == "object"
        assert client.candidates("made", failed=True).numbers == [49]
        assert client.candidate("made", "49").failure == "timeout: it took too long"
        with pytest.raises(RunLocked, match="no scores to compare"):
            client.compare("made", "49", "0")
        with pytest.raises(JobError, match="2 to"):
            client.compare_runs(["made"])


def test_watchers_of_one_run_are_told_of_it_alone(tmp_path: Path) -> None:
    runs = {name: Made(tmp_path / name) for name in ("one", "two")}
    for made in runs.values():
        made.more(5)
    with serving(tmp_path) as service:
        client = Service(service.url)
        told = {name: client.events(name) for name in (*runs, None)}
        heard: dict[Any, list[Any]] = {name: [next(events)] for name, events in told.items()}
        runs["two"].more(3)
        for name in ("two", None):
            one = next(e for e in told[name] if e.answered == 8)
            assert (one.run, one.status) == ("two", "stopped")
        assert heard["one"][0].run == "one" and heard["two"][0].run == "two"
        for events in told.values():
            events.close()  # type: ignore[attr-defined]
    for made in runs.values():
        made.close()


def test_a_line_that_was_told_late_does_not_stand_for_what_came_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path / "made")
    made.more(10)
    reader, tell = runs.Reader(made.folder), runs.summary
    held, go = threading.Event(), threading.Event()

    def slow(found: Results) -> Any:
        if not held.is_set():
            held.set()
            assert go.wait(PATIENCE_SECONDS)
        return tell(found)

    monkeypatch.setattr(runs, "summary", slow)
    monkeypatch.setattr(runs, "SETTLED_SECONDS", 0.0)
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(reader.line)
        assert held.wait(PATIENCE_SECONDS)
        made.more(5)
        assert reader.line().answered == 15
        go.set()
        assert early.result().answered == 10
    assert reader.line().answered == 15
    made.close()


def test_one_odd_run_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("fine", "odd"):
        made = Made(tmp_path / name)
        made.more(5)
        made.close()
    tell = runs.summary

    def raises(found: Results) -> Any:
        if found.folder.name == "odd":
            raise ZeroDivisionError("by a candidate")
        return tell(found)

    monkeypatch.setattr(runs, "summary", raises)
    nobody: Any = SimpleNamespace(of=lambda name: None, started=list)
    board = Board(runs.Shelf(tmp_path), nobody)
    lines = {line.name: line for line in board.lines()}
    assert lines["fine"].answered == 5 and "by a candidate" in str(lines["odd"].error)
    watch = Watch(board)
    assert [one.run for one in watch._look(None)] == ["fine"] and watch._look(None) == []
    assert "run odd cannot be looked at" in caplog.text


def test_what_matters_is_of_the_run_that_has_the_name_now(tmp_path: Path) -> None:
    names = []
    for groups in (5, 3):
        made = Made(tmp_path / "made", groups=groups)
        made.more(60)
        made.close()
        results = Results(tmp_path / "made")
        names.append({i.name for i in importance(results)} <= set(results.domain.names))
        shutil.rmtree(tmp_path / "made")
    assert names == [True, True]


def test_a_fronts_growth_is_measured_bit_by_bit_while_a_run_goes_on_and_whole_once_nobody_drives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path / "made", objectives=3)
    made.more(40)
    made.close()
    reader = runs.Reader(made.folder)
    monkeypatch.setattr(runs, "BUSY", 0.0)
    monkeypatch.setattr(runs, "SLICE_SECONDS", 0.0)

    def asked() -> int:
        reader.sure(pool, PATIENCE_SECONDS)
        pool.submit(int).result()  # what it had to do is done
        return len(reader.now().growth.places)

    with ThreadPoolExecutor(1) as pool:
        first, second, third = asked(), asked(), asked()
        assert first < second < third < 40
        monkeypatch.setattr(runs, "RECENT_SECONDS", 0.0)
        reader.rounds()
        assert asked() >= 40


def test_what_is_put_off_while_a_run_goes_on_rings_once_and_is_counted_when_nobody_drives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path / "made", objectives=3)
    made.more(40)
    made.close()
    reader = runs.Reader(made.folder)
    monkeypatch.setattr(runs, "SURE_DRIVEN", 3)
    monkeypatch.setattr(runs, "BUSY", 0.0)

    def asked() -> tuple[int, int]:
        sure = [reader.sure(pool, PATIENCE_SECONDS) for _ in range(2)][-1]
        pool.submit(int).result()  # what it had to do is done
        return len(sure), reader.rounds()

    with ThreadPoolExecutor(1) as pool:
        assert len(reader.now().front.nondominated) > 3
        first = asked()
        assert first == (0, 1) and [asked() for _ in range(5)] == [first] * 5
        monkeypatch.setattr(runs, "RECENT_SECONDS", 0.0)
        assert reader.rounds() == 2  # who watches asks again
        counted = asked()
        assert counted[0] > 3 and [asked() for _ in range(5)] == [(counted[0], 3)] * 5
