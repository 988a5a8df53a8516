"""Does a search over language experts gain, and do transformers and PEFT read its best merge as it was scored?

The reference pool's own scripts, on a model of some thousand parameters and texts that Python brings.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks/smollm2"


@pytest.mark.slow
def test_experts_are_trained_searched_exported_and_read_back(tmp_path: Path) -> None:
    def said(script: str, *options: str) -> str:
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(SCRIPTS / script), *options]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pool = tmp_path / "pool"
    said("build.py", "--pico", "--out", str(pool), "--steps", "40", "--lr", "2e-3", "--threads", "1")
    found = said("search.py", "--pool", str(pool), "--evaluations", "8")
    assert "8 candidates, 0 failed" in found and "PASS" in found
    scores = {row[:28].strip(): [float(x) for x in re.findall(r"(-?\d+\.\d+) \+-", row)] for row in found.splitlines()}
    base, python, prose = scores["base"], scores["expert: python"], scores["expert: help"]
    assert len(base) == 3 and python[0] < base[0] and prose[1] < base[1]
