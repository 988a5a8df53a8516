"""When is compiled code on disk stale? When a file of what it calls has changed, and not its own file alone."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import CellType, FunctionType, ModuleType
from typing import Any

from numba import njit
from numba.core import event

log = logging.getLogger(__name__)


def kept_on_disk(*modules: ModuleType, signature: str | None = None) -> Callable[[Any], Any]:
    """A decorator: compile a function without holding the GIL, and keep that on disk until its file or one changes.

    `modules` are those whose compiled functions it calls, by whatever way. numba's cache looks at the file that a
    function stands in, and misses changes elsewhere; it looks at the numbers that a function closes over too: a sum of
    the files' bytes becomes one of them. With a `signature` it is compiled at once, otherwise when first called.
    """
    source = sum(zlib.crc32(Path(str(m.__file__)).read_bytes()) for m in modules)

    def decorate(function: Any) -> Any:
        code = function.__code__
        closing = code.replace(co_freevars=(*code.co_freevars, "source_of_what_is_called"))
        cells = (*(function.__closure__ or ()), CellType(source))
        made = FunctionType(closing, function.__globals__, function.__name__, function.__defaults__, cells)
        made.__qualname__, made.__module__, made.__doc__ = function.__qualname__, function.__module__, function.__doc__
        return njit(*([signature] if signature else []), nogil=True, cache=True)(made)

    return decorate


class Compiling(event.Listener):  # type: ignore[misc]
    """Says once in a process that kernels are compiled, which the next start need not do, and how long that took.

    What is found on the disk is no compilation. numba compiles under a lock of its own, one function within another.
    """

    def __init__(self) -> None:
        self.seconds = 0.0  # so far
        self._depth, self._since, self._told = 0, 0.0, False

    def on_start(self, event: object) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "compiling kernels (a minute or two, once for each kind of method; later starts find them on the disk)"
            )
        if not self._depth:
            self._since = time.perf_counter()
        self._depth += 1

    def on_end(self, event: object) -> None:
        self._depth -= 1
        if not self._depth:
            self.seconds += time.perf_counter() - self._since


compiling = Compiling()
event.register("numba:compile", compiling)
