"""How much has a run spent, and when is that enough? Hours on a monotonic clock, over all resumes together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

UNITS = {"hours": "h", "gpu_hours": "GPU h", "money": ""}


@dataclass(frozen=True)
class Limits:
    """What a run may spend; None: as much as it takes. `gpus` are set aside for each worker, busy or not."""

    hours: float | None = None
    gpu_hours: float | None = None
    money: float | None = None
    price_per_hour: float = 0.0  # of all that the run has, in whatever currency `money` is
    gpus: float = 0.0

    def spent(self, hours: float, workers: float) -> dict[str, float]:
        """What so many hours with so many workers come to, in each unit."""
        return {"hours": hours, "gpu_hours": hours * workers * self.gpus, "money": hours * self.price_per_hour}

    def over(self, spent: Mapping[str, float]) -> str | None:
        """Which limit is reached, in words; the first of them."""
        for name in UNITS:
            limit = getattr(self, name)
            if limit is not None and spent.get(name, 0.0) >= limit:
                return f"budget.{name}: {spent[name]:.3g} of {limit:g} {UNITS[name]}".rstrip()
        return None


class Meter:
    """Counts while a run is driven. `spent` is what it came to before, and grows with every `tick`."""

    def __init__(
        self,
        limits: Limits,
        spent: Mapping[str, float],
        clock: Callable[[], float] = time.monotonic,  # never the wall clock: that jumps
    ) -> None:
        self.limits = limits
        self.spent = {name: float(spent.get(name, 0.0)) for name in UNITS}
        self._clock = clock
        self._last: float | None = None

    def tick(self, workers: int) -> None:
        """The time since the tick before was spent with so many workers; the first tick starts the clock.

        Without a worker it is waited, and nothing is spent.
        """
        now = self._clock()
        if self._last is not None and workers > 0:
            for name, more in self.limits.spent((now - self._last) / 3600, workers).items():
                self.spent[name] += more
        self._last = now

    @property
    def reached(self) -> str | None:
        """Which limit is reached, in words."""
        return self.limits.over(self.spent)
