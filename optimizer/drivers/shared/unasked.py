"""What does a driver say that is told of a question which it has not asked? Which it was, in one sentence for all."""

from __future__ import annotations

from optimizer.driver import DriverError


def unasked(who: str, number: int) -> DriverError:
    """The error of driver `who`: no answer to a question of this number is due."""
    return DriverError(f"{who}: told of question {number}, which it has not asked, or was told of before")
