"""How far is a search? A live line for a terminal, plain lines for a log."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from optimizer.answer import Answer
from optimizer.objectives import values
from optimizer.searching.search import Search

LINE_EVERY_SECONDS = 5.0
FADE = 0.95  # what an answer counts for in the rate when the next is there: about the last twenty make it
LAST = {
    "finalists": "all items, for what was scored on some and promises most",
    "heldout": "held-out items, for the front, the anchors and other models",
}
"""What is going on in a phase after the search, which asks for nothing new."""


class SearchProgress:
    """Shows candidates per minute, best so far, hypervolume and time left, as answers are committed."""

    def __init__(self, console: Console, live: bool | None = None) -> None:
        self._console = console
        self._live = console.is_terminal if live is None else live
        self._last: tuple[int, float] | None = None  # of the last answer that counts: how many there were, and when
        self._made = self._seconds = 0.0  # of late, since the first answer, which prepares what later ones find
        self._spent = False  # whether all steps are made, and candidates are what is left
        self._total = 0  # of a phase after the search
        self._last_line = 0.0
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> SearchProgress:
        if self._live:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[text]}"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("starting", total=None, text="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_start(self, search: Search) -> None:
        """The search is about to replay and start its workers."""
        if self._bar is None:
            many = f"{search.evaluations} candidates"
            if search.steps:
                many = f"{search.steps} steps at most, and {many} at most"
            self._console.print(f"search of {many}; starting the workers", highlight=False, soft_wrap=True)

    def on_phase(self, search: Search) -> None:
        """The search itself is over, or has not begun: what comes after it may take a while before it has answers."""
        if search.phase in LAST and search.waiting:
            scored = search.phase == "heldout"  # a resume finds some of them scored
            self._total = len(search.reported()) + len(search.references) if scored else search.waiting
            self._last_line = 0.0
            self._rest(search)

    def on_answer(self, search: Search, answer: Answer) -> None:
        """An answer was committed."""
        if search.phase in LAST:
            self._rest(search)
            return
        if answer.number < 0:  # a reference: no candidate
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, description="base and experts")
            return
        made, most = _count(search)
        spent = 0 < search.steps <= search.gradients
        if spent and not self._spent:
            self._last, self._made, self._seconds = None, 0.0, 0.0  # candidates have another pace
            self._last_line = 0.0
        self._spent = spent
        self._pace(made)
        text = self.describe(search)
        said = f"{search.gradients}/{search.steps} steps" if search.steps else f"{made}/{most}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=most, completed=made, description=said, text=text)
        elif time.monotonic() - self._last_line > LINE_EVERY_SECONDS or made == most:
            self._last_line = time.monotonic()
            self._console.print(f"{said}  {text}", highlight=False, soft_wrap=True)

    def describe(self, search: Search) -> str:
        """The figures after the count, as one line."""
        made, most = _count(search)
        rate = self._made / self._seconds if self._seconds > 0 else 0.0
        parts = [f"{rate * 60:.1f}/min"] if rate else []
        parts += [f"hypervolume {search.front.hypervolume:.4f}"]
        best = search.front.best()
        if best is not None:
            shown = zip(search.objectives, values(search.objectives, best), strict=True)
            parts.append(
                "best " + " ".join(f"{o.name} {v:.3f}" for o, v in list(shown)[:4]) + (" …" if len(best) > 4 else "")
            )
        elif search.front.numbers:
            parts.append("none meets the constraints yet")
        if search.steps:
            parts.append(f"{search.answered} of at most {search.evaluations} scored")
        if search.repeated:
            parts.append(f"{search.repeated} known already")
        if search.failed:
            parts.append(f"{search.failed} failed")
        if rate > 0:
            parts.append(f"{duration((most - made) / rate)} left{' at most' if search.steps else ''}")
        return "  ".join(parts)

    def _pace(self, made: int) -> None:
        """The rate is that of the last answers, of each earlier one a little less: what is left changes by little."""
        now = time.monotonic()
        if self._last is None:
            self._last = (made, now)
        elif (more := made - self._last[0]) > 0:
            fade = FADE**more
            self._made = fade * self._made + more
            self._seconds = fade * self._seconds + now - self._last[1]
            self._last = (made, now)

    def _rest(self, search: Search) -> None:
        """Where a phase after the search is."""
        what, done = LAST[search.phase], self._total - search.waiting
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task, total=self._total, completed=done, description=f"{done}/{self._total}", text=what
            )
        elif time.monotonic() - self._last_line > LINE_EVERY_SECONDS or search.waiting == 0:
            self._last_line = time.monotonic()
            self._console.print(f"{done}/{self._total}  {what}", highlight=False, soft_wrap=True)


def _count(search: Search) -> tuple[int, int]:
    """How far it is, and how far it can get: in steps, while there are any left, else in candidates."""
    if search.steps and search.gradients < search.steps:
        return search.gradients, search.steps
    return search.answered, search.evaluations


def duration(seconds: float) -> str:
    """Seconds in words: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
