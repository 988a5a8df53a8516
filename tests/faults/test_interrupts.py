"""Ctrl-C on a terminal, once and twice, and SIGTERM: drained or at once, with exit code 130 and nothing lost."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import worlds
from program import mergeopt

from optimizer import Job, Run
from optimizer.commands import cli
from optimizer.executors.executor import Inline
from optimizer.record.ledger import Ledger

FUNCTION = """
import time
from pathlib import Path

def f(model, rows, tokenizer):
    log = Path(__file__).with_name("log")
    with log.open("a") as file:
        file.write("x")
    count = log.stat().st_size
    time.sleep(60 if count > {quick} else 0.1)
    return {{"m": float(count)}}
"""


def slow_after(folder: Path, quick: int, executor: str = "{kind: inline}") -> Path:
    """A run whose first `quick` candidates take 0.1 s, and the others a minute; its folder."""
    worlds.classification(folder)
    (folder / "mine.py").write_text(FUNCTION.format(quick=quick))
    (folder / "job.yaml").write_text(f"""
name: slow
models: {{base: base, experts: {{spam: experts/spam}}, heads: ["classifier.*"]}}
evaluators: [{{kind: function, name: f, function: "mine.py:f", metrics: {{m: max}}, data: data/spam.jsonl}}]
objectives: [f.m]
driver: {{name: sobol}}
executor: {executor}
""")
    return Run.create(Job.load(folder / "job.yaml"), folder / "runs", allow_code=True).folder


class Terminal:
    """`mergeopt resume` in a child of its own session, on a terminal whose other end this is."""

    def __init__(self, folder: Path) -> None:
        self.said = ""
        self.child, self.end = pty.fork()
        if self.child == 0:
            sys.argv = ["mergeopt", "resume", str(folder), "--allow-code"]
            sys.stdout, sys.stderr = (open(fd, "w", buffering=1) for fd in (1, 2))  # noqa: PTH123, SIM115
            code = 99
            try:
                cli.main()
            except SystemExit as ended:
                code = int(ended.code or 0)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def until(self, well: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not well():
            assert time.monotonic() < end, self.said
            self._read()

    def ended(self, seconds: float) -> int:
        """The exit code; it must come within so many seconds."""
        end = time.monotonic() + seconds
        while True:
            self._read()
            done, status = os.waitpid(self.child, os.WNOHANG)
            if done:
                os.close(self.end)
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                os.kill(self.child, signal.SIGKILL)
                os.waitpid(self.child, 0)
                raise AssertionError(f"still there after {seconds} s: {self.said}")

    def _read(self) -> None:
        if select.select([self.end], [], [], 0.05)[0]:
            try:
                self.said += os.read(self.end, 65536).decode(errors="replace")
            except OSError:  # the other end is closed: the child is ending
                time.sleep(0.05)


def asked(folder: Path) -> int:
    log = folder.parent.parent / "log"
    return log.stat().st_size if log.exists() else 0


def pending(folder: Path) -> int:
    return len(Ledger.open(folder / "ledger.db", readonly=True).pending())


@pytest.mark.parametrize("how", ["ctrl-c", "sigterm"])
def test_once_it_asks_nothing_more_and_drains_and_nobody_else_drives_it_meanwhile(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = slow_after(tmp_path, quick=1000)
    terminal = Terminal(folder)
    terminal.until(lambda: asked(folder) >= 3)
    capsys.readouterr()
    assert mergeopt("resume", folder, "--allow-code") == 73
    assert f"is being driven by process {terminal.child} on {socket.gethostname()} since 20" in capsys.readouterr().err
    assert mergeopt("status", folder) == 0 and f"process {terminal.child}" in capsys.readouterr().out
    os.write(terminal.end, b"\x03") if how == "ctrl-c" else os.kill(terminal.child, signal.SIGTERM)
    assert terminal.ended(30) == 130
    assert "stopping: waiting for what is in flight (again: stop at once)" in terminal.said
    assert "stopped at" in terminal.said and "goes on" in terminal.said
    assert pending(folder) <= 1, "what was just asked, and not begun"
    assert not (folder / "driver.json").exists()


def test_before_a_worker_is_ready_there_is_nothing_to_wait_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, begun = slow_after(tmp_path, quick=1000), tmp_path / "begun"

    def start(self: Inline) -> None:
        begun.touch()
        time.sleep(600)  # a large model, or a cluster that makes room

    monkeypatch.setattr(Inline, "start", start)
    terminal = Terminal(folder)
    terminal.until(begun.exists)
    os.write(terminal.end, b"\x03")
    assert terminal.ended(5) == 130
    assert "stopped at once" in terminal.said and not (folder / "driver.json").exists()


def test_twice_it_stops_within_five_seconds_and_what_was_answered_is_kept(tmp_path: Path) -> None:
    folder = slow_after(tmp_path, quick=3)
    terminal = Terminal(folder)
    terminal.until(lambda: asked(folder) == 4)  # a candidate that takes a minute is in flight
    os.write(terminal.end, b"\x03")
    terminal.until(lambda: "again: stop at once" in terminal.said)
    os.write(terminal.end, b"\x03")
    assert terminal.ended(5) == 130
    assert "stopped at once; what was answered is kept, resume goes on" in terminal.said
    ledger = Ledger.open(folder / "ledger.db", readonly=True)
    assert len(ledger.answers()) == 3 and len(ledger.pending()) == 1 and not ledger.tries()
    assert not (folder / "driver.json").exists(), "an end in order is held against no candidate"


def test_a_candidate_of_this_process_that_outlasts_the_drain_is_left_and_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.searching.search.DRAIN_SECONDS", 1.0)
    folder = slow_after(tmp_path, quick=3)
    terminal = Terminal(folder)
    terminal.until(lambda: asked(folder) == 4)  # a candidate that takes a minute is in flight
    os.kill(terminal.child, signal.SIGTERM)
    assert terminal.ended(20) == 130
    assert "stopped at 3 of" in terminal.said and "Traceback" not in terminal.said
    ledger = Ledger.open(folder / "ledger.db", readonly=True)
    assert len(ledger.answers()) == 3 and len(ledger.pending()) == 1 and not ledger.tries()
    assert not (folder / "attempt.json").exists() and (folder / "report.html").exists()


@pytest.mark.slow
def test_on_ray_ctrl_c_reaches_the_driver_alone_and_twice_leaves_no_worker(tmp_path: Path) -> None:
    """The terminal sends SIGINT to its whole foreground group; workers must not die of the first."""
    folder = slow_after(tmp_path, 4, "{kind: ray, workers: 2, cpus: 0.5}")
    end, other = pty.openpty()
    code = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    code += "from optimizer.commands.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "resume", str(folder), "--allow-code"],
        stdin=other, stdout=other, stderr=other, start_new_session=True,
    )  # fmt: skip
    os.close(other)
    try:
        terminal = Terminal.__new__(Terminal)
        terminal.said, terminal.end, terminal.child = "", end, process.pid
        terminal.until(lambda: asked(folder) >= 6, 240)  # both workers have one that takes a minute
        everyone = psutil.Process(process.pid).children(recursive=True)
        workers = [p for p in everyone if "_Remote" in " ".join(p.cmdline())]
        os.write(end, b"\x03")
        terminal.until(lambda: "again: stop at once" in terminal.said)
        time.sleep(1)
        assert len(workers) == 2 and all(p.is_running() for p in workers), "the drain needs them"
        os.write(end, b"\x03")
        assert terminal.ended(30) == 130
        psutil.wait_procs(workers, timeout=10)
        assert not [p for p in workers if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        assert pending(folder) == 2
    finally:
        process.kill()


def test_sigterm_ends_a_run_in_order_while_it_reads_models_and_while_it_writes_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job, runs = worlds.classification(tmp_path, evaluations=4), tmp_path / "runs"

    def ended(*given: object) -> None:
        if all(name == "report.html" for name in (Path(str(g)).name for g in given[1:])):
            signal.raise_signal(signal.SIGTERM)
            time.sleep(10)
        os.replace(*given)  # type: ignore[arg-type]  # noqa: PTH105

    for place, left in (
        ("optimizer.jobs.founding.Job.yaml", []),  # in a folder that is half made
        ("optimizer.record.files.Path.replace", ["pico"]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, ended)
            assert mergeopt("run", job, "--runs", runs) == 130
        assert "stopped at once; what was answered is kept" in capsys.readouterr().err
        assert [p.name for p in runs.iterdir()] == left, place
        names = {p.name for run in runs.iterdir() for p in run.iterdir()}
        assert not {n for n in names if "report" in n} and "driver.json" not in names
