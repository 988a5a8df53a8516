"""A run's folder that is damaged, or somebody else's: read without harm, and refused in one sentence."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from evaluators.evaluator import Measure
from optimizer.answer import Answer, Failure
from optimizer.doctor import run_folder
from optimizer.doctor.finding import Finding, print_findings
from optimizer.driver import Items, Question
from optimizer.errors import RunError
from optimizer.output import plain, show
from optimizer.record import spool
from optimizer.record.attempt import Attempt
from optimizer.record.ledger import Ledger
from optimizer.record.owner import owner, owning
from optimizer.record.results import Results
from optimizer.record.spool import Spool
from optimizer.remote import control, following

ORDER = "\x1b]0;pwn\x07\x1b[2J"  # to a terminal: a new title, and an empty screen
META = {
    "name": "run",
    "evaluations": 4,
    "objectives": [["task.accuracy", "max"]],
    "metrics": {"task.accuracy": "max"},
    "space": {},
    "job": {},
    "steps": 0,
    "references": [],
    "done": False,
    "parent": None,
}


def made(folder: Path, **meta: object) -> Path:
    folder.mkdir(exist_ok=True)
    with closing(Ledger.create(folder / "ledger.db", {**META, **meta})) as ledger:
        questions = [Question(n, np.array([0.1 * n]), "scores", Items("calibration"), "search") for n in range(3)]
        ledger.asked(3, questions, ["a" * 64, "b" * 64, "c" * 64])
        ledger.answered([Answer(n, "calibration", {"task.accuracy": Measure(0.5, 0.1, 9)}) for n in range(2)])
        ledger.answered([Answer(2, "calibration", failure=Failure("error", "because"))])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("runs") / "run")


def looked_at(folder: Path) -> None:
    """All that a user may look at."""
    results = Results(folder)
    plain.status(results)
    show.print_status(plain.status(results))
    show.print_front(results)
    plain.front(results)
    for line in following.answers(folder, follow=False):
        print(line)


def test_a_folder_of_ours_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    looked_at(folder)
    assert "error: because" in capsys.readouterr().out
    assert Results(folder).space == {}
    with pytest.raises(RunError, match="none that a run has"):
        Results(folder).recipe(Results(folder).pick("best"))


@pytest.mark.parametrize(
    "damage",
    [
        *(
            f"UPDATE meta SET value = '{value}' WHERE key = '{key}'"
            for key, value in (
                *(("name", "5"), ("name", "no JSON"), ("name", "[" * 100_000), ("objectives", "5")),
                *(("objectives", '[["task.accuracy", "most"]]'), ("objectives", '[["x", "max"]]'), ("metrics", "[1]")),
                *(("references", "7"), ("evaluations", '"a"'), ("evaluations", "NaN"), ("space", "5"), ("done", "7")),
                *(("steps", "null"), ("parent", "[]"), ("version", "[]"), ("version", '"x"'), ("version", "{")),
            )
        ),
        "DELETE FROM meta WHERE key = 'objectives'",
        "INSERT INTO meta VALUES ('spent', '{\"hours\": \"x\"}')",
        "INSERT INTO meta VALUES ('reached', '[1]')",
        "INSERT INTO meta VALUES ('finalists', '{\"8\": 5}')",
        "UPDATE measures SET value = 'x'",
        "UPDATE measures SET metric = 7",
        "UPDATE answers SET seconds = 'x'",
        "UPDATE answers SET at = 'x'",
        "UPDATE answers SET event = 'x' || number",
        "UPDATE questions SET stage = x'00'",
        "UPDATE questions SET point = 'abc'",
        "DELETE FROM questions",
        "DROP TABLE measures",
    ],
)
def test_a_ledger_that_is_none_of_ours_is_refused(damage: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    with closing(sqlite3.connect(folder / "ledger.db")) as raw, raw:
        raw.execute(damage)
    with pytest.raises(RunError, match=r"restore|update mergeopt") as refused:
        looked_at(folder)
    assert len(str(refused.value)) < 1000
    assert any(f.state == "wrong" for f in run_folder.examine(folder))


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "{}", "5", "", "{", "[" * 4000, "[" * 200_000, '{"pid": "x", "host": "HOST", "since": "now"}'),
        *(f'{{"pid": {pid}, "host": "HOST", "since": "now"}}' for pid in ("null", 1e30, "Infinity", True, 1, 0, -1)),
        '{"pid": 4, "host": "HOST"}',
        '{"pid": 4, "host": 5, "since": "now"}',
        json.dumps({"pid": 4, "host": "HOST", "since": ORDER}),
    ],
)
def test_a_note_of_a_driver_that_none_wrote_is_none(text: str, folder: Path) -> None:
    note = folder / "driver.json"
    note.write_text(text.replace("HOST", socket.gethostname()))
    try:
        assert Results(folder).driven_by is None
        with FileLock(folder / "driver.lock"), pytest.raises(RunError, match="its driver is just starting or ending"):
            control.drain(folder)
    finally:
        note.unlink()


STATE = ("driver.json", "driver.lock", "attempt.json", "spool.jsonl")
KINDS = ("link", "pipe", "zeros", "huge", "folder")


def put(place: Path, what: str, victim: Path) -> None:
    """Something in the place of a file of a run that is none of a run."""
    if what == "pipe":
        os.mkfifo(place)
    elif what == "folder":
        place.mkdir()
    elif what == "huge":
        with place.open("wb") as file:
            file.truncate(1 << 40)
    else:
        place.symlink_to("/dev/zero" if what == "zeros" else victim)


@pytest.mark.parametrize("what", KINDS)
def test_what_is_no_plain_file_holds_up_no_reader_and_leads_nowhere(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path / "run")
    (victim := tmp_path / "victim").write_text("precious")
    for name in (*STATE, "splits.json"):
        put(folder / name, what, victim)
    monkeypatch.setattr(spool, "MOST_BYTES", 1 << 20)
    looked_at(folder)
    found = {f.about: f for f in [run_folder._driver(folder, Results(folder)), *run_folder._spooled(folder)]}
    assert found["spool"].state == "wrong" and "move" in found["spool"].said
    (splits,) = [f for f in run_folder._left_over(folder) if f.about == "splits"]
    assert splits.state == "wrong" and (what != "huge" or "has more than" in splits.said)
    with pytest.raises(RunError, match="nobody drives this run"):
        control.drain(folder)
    for write in (lambda: Spool(folder / "spool.jsonl").put([Answer(0, "calibration")]), lambda: owned(folder)):
        with suppress(RunError, OSError):
            write()
    with closing(Ledger.open(folder / "ledger.db")) as ledger:
        attempt = Attempt(folder / "attempt.json")
        if what != "folder":
            attempt.after_kill(ledger, [])
            assert not (folder / "attempt.json").exists()
            put(folder / "attempt.json", what, victim)
            with attempt.at(Question(0, np.array([0.1]))):
                assert json.loads((folder / "attempt.json").read_text()) == [0, "calibration"]
    assert victim.read_text() == "precious" and {p.name for p in tmp_path.iterdir()} == {"run", "victim"}


def owned(folder: Path) -> None:
    with owning(folder):
        pass


def test_a_driver_replaces_what_its_record_leads_to_by_a_file(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    (victim := tmp_path / "victim").write_text("precious")
    (folder / "driver.json").symlink_to(victim)
    with owning(folder):
        assert not (folder / "driver.json").is_symlink()
        found = owner(folder)
        assert found is not None and found.alive
    assert victim.read_text() == "precious"


def test_a_spool_of_nothing_but_noise_is_refused_and_logged_briefly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "spool.jsonl").write_bytes(b"\n" * 10_000)
    with pytest.raises(RunError, match="over 100 lines are no answers; move it away"):
        list(Spool(tmp_path / "spool.jsonl").read())
    assert len(caplog.records) == 101
    (tmp_path / "kept").hardlink_to(tmp_path / "spool.jsonl")  # a copy of a backup, or another's file
    with pytest.raises(RunError, match="is a link"):
        Spool(tmp_path / "spool.jsonl").put([Answer(0, "calibration")])


@pytest.fixture
def asleep() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_process_that_does_not_drive_the_run_gets_no_signal(folder: Path, asleep: subprocess.Popen[bytes]) -> None:
    note = folder / "driver.json"
    note.write_text(json.dumps({"pid": asleep.pid, "host": socket.gethostname(), "since": "now"}))
    try:
        for verb in (control.drain, control.cancel):
            with (
                FileLock(folder / "driver.lock"),
                pytest.raises(RunError, match=f"names process {asleep.pid}, which does not drive it"),
            ):
                verb(folder)
        assert asleep.poll() is None
    finally:
        note.unlink()


def test_a_process_of_another_user_gets_no_signal(
    folder: Path, asleep: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    note = folder / "driver.json"
    note.write_text(json.dumps({"pid": asleep.pid, "host": socket.gethostname(), "since": "now"}))
    try:
        with FileLock(folder / "driver.lock"), pytest.raises(RunError, match="is another user's"):
            control.drain(folder)
        assert asleep.poll() is None
    finally:
        note.unlink()


def test_no_name_is_an_order_to_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"task{ORDER}.accuracy"
    folder = made(
        tmp_path / "run", name=f"run{ORDER}", reached=ORDER, objectives=[[name, "max"]], metrics={name: "max"}
    )
    with closing(sqlite3.connect(folder / "ledger.db")) as raw, raw:
        raw.execute("UPDATE measures SET metric = ?", (name,))
        raw.execute("UPDATE questions SET stage = ? WHERE number = 1", (f"anchor: {ORDER}",))
    results = Results(folder)
    show.print_status(plain.status(results))
    show.print_front(results)
    print_findings([Finding("ledger", "wrong", ORDER, ORDER)])
    said = capsys.readouterr().out
    assert "run�]0;pwn��[2J" in said and "wrong" in said
    assert "\x1b" not in said and "\x07" not in said
