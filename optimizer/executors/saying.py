"""When is a warning worth saying again? When it says something else, or after a long while."""

from __future__ import annotations

from dataclasses import dataclass

AGAIN_SECONDS = 600.0  # after which who looks at the end of a log should find it there


@dataclass
class Saying:
    """What was said last of one thing, and when (seconds of a monotonic clock)."""

    last: str = ""
    at: float = 0.0

    def anew(self, text: str, now: float) -> bool:
        """Whether to say this now; if so, it counts as said."""
        if text == self.last and now - self.at < AGAIN_SECONDS:
            return False
        self.last, self.at = text, now
        return True

    def over(self) -> None:
        """It is no longer so: the same may be said as soon as it is again."""
        self.last = ""
