"""What does the service say of itself, and take? The shape of every JSON value that is no view of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from optimizer.views.run_values import Plain, Status, Summary


class Refusal(Plain):
    """Why something was not done."""

    error: str


class Version(Plain):
    """Which version answers; `read_only` is whether this request could change nothing (it carries no token)."""

    version: str
    read_only: bool
    runs: str


class Runs(Plain):
    runs: list[Summary]


class Log(Plain):
    """`lines` are answers, `process` is what the process printed that was started here."""

    lines: list[str]
    process: list[str] = Field([])


class Changed(Plain):
    """What an event says: how far a run is by now."""

    run: str
    event: int
    answered: int
    status: Status
    hypervolume: float


class Checking(Plain):
    yaml: str = Field(max_length=1_000_000)


class Checked(Plain):
    """Whether a job may start here; `plan` is what `mergeopt check --paper` says of memory, time and cost."""

    ok: bool
    problems: list[str]
    plan: dict[str, object] | None


class Drafting(Plain):
    base: str = Field(max_length=4096)
    experts: dict[str, str]
    data: dict[str, str] = Field({})


class Draft(Plain):
    yaml: str


class Launch(Plain):
    """A job to start: here, or with `address` on a Ray cluster. Without a name under the job's own."""

    yaml: str = Field(max_length=1_000_000)
    name: str | None = None
    address: str | None = None


class Launched(Plain):
    run: str
    address: str | None = None


class Resume(Plain):
    evaluations: int | None = Field(None, ge=1, le=1_000_000)


class Done(Plain):
    run: str
    said: str


class Exporting(Plain):
    candidate: str = "best"
    name: str | None = None


class Started(Plain):
    id: str


class Export(Plain):
    """An export; `path` is there when it is done, `rescored` says that on reload it scored what the ledger says."""

    id: str
    run: str
    candidate: str
    state: Literal["running", "done", "failed"]
    progress: float
    step: str
    path: str | None
    error: str | None
    rescored: bool


class Exports(Plain):
    exports: list[Export]
