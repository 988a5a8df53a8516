"""How does a signal end a command that is no search just then? As Ctrl-C does: in order, with exit code 130."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

from optimizer.output import logs


@contextmanager
def in_order() -> Iterator[None]:
    """While this is open, SIGTERM ends what is done as Ctrl-C does: what was half made is taken away again."""
    if current_thread() is not main_thread():
        yield  # signals are the main thread's
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """The command, which says that it was stopped, and ends with 130."""

    @wraps(command)
    def told(*given: Any, **options: Any) -> None:
        try:
            with in_order():
                command(*given, **options)
        except KeyboardInterrupt:
            logs.say("stopped at once; what was answered is kept")
            raise SystemExit(130) from None

    return told


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
