"""What must be survived: kill -9 of the driver at any moment, of a worker, and a disk that runs full."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import worlds

from optimizer import Job, Run
from optimizer.errors import DiskFull
from optimizer.searching.search import Search

COMMAND = [sys.executable, "-c", "from optimizer.commands.cli import main; main()"]
PATIENCE = 400  # seconds for a command: a busy machine takes minutes to start one, and that is not what is tested
pytestmark = pytest.mark.timeout(4 * PATIENCE)


STARTED: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def nobody_left() -> Iterator[None]:
    yield
    for process in STARTED:
        process.kill()
        process.wait()
    STARTED.clear()


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    STARTED.append(process)
    return process


def answers(folder: Path, split: str = "%") -> int:
    try:
        ledger = sqlite3.connect(f"file:{folder}/ledger.db?mode=ro", uri=True)
        return int(ledger.execute("SELECT count(*) FROM answers WHERE split LIKE ?", (split,)).fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def kill_at(process: subprocess.Popen[bytes], folder: Path, count: int, split: str = "%") -> None:
    """SIGKILL once so many answers (on a split) are on the disk."""
    end = time.monotonic() + PATIENCE
    while answers(folder, split) < count:
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < end
        time.sleep(0.005)
    process.kill()
    process.wait()


def scores(folder: Path) -> dict[int, object]:
    return {n: (c.recipe, dict(c.measures), dict(c.heldout)) for n, c in Run(folder).results().candidates.items()}


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["cma", "tpe"])
def test_a_driver_killed_twice_ends_where_an_undisturbed_one_does(tmp_path: Path, driver: str) -> None:
    job = worlds.classification(tmp_path, evaluations=30, driver=driver)
    whole = Run.create(Job.load(job), tmp_path / "whole")
    whole.search()
    folder = tmp_path / "runs" / "pico"
    kill_at(start("run", job, "--runs", tmp_path / "runs"), folder, 7)
    kill_at(start("resume", folder), folder, 19)
    assert start("resume", folder).wait(timeout=PATIENCE) == 0
    assert scores(folder) == scores(whole.folder)


def gradients(folder: Path) -> list[tuple[object, ...]]:
    ledger = sqlite3.connect(f"file:{folder}/ledger.db?mode=ro", uri=True)
    return ledger.execute(
        "SELECT number, point, batch, draw, stage, data FROM questions JOIN gradients USING (number, split)"
        " WHERE split = 'train' ORDER BY number"
    ).fetchall()


@pytest.mark.slow
def test_a_gradient_search_killed_at_step_37_walks_on_to_the_bit(tmp_path: Path) -> None:
    driver = "{name: adamerging, steps: 60, every: 20, batch: 8, lr: 0.02}"
    job = worlds.classification(tmp_path, driver="adamerging")
    job.write_text(job.read_text().replace("driver: {name: adamerging}", f"driver: {driver}"))
    whole = Run.create(Job.load(job), tmp_path / "whole")
    whole.search()
    folder = tmp_path / "runs" / "pico"
    kill_at(start("run", job, "--runs", tmp_path / "runs"), folder, 37, "train")
    assert 37 <= len(gradients(folder)) < 60
    assert start("resume", folder).wait(timeout=PATIENCE) == 0
    assert gradients(folder) == gradients(whole.folder) and len(gradients(folder)) == 60
    assert scores(folder) == scores(whole.folder)


def is_worker(process: psutil.Process) -> bool:
    try:
        return "_Remote" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # it ended as we looked, or ended and nobody has fetched its exit status yet
        return False


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [p for p in psutil.Process(process.pid).children(recursive=True) if is_worker(p)]


def await_end(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that still run after so long. In a container without an init an ended orphan stays a zombie for ever."""
    end = time.monotonic() + seconds
    while (alive := [p for p in processes if is_worker(p)]) and time.monotonic() < end:
        time.sleep(0.1)
    return alive


@pytest.mark.slow
def test_on_ray_a_killed_worker_is_replaced_and_a_killed_driver_leaves_nobody(tmp_path: Path) -> None:
    job = worlds.classification(tmp_path, evaluations=400, executor="ray")
    folder = tmp_path / "runs" / "pico"
    process = start("run", job, "--runs", tmp_path / "runs")
    end = time.monotonic() + PATIENCE
    while answers(folder) < 5:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    os.kill(workers_of(process)[0].pid, signal.SIGKILL)
    kill_at_count = answers(folder) + 20
    while answers(folder) < kill_at_count - 5:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    workers = workers_of(process)
    kill_at(process, folder, kill_at_count)
    assert workers and not await_end(workers, 60)
    before = scores(folder)
    assert start("resume", folder, "--evaluations", str(len(before) + 5)).wait(timeout=PATIENCE) == 0
    after = scores(folder)
    assert len(after) >= len(before) + 5
    # what was answered before the kill is as it was; only held-out scores may have come
    assert all(after[n][:2] == before[n][:2] for n in before)  # type: ignore[index]


@pytest.fixture(params=[60])
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("needs a file system of its own, which only root can make")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}m", "tmpfs", folder], capture_output=True
    )
    if made.returncode:
        pytest.skip("this machine lets nobody mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("small_disk", [8], indirect=True)
def test_a_disk_that_runs_full_stops_the_search_and_loses_nothing(tmp_path: Path, small_disk: Path) -> None:
    run = Run.create(Job.load(worlds.classification(tmp_path, evaluations=60)), small_disk)
    filler = small_disk / "filler"

    def fill(search: Search, answer: object) -> None:
        if search.answered == 5:
            handle = os.open(filler, os.O_CREAT | os.O_WRONLY)
            with pytest.raises(OSError, match="No space"):
                while True:
                    os.write(handle, bytes(4096))
            os.close(handle)

    with pytest.raises(DiskFull, match="nothing answered is lost") as caught:
        run.search(fill)
    assert caught.value.exit_code == 74
    kept = answers(run.folder)
    assert kept >= 5
    filler.unlink()
    run.search()
    assert len(run.results().candidates) == 60


@pytest.mark.parametrize("small_disk", [5], indirect=True)
def test_a_run_that_would_not_fit_is_refused_before_it_starts_and_before_it_goes_on(
    tmp_path: Path, small_disk: Path
) -> None:
    job = Job.load(worlds.classification(tmp_path, evaluations=60))
    with pytest.raises(DiskFull, match=r"the run may need 4\.\d MB, and 5\.\d MB are free there; free 0\.\d MB more"):
        Run.create(job, small_disk)
    assert list(small_disk.iterdir()) == []
    run = Run.create(Job.load(worlds.classification(tmp_path, evaluations=6)), small_disk)
    with (small_disk / "filler").open("wb") as file:
        file.write(bytes(10**6))
    with pytest.raises(DiskFull, match="the run may need"):
        run.search()
    (small_disk / "filler").unlink()
    run.search()


def test_an_export_without_room_is_refused_before_it_starts(tmp_path: Path, small_disk: Path) -> None:
    run = Run.create(Job.load(worlds.classification(tmp_path, evaluations=3)), tmp_path / "runs")
    run.search()
    with (small_disk / "filler").open("wb") as file:
        file.truncate(0)
        file.write(b"\0" * (60 * 2**20 - 20_000))
    with pytest.raises(DiskFull, match="the export needs"):
        run.export("best", small_disk / "out")
    assert not (small_disk / "out").exists()
