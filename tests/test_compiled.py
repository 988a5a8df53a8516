"""Is code that was compiled and kept on disk that of the files as they are?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

CALLED = """
from numba import njit

@njit(nogil=True, inline="always")
def step(x):
    return x + {}
"""

CALLER = """
import called
from searchspaces.cache.compiled import kept_on_disk

@kept_on_disk(called, signature="int64(int64)")
def eager(x):
    return called.step(x)

@kept_on_disk(called)
def lazy(x):
    return called.step(x)

print(eager(1), lazy(1), *(sum(f.stats.cache_hits.values()) for f in (eager, lazy)))
"""


def test_a_change_of_what_is_called_is_seen_and_nothing_else_is_compiled_again(tmp_path: Path) -> None:
    called = tmp_path / "called.py"
    (tmp_path / "caller.py").write_text(CALLER)
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def run() -> str:
        command = [sys.executable, "-B", str(tmp_path / "caller.py")]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        found = done.stdout.strip()
        # it is said where, and only where, something is compiled
        assert done.stderr.count("compiling kernels (") == (not found.endswith("1 1")), done.stderr
        return found

    called.write_text(CALLED.format(1))
    assert run() == "2 2 0 0"
    assert run() == "2 2 1 1"
    called.write_text(CALLED.format(5))
    assert run() == "6 6 0 0"
    called.write_text(CALLED.format(1))
    assert run() == "2 2 1 1"
