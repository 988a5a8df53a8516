"""How is a search logged to Weights & Biases? A run of its own, with candidates as steps and the front as a table."""

from __future__ import annotations

import atexit
import os
import threading
import time
from typing import Any

import psutil

from optimizer.errors import JobError
from optimizer.output.loggers.logger import Begun, Ended, Step, columns, scalars

LEAVE_SECONDS = 1.0  # for its own process to end by itself, once this one is ending
STOPPED = 255  # an exit that wandb calls killed, as of its own runs on Ctrl-C
QUIET = {
    **{"host": "untold", "console": "off", "silent": True, "save_code": False, "disable_git": True},
    **{"x_disable_stats": True, "x_disable_meta": True, "x_disable_machine_info": True, "x_save_requirements": False},
}
"""Settings: of a merge's search nothing else is worth being told, neither code nor this host."""


class WandB:
    """As WANDB_MODE, WANDB_PROJECT (mergeopt) and wandb's other variables say; its files are in `RUN/wandb`."""

    def __init__(self) -> None:
        try:
            import wandb
        except ImportError as error:
            raise JobError("--log-to wandb needs wandb; pip install 'mergeopt[wandb]'") from error
        offline = os.environ.get("WANDB_MODE", "online") not in ("online", "run")
        if not offline and getattr(wandb, "api", None) is not None and not getattr(wandb.api, "api_key", "known"):
            raise JobError("--log-to wandb: nobody is logged in; 'wandb login' once, or set WANDB_MODE=offline")
        self._wandb: Any = wandb
        self._run: Any = None
        self._objectives: list[str] = []
        self._exit = 1  # until the search says that it ended

    def start(self, run: Begun) -> None:
        self._objectives = list(run.objectives)
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "mergeopt",
            name=run.name,
            id=run.id,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.parameters),
            settings=self._wandb.Settings(**{k: v for k, v in QUIET.items() if k in self._wandb.Settings.model_fields}),
        )

    def step(self, step: Step) -> None:
        self._run.log({**scalars(step), "number": step.number, "stage": step.stage}, step=step.at)

    def end(self, run: Ended) -> None:
        table = columns(run.front, self._objectives)
        rows = [list(row) for row in zip(*table.values(), strict=True)]
        self._run.log({"front": self._wandb.Table(columns=list(table), data=rows)})
        for row in run.front[:1]:
            self._run.summary.update({f"heldout of the best/{name}": value for name, value in row.heldout.items()})
        self._exit = 0 if run.finished else STOPPED

    def close(self) -> None:
        if self._run is not None:
            self._run.finish(exit_code=self._exit)

    def abandon(self) -> None:
        """Let this process end: it would wait for wandb's own, however long that cannot reach its server.

        What it was told stays in `RUN/wandb`, where `wandb sync` finds it.
        """
        leaving = threading.Event()
        atexit.register(leaving.set)  # is called before wandb's, which was registered before
        threading.Thread(target=_end_service, args=(leaving,), daemon=True).start()


def _end_service(leaving: threading.Event) -> None:
    leaving.wait()
    time.sleep(LEAVE_SECONDS)
    for child in psutil.Process().children():
        if child.name().startswith("wandb"):
            child.kill()
