"""Is it seen who drives a run, and does looking hinder nobody?"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from optimizer.errors import RunError, RunLocked
from optimizer.record import owner as owners
from optimizer.record.owner import owner, owning


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As much of a run as is asked for here."""
    (made := tmp_path / "run").mkdir()
    (made / "ledger.db").touch()
    return made


def record(folder: Path, **said: object) -> None:
    own = {"host": socket.gethostname(), "pid": os.getpid(), "since": "yesterday", "began": 1.0}
    (folder / "driver.json").write_text(json.dumps({**own, **said}))


def test_looking_takes_nothing_and_leaves_nothing(folder: Path) -> None:
    assert owner(folder) is None and [p.name for p in folder.iterdir()] == ["ledger.db"]
    record(folder)
    assert owner(folder) is None, "the process has this number, and began another time"
    assert sorted(p.name for p in folder.iterdir()) == ["driver.json", "ledger.db"]
    with owning(folder):
        found = owner(folder)
        assert found is not None and found.alive and found.pid == os.getpid()
        (folder / "driver.lock").unlink()
        assert owner(folder) is not None, "the record is enough, and no lock is asked"
    assert owner(folder) is None and not (folder / "driver.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"host": 1, "pid": "x", "since": ""}'])
def test_a_record_that_is_being_written_is_as_the_lock_says(folder: Path, text: str) -> None:
    (folder / "driver.json").write_text(text)
    assert owner(folder) is None
    with owning(folder):
        (folder / "driver.json").write_text(text)
        found = owner(folder)
        assert found is not None and found.pid == 0


def test_who_looks_all_the_time_ends_nobodys_start(folder: Path) -> None:
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            record(folder, host="elsewhere")  # such that only the lock can tell
            owner(folder)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(100):
            with owning(folder):
                pass
    finally:
        over.set()
        for looker in lookers:
            looker.join()


def test_the_second_driver_is_told_of_the_first_and_never_of_one_that_was_killed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "PATIENCE_SECONDS", 0.05)
    with owning(folder):
        with pytest.raises(RunLocked, match=rf"driven by process {os.getpid()} on \S+ since 20"), owning(folder):
            pass
        record(folder, pid=4711)
        with pytest.raises(RunLocked, match="by a process that is just starting or ending"), owning(folder):
            pass
        record(folder, host="elsewhere")
        with pytest.raises(RunLocked, match=rf"by process {os.getpid()} on elsewhere since yest"), owning(folder):
            pass


def test_a_driver_that_was_killed_drives_no_more_though_nobody_has_buried_it(folder: Path) -> None:
    code = "import sys, time; from pathlib import Path; from optimizer.record.owner import owning\n"
    code += "with owning(Path(sys.argv[1])): print('driving', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "driving\n"
        found = owner(folder)
        assert found is not None and found.pid == process.pid
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table
        assert owner(folder) is None


def test_a_run_that_is_removed_while_its_lock_is_waited_for_is_no_run(folder: Path) -> None:
    def remove() -> None:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()

    with owning(folder):
        timer = threading.Timer(0.1, remove)
        timer.start()
        with pytest.raises(RunError, match=r"no run at .* any more"), owning(folder):
            pass
        timer.join()
    assert not folder.exists()
    with pytest.raises(RunError, match="no run at"), owning(folder):
        pass
    assert not folder.exists()
