"""How is a search started, stopped and gone on with? By the same commands as in a terminal."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from optimizer.errors import JobError, RunError
from optimizer.jobs.job import Job
from optimizer.jobs.plain_yaml import read_yaml
from optimizer.record.folders import LEDGER, found
from optimizer.record.owner import owner
from optimizer.remote import control
from optimizer.service import processes
from optimizer.service.answers import Checked, Done, Draft, Drafting, Launch, Launched
from optimizer.service.processes import Started
from optimizer.service.refusals import Refused, said
from optimizer.service.runs import NAME, Shelf
from optimizer.service.settings import Settings
from optimizer.wording import shown

CHECK_SECONDS, DRAFT_SECONDS, LAUNCH_SECONDS = 300.0, 120.0, 180.0
END_SECONDS = 10.0  # for what has not begun yet
MOST_STARTED = 16  # searches that run at once: each of them plans with all of the memory that is free


class Starter:
    """Starts searches of jobs that arrive, and says how far they have come before they are runs."""

    def __init__(self, settings: Settings, shelf: Shelf) -> None:
        self._settings, self._shelf = settings, shelf
        self._own = shelf.own / "launches"
        self._lock = threading.Lock()  # two of one name at once are looked at one after the other

    def launch(self, wanted: Launch) -> Launched:
        """Start a search here, or send it to a cluster. Raises Refused for a job that does not fit or a taken name."""
        job = _parsed(wanted.yaml, wanted.name)
        if wanted.address is not None:
            self._free(job.name)
            return self._sent(wanted.yaml, job.name, wanted.address)
        with self._lock:
            return self._launch(job)

    def _launch(self, job: Job) -> Launched:
        folder = self._free(job.name)
        if sum(s.alive for s in self.started()) >= MOST_STARTED:
            raise Refused(409, f"{MOST_STARTED} searches are under way that were started here; stop one, or wait")
        home = self._own / job.name
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        (home / processes.LOG).unlink(missing_ok=True)
        file = home / "job.yaml"
        _write(file, job.yaml())
        about = {"run": job.name, "folder": str(folder)}
        processes.start(home, about, ["run", f"--runs={self._shelf.runs}", *self._code, "--", str(file)])
        return Launched(run=job.name)

    def stop(self, name: str) -> Done:
        """Ask nothing more, and wait for what is in flight."""
        if (one := self._ahead(name)) is not None:
            one.end()
            return Done(run=name, said=f"process {one.process.pid} is stopping")
        pid = control.drain(self._shelf.reader(name).folder)
        return Done(run=name, said=f"process {pid} is stopping")

    def cancel(self, name: str) -> Done:
        """Stop at once; what was answered is kept. What never became a run is forgotten."""
        one = self.of(name)
        if one is not None and not found(self._shelf.folder(name) / LEDGER):
            one.end(END_SECONDS)
            (one.folder / processes.RECORD).unlink(missing_ok=True)
            return Done(run=name, said="it had not begun, and is forgotten")
        if (one := self._ahead(name)) is not None:
            one.end(END_SECONDS)
            if not one.alive:
                return Done(run=name, said=f"process {one.process.pid} has ended; what was answered is kept")
        pid = control.cancel(self._shelf.reader(name).folder)
        return Done(run=name, said=f"process {pid} has ended; what was answered is kept")

    def resume(self, name: str, evaluations: int | None) -> Done:
        """Go on with a run, to a new budget where there is one."""
        reader = self._shelf.reader(name)
        if evaluations is None and reader.now().finished:
            raise Refused(409, f"{name} is finished; say up to how many candidates it is to go on")
        with self._lock:
            return self._resume(name, reader.folder, evaluations)

    def _resume(self, name: str, folder: Path, evaluations: int | None) -> Done:
        control.nobody_drives(folder)
        if (one := self.of(name)) is not None and one.alive:
            raise Refused(409, f"process {one.process.pid} is just starting or ending with {name}; try again")
        more = [] if evaluations is None else [f"--evaluations={evaluations}"]
        about = {"run": name, "folder": str(folder)}
        command = ["resume", f"--runs={self._shelf.runs}", *more, *self._code, "--", name]
        made = processes.start(self._own / name, about, command)
        return Done(run=name, said=f"process {made.process.pid} goes on with it")

    def of(self, name: str) -> Started | None:
        """What was started last for a run of this name."""
        return processes.found(self._own / name) if NAME.fullmatch(name) else None

    def started(self) -> list[Started]:
        """All that was started here, and is remembered."""
        there = sorted(self._own.iterdir()) if self._own.is_dir() else []
        return [one for folder in there if (one := self.of(folder.name)) is not None]

    def check(self, yaml: str) -> Checked:
        """Whether a job may start here, and what it will need, as `mergeopt check --paper` says it."""
        try:
            job = _parsed(yaml, None)
        except Refused as refused:
            return Checked(ok=False, problems=[str(refused)], plan=None)
        with processes.scratch() as folder:
            file = Path(folder) / "job.yaml"
            _write(file, job.yaml())
            code, out, error = processes.answer(["check", "--paper", "--json", "--", str(file)], CHECK_SECONDS)
        if code:
            return Checked(ok=False, problems=[error], plan=None)
        plan: dict[str, Any] = json.loads(out)
        plan["budget"] = job.budget.model_dump()
        refusal = plan.get("refusal")
        problems = [shown(str(why)) for why in [*([refusal] if refusal else []), *plan.get("missing", [])]]
        return Checked(ok=not problems, problems=problems, plan=plan)

    def draft(self, wanted: Drafting) -> Draft:
        """A first job file of these models, as `mergeopt init` writes it. Raises Refused where they do not fit."""
        if not wanted.experts:
            raise Refused(422, "experts: name at least one expert")
        with processes.scratch() as folder:
            file = Path(folder) / "job.yaml"
            given = [f"--base={_whole(wanted.base)}", f"--out={file}"]
            given += [f"--expert={name}={_whole(path)}" for name, path in wanted.experts.items()]
            given += [f"--data={name}={_whole(path)}" for name, path in wanted.data.items()]
            code, _, error = processes.answer(["init", *given], DRAFT_SECONDS)
            if code:
                raise Refused(422, error)
            return Draft(yaml=file.read_text().replace(str(file), "job.yaml"))

    @property
    def _code(self) -> list[str]:
        return ["--allow-code"] if self._settings.allow_code else []

    def _starting(self, name: str) -> Started | None:
        """What is about to become a run of this name."""
        one = self.of(name)
        return one if one is not None and one.alive and not found(self._shelf.folder(name) / LEDGER) else None

    def _ahead(self, name: str) -> Started | None:
        """What was started for a run and does not drive it yet: a new one, or one that goes on with it."""
        one = self.of(name)
        if one is None or not one.alive:
            return None
        who = owner(self._shelf.folder(name))
        return one if who is None or not who.pid else None

    def _free(self, name: str) -> Path:
        try:
            folder = self._shelf.folder(name)
        except Refused as error:
            raise Refused(422, f"name: {error}") from None
        if folder.exists() or self._starting(name) is not None:
            raise Refused(409, f"there is a run {name!r} already; resume it, or name this one otherwise")
        return folder

    def _sent(self, yaml: str, name: str, address: str) -> Launched:
        with processes.scratch() as folder:
            file = Path(folder) / "job.yaml"
            _write(file, yaml)  # as it is: its paths are the cluster's
            given = [f"--address={address}", f"--name={name}", *self._code, "--", str(file)]
            code, _, error = processes.answer(["launch", *given], LAUNCH_SECONDS)
        if code:
            raise Refused(409 if code == 69 else 422, error)
        return Launched(run=name, address=address)


def _parsed(yaml: str, name: str | None) -> Job:
    """A job that arrived as text; relative paths start where the service was started. Raises Refused."""
    with processes.scratch() as folder:
        file = Path(folder) / "job.yaml"
        _write(file, yaml)
        try:
            data = read_yaml(file)
            if isinstance(data, dict):
                data = {**data, **({"name": name} if name is not None else {})}
            return Job.parse(data, Path.cwd(), "job")
        except (JobError, RunError) as error:
            raise Refused(422, said(error).replace(str(file), "job")) from error


def _write(file: Path, text: str) -> None:
    file.write_bytes(text.encode(errors="replace"))


def _whole(path: str) -> str:
    """A path from where the service was started; a name of the hub is no path."""
    found = Path(path)
    try:
        return str(found.absolute()) if found.expanduser() == found and found.exists() else path
    except (RuntimeError, OSError, ValueError):  # no such user, longer than names may be, a NUL: the command says so
        return path
