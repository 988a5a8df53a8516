"""What does the service refuse, and with which status?"""

from __future__ import annotations

from optimizer.errors import JobError, LedgerBusy, OptimizerError, RunLocked
from optimizer.wording import shown


class Refused(Exception):
    """A request that is not done: its status, and a sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def status_of(error: OptimizerError) -> int:
    """The status of what the program refuses: 409 where it may be done later, 422 where it may not be so at all."""
    if isinstance(error, RunLocked | LedgerBusy):
        return 409
    return 422 if isinstance(error, JobError) else 409


def said(error: Exception) -> str:
    """What is told of an error: fit to be shown."""
    return shown(str(error))
