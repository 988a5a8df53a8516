"""What every test has: no network, no hub, and workers that can import the tests' own stand-ins."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import browser as browsers
import postgres
import program
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[name] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("patient", deadline=None)  # time is not a property: the machine may be busy
settings.load_profile("patient")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[postgres.Server]:
    """A PostgreSQL server, the same for all tests; one that stops it starts it again."""
    yield from postgres.server()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless browser, the same for all tests."""
    yield from browsers.browser()


@pytest.fixture
def mergeopt(capsys: pytest.CaptureFixture[str]) -> program.Program:
    """The command line, and what it prints."""
    return program.program(capsys)
