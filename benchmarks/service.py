"""What does the service cost? Its answers for a large run, and the rate of a driver that many watch.

A run of 10,000 candidates x 200 coefficients x 5 objectives is read once, then as it grows. For each request: seconds
and bytes, plain and compressed. Then a ledger that grows by simulated candidates, in turns without watchers and with
50: the ratio of its rates, and the service's own share of a core, which a busy machine changes less. Bounds: at most
3 MB compressed for what a page's first paint asks for, and with 50 watchers 0.98 of the rate without.

    python benchmarks/service.py [--candidates 10000] [--watchers 50] [--rounds 3] [--seconds 10]
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import requests

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from ledgers import Made  # noqa: E402

from optimizer.record.results import Results  # noqa: E402

FIRST_PAINT = ("runs", "runs/large", "runs/large/candidates", "runs/large/curve")
ASKED = (
    *FIRST_PAINT,
    "runs/large/candidates?front=1",
    "runs/large/candidates?since={event}",
    "runs/large/coordinates?names={names}",
    "runs/large/importance",
    "runs/large/coordinates?top=12",
    "runs/large/candidates/best",
    "runs/large/compare?a=best&b=0",
    "runs/large/pick?weights=t0.accuracy:0.7,t1.accuracy:0.3",
    "runs/large/log",
    "runs/large/table.csv",
    "runs/large/table.parquet",
)
BATCH = 20  # candidates of one ask


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--candidates", type=int, default=10_000)
    arguments.add_argument("--watchers", type=int, default=50)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=10.0)
    arguments.add_argument("--watch", metavar="URL", help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.watch:
        watch(chosen.watch, chosen.watchers)
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        large(runs, chosen.candidates)
        with service(runs) as url:
            answers(url)
        rates(runs, chosen.watchers, chosen.rounds, chosen.seconds)


def large(runs: Path, count: int) -> None:
    """Make the large run, and say how long it takes to read, whole and what is new of it."""
    made = Made(runs / "large", groups=50, experts=4, objectives=5, evaluations=count)
    made.more(count, batch=500)
    begun = time.perf_counter()
    results = Results(made.folder)
    whole = time.perf_counter() - begun
    made.heldout(list(results.front.nondominated)[:200])
    begun = time.perf_counter()
    results.refresh()
    new = time.perf_counter() - begun
    print(f"{count} candidates, {len(results.front.nondominated)} on the front")
    print(f"read whole {whole:.2f} s; what is new of it {new * 1e3:.0f} ms, 1/{whole / new:.0f}")
    made.close()


@contextmanager
def service(runs: Path) -> Iterator[str]:
    """A service in a process of its own; its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "optimizer", "serve", "--runs", str(runs), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_STATE_HOME": str(runs / ".state")},
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1].partition("/#")[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
        process.stdout.close()


def answers(url: str) -> None:
    """Seconds and bytes of each request: the first time, and again."""
    with requests.Session() as session:
        axes = [a["name"] for a in session.get(f"{url}/api/runs/large").json()["axes"]]
        event = session.get(f"{url}/api/runs").json()["runs"][0]["event"]
        print(f"{'request':<52}{'first s':>9}{'again s':>9}{'kB':>9}{'kB gzip':>9}")
        total = 0.0
        for path in (p.format(event=event - 20, names=",".join(axes[:12])) for p in ASKED):
            took = []
            for _ in range(2):
                begun = time.perf_counter()
                found = session.get(f"{url}/api/{path}")
                took.append(time.perf_counter() - begun)
                assert found.ok, found.text
            size, packed = len(found.content) / 1e3, len(gzip.compress(found.content, 4)) / 1e3
            total += packed if path in FIRST_PAINT else 0.0
            print(f"{path[:50]:<52}{took[0]:>9.3f}{took[1]:>9.3f}{size:>9.0f}{packed:>9.0f}")
        plotly = session.get(f"{url}/plotly.js", headers={"Accept-Encoding": "gzip"}, stream=True)
        total += (script := len(plotly.raw.read()) / 1e3)
        print(
            f"first paint: {total / 1e3:.2f} MB compressed, {script / 1e3:.2f} of it Plotly: {total / 3e3:.2f} of 3 MB"
        )


def rates(runs: Path, watchers: int, rounds: int, seconds: float) -> None:
    """Rates of a driver, in turns without watchers and with them, and the ratio of the medians."""
    found: dict[int, list[float]] = {0: [], watchers: []}
    cores: dict[int, list[float]] = {0: [], watchers: []}
    for turn in range(rounds):
        for many in (0, watchers):
            with service(runs) as url, watching(url, many):
                mine = next(p for p in psutil.Process().children() if "serve" in p.cmdline())
                rested(mine)  # it has read the large run, and measured how its front grew
                before, begun = sum(mine.cpu_times()[:2]), time.perf_counter()
                found[many].append(rate(runs / f"live-{turn}-{many}", seconds))
                cores[many].append((sum(mine.cpu_times()[:2]) - before) / (time.perf_counter() - begun))
            shutil.rmtree(runs / f"live-{turn}-{many}")  # else the next service would measure that too
    for many, told in found.items():
        print(
            f"{many} watchers: {statistics.median(told):.1f} candidates a second ({min(told):.1f} to {max(told):.1f})"
        )
        print(f"  the service took {statistics.median(cores[many]):.3f} of a core")
    print(f"ratio {statistics.median(found[watchers]) / statistics.median(found[0]):.3f} (bound: 0.98)")


def rested(process: psutil.Process) -> None:
    """Wait until a process has hardly used a core for five seconds, two minutes at most."""
    quiet, until = 0, time.monotonic() + 120
    while quiet < 5 and time.monotonic() < until:
        before = sum(process.cpu_times()[:2])
        time.sleep(1.0)
        quiet = quiet + 1 if sum(process.cpu_times()[:2]) - before < 0.05 else 0


@contextmanager
def watching(url: str, many: int) -> Iterator[None]:
    """So many watch, in a process of their own, as pages do."""
    process = subprocess.Popen([sys.executable, __file__, "--watch", url, "--watchers", str(many)])
    time.sleep(4.0)  # all have come
    try:
        yield
    finally:
        process.kill()
        process.wait()


def watch(url: str, many: int) -> None:
    """Read the events of all runs so many times at once; one of them asks for what is new, as a page does."""
    threads = [threading.Thread(target=_watch, args=(url, i == 0)) for i in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _watch(url: str, asks: bool) -> None:
    session, since = requests.Session(), dict[str, int]()
    with suppress(requests.RequestException), session.get(f"{url}/api/events", stream=True, timeout=60) as found:
        for line in found.iter_lines():
            if line.startswith(b"data: ") and asks:
                run = json.loads(line[6:])["run"]
                new = session.get(f"{url}/api/runs/{run}/candidates?since={since.get(run, 10**9)}")
                since[run] = new.json()["event"]


def rate(folder: Path, seconds: float) -> float:
    """Candidates a second of a search whose candidates take no time, as its ledger takes them in."""
    made = Made(folder, groups=50, experts=4, objectives=5, evaluations=1_000_000)
    made.more(BATCH, BATCH)
    begun, before = time.perf_counter(), made.count
    while time.perf_counter() - begun < seconds:
        made.more(BATCH, 1)
    took = time.perf_counter() - begun
    made.close()
    return float(made.count - before) / took


if __name__ == "__main__":
    main()
