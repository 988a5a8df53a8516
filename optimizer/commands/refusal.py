"""What is said of an error that ends a command, and with which exit code? Ours and the system's; others go on up."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def refusals(say: Callable[[str, int], None]) -> Iterator[None]:
    """Turns an error of ours, or of the system, into one message and its exit code: `say` is told both, then it ends.

    Raises SystemExit; what no part of mergeopt raised on purpose goes on as it is, with its traceback.
    """
    try:
        yield
    except ValueError as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        text = str(error)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        where = error.filename or ("the disk" if full else "a file or port")
        code, text = 74 if full else 2, f"cannot use {where}: {error.strerror or error}"
    else:
        return
    say(text, code)
    raise SystemExit(code)
