"""Who is told when a run has come further? One look at the ledgers serves all who watch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from optimizer.service.answers import Changed
from optimizer.service.background import background
from optimizer.service.board import Board
from optimizer.service.refusals import Refused
from optimizer.wording import shown

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
ODD_SECONDS = 60.0  # after which a run is looked at again at which something went wrong
BEAT_SECONDS = 15.0  # what passes a proxy's patience
SHARE = 50.0  # times as long as a look at a run took, it is left alone
MOST = 256  # watchers


@dataclass(eq=False)
class _Watcher:
    run: str | None
    news: dict[str, str] = field(default_factory=dict)  # the latest of each run: who is slow misses steps, no more
    rang: asyncio.Event = field(default_factory=asyncio.Event)


class Watch:
    """Looks at runs while anybody watches, and at nothing otherwise. Who begins to is told how they stood last."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._watchers: set[_Watcher] = set()
        self._looking: asyncio.Task[None] | None = None
        self._told: dict[str, Changed] = {}
        self._rounds: dict[str, int] = {}
        self._rest: dict[str, float] = {}
        self._eyes = background("look")
        self.over: Callable[[], bool] = lambda: False  # whether the service is about to end: then nobody watches on

    def close(self) -> None:
        """Look no more."""
        self._eyes.shutdown(wait=False, cancel_futures=True)

    def room(self) -> None:
        """Raises Refused where as many watch as may."""
        if len(self._watchers) >= MOST:
            raise Refused(409, f"{MOST} watch already; close some pages")

    async def lines(self, run: str | None = None) -> AsyncIterator[str]:
        """Server-sent events of a run, or of all: `changed`, and between them comments that say nothing."""
        watcher = _Watcher(run, {name: _event(one) for name, one in self._told.items() if run in (None, name)})
        if watcher.news:
            watcher.rang.set()
        self._watchers.add(watcher)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_on())
        try:
            yield ": watching\n\n"
            quiet = 0.0
            while not self.over():
                try:
                    await asyncio.wait_for(watcher.rang.wait(), LOOK_SECONDS)
                except TimeoutError:
                    quiet += LOOK_SECONDS
                    if quiet >= BEAT_SECONDS:
                        yield ": still\n\n"
                        quiet = 0.0
                    continue
                watcher.rang.clear()
                news, watcher.news, quiet = watcher.news, {}, 0.0
                for line in news.values():
                    yield line
        finally:
            self._watchers.discard(watcher)

    async def _look_on(self) -> None:
        while self._watchers and not self.over():
            runs = {w.run for w in self._watchers}
            wanted = None if None in runs else runs
            for one in await asyncio.get_running_loop().run_in_executor(self._eyes, self._look, wanted):
                line = _event(one)  # once for all who watch
                for watcher in self._watchers:
                    if watcher.run in (None, one.run):
                        watcher.news[one.run] = line
                        watcher.rang.set()
            await asyncio.sleep(LOOK_SECONDS)

    def _look(self, runs: set[str | None] | None) -> list[Changed]:
        """Which runs say something else than when they were last looked at."""
        found = []
        for name in self._board.names() if runs is None else sorted(filter(None, runs)):
            begun = time.monotonic()
            if begun < self._rest.get(name, 0.0):
                continue
            try:
                now, rounds = self._board.line(name), self._board.rounds(name)
            except Refused:
                continue
            except Exception:  # of one odd run: the others are looked at, and this one again in a while
                log.exception("run %s cannot be looked at", shown(name, 200))
                self._rest[name] = begun + ODD_SECONDS
                continue
            said = Changed(
                run=name, event=now.event, answered=now.answered, status=now.status, hypervolume=now.hypervolume
            )
            if said != self._told.get(name) or rounds != self._rounds.get(name, 0):
                found.append(said)
            self._told[name], self._rounds[name] = said, rounds
            end = time.monotonic()
            self._rest[name] = end + SHARE * (end - begun)
        return found


def _event(one: Changed) -> str:
    """As it is sent."""
    return f"event: changed\ndata: {one.model_dump_json()}\n\n"
