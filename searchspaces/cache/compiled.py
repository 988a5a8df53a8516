"""When is compiled code on disk stale? When a file of what it calls has changed, and not its own file alone."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from types import CellType, FunctionType, ModuleType
from typing import Any

from numba import njit


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
