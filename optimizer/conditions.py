"""What must a candidate's score be? `metric >= number`, or `<=`, in the metric's natural units."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from optimizer.wording import shown

EXPECTED = "expected a metric, >= or <=, and a number, such as 'spam.accuracy >= 0.9'"
_FORM = re.compile(r"\s*([^\s<>=](?:[^<>=]*[^\s<>=])?)\s*(<=|>=|==|=>|=<|<|>|=)\s*([^\s<>=]+)\s*")


@dataclass(frozen=True)
class Condition:
    """A qualified metric (`spam.accuracy`), which way, and a bound in natural units."""

    name: str
    at_least: bool
    bound: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Raises ValueError saying what was expected."""
        found = _FORM.fullmatch(text) if len(text) <= 500 else None
        if found is None:
            raise ValueError(f"{EXPECTED}, got {shown(repr(text), 80)}")
        name, sign, number = found.groups()
        if sign not in ("<=", ">="):
            raise ValueError(f"{EXPECTED}, got {sign!r} in {shown(repr(text), 80)}; write >= or <=")
        try:
            bound = float(number)
        except ValueError:
            raise ValueError(f"{EXPECTED}, got {shown(repr(number), 40)} for the number") from None
        if not isfinite(bound):
            raise ValueError(f"{EXPECTED}, got {number} for the number; leave it out for no limit")
        return cls(name, sign == ">=", bound)

    def __str__(self) -> str:
        return f"{self.name} {'>=' if self.at_least else '<='} {self.bound!r}"

    def missed(self, value: float) -> float:
        """By how much a value falls short of it, in natural units; 0 where it does not."""
        return max(0.0, self.bound - value if self.at_least else value - self.bound)

    def chance(self, value: float, stderr: float) -> float:
        """The probability that it holds in truth, which is normal around a value with this standard error."""
        from scipy.special import ndtr

        if stderr == 0:
            return float(self.missed(value) == 0)
        return float(ndtr((value - self.bound if self.at_least else self.bound - value) / stderr))


def normal(text: str) -> str:
    """A condition as it is kept, whatever spaces and digits it was written with; what is none stays as it is."""
    try:
        return str(Condition.parse(text))
    except ValueError:
        return text


def consistent(conditions: Sequence[Condition]) -> None:
    """Raises ValueError for two that cannot both hold, or of which one says no more than the other."""
    for i, a in enumerate(conditions):
        for b in conditions[:i]:
            if a.name == b.name and a.at_least == b.at_least:
                kept = b if a.missed(b.bound) == 0 else a
                raise ValueError(f"'{b}' and '{a}' bound the same side of {shown(a.name, 80)}; keep '{kept}'")
            low, high = (a, b) if a.at_least else (b, a)
            if a.name == b.name and low.bound > high.bound:
                raise ValueError(
                    f"'{low}' and '{high}' cannot both hold; raise the one to '{high.name} <= {low.bound!r}' or more, "
                    f"or lower the other to '{low.name} >= {high.bound!r}' or less"
                )
