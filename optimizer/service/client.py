"""How does a script speak to the service? Each request as a method, whose answer is a value of the API."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar
from urllib.parse import quote, urlsplit

import requests
from pydantic import BaseModel, TypeAdapter

from optimizer.errors import JobError, OptimizerError, RunError, RunLocked
from optimizer.service import answers
from optimizer.service.serving import token_file
from optimizer.views import candidate_values, run_values

A = TypeVar("A", bound=BaseModel)
SECONDS, QUIET_SECONDS = 330.0, 60.0  # for an answer; between two signs of life of the events
REFUSALS: Mapping[int, type[OptimizerError]] = {404: RunError, 409: RunLocked, 422: JobError}


class Service:
    """A service at a URL, such as `http://127.0.0.1:8421`.

    The token is read from its file where the service is one of this host and user; without it all is read-only.
    Refusals are raised as errors of `optimizer.errors`: JobError for what may not be so, RunError for what is not
    there or not allowed, RunLocked for what may be done later.

        service = Service("http://127.0.0.1:8421")
        for run in service.runs():
            print(run.name, run.status, run.hypervolume)
        export = service.export("first", "best")
    """

    def __init__(self, url: str = "http://127.0.0.1:8421", token: str | None = None) -> None:
        self.url = url.partition("#")[0].rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy reads the token
        if (found := token or _own(self.url)) is not None:
            self._session.headers["Authorization"] = f"Bearer {found}"

    def version(self) -> answers.Version:
        """Which version answers, and whether this client may change anything."""
        return self._get(answers.Version, "version")

    def runs(self) -> list[run_values.Summary]:
        """All runs, a line each, the latest first."""
        return self._get(answers.Runs, "runs").runs

    def run(self, name: str) -> run_values.Run:
        """A run whole, its candidates apart."""
        return self._get(run_values.Run, "runs", name)

    def candidates(
        self,
        run: str,
        since: int = -1,
        front: bool = False,
        stage: str | None = None,
        failed: bool | None = None,
        order: str = "number",
        limit: int | None = None,
        offset: int = 0,
    ) -> candidate_values.Candidates:
        """Candidates as columns; with `since`, those of which anything was told after that event."""
        wanted = {"since": since, "front": front, "stage": stage, "failed": failed, "order": order}
        return self._get(candidate_values.Candidates, "runs", run, "candidates", limit=limit, offset=offset, **wanted)

    def candidate(self, run: str, pick: str = "best") -> candidate_values.Candidate:
        """One candidate: a number, a recipe hash, an anchor, `expert: NAME`, best, best:METRIC, knee or surest."""
        return self._get(candidate_values.Candidate, "runs", run, "candidates", pick)

    def coordinates(self, run: str, names: Sequence[str] | None = None, top: int = 12) -> candidate_values.Coordinates:
        """Coordinates of all candidates, by name or the most important ones, in the order of `candidates`."""
        wanted = None if names is None else ",".join(names)
        return self._get(candidate_values.Coordinates, "runs", run, "coordinates", names=wanted, top=top)

    def importance(self, run: str, metric: str | None = None) -> list[candidate_values.Importance]:
        """How much each coordinate decides, the most important first."""
        found = self._ask("GET", "runs", run, "importance", params={"metric": metric})
        return TypeAdapter(list[candidate_values.Importance]).validate_json(found.content)

    def compare(self, run: str, a: str, b: str) -> candidate_values.Pair:
        """Two candidates, item by item."""
        return self._get(candidate_values.Pair, "runs", run, "compare", a=a, b=b)

    def compare_runs(self, runs: Sequence[str]) -> run_values.Fronts:
        """The fronts of several runs; RunLocked where they are not comparable."""
        return self._get(run_values.Fronts, "compare", runs=",".join(runs))

    def curve(self, run: str) -> run_values.Curve:
        """Hypervolume and epsilon over the candidates answered."""
        return self._get(run_values.Curve, "runs", run, "curve")

    def pick(
        self, run: str, weights: Mapping[str, float] | None = None, where: Sequence[str] = ()
    ) -> run_values.Picked:
        """The front's best answer to wishes: what each objective is worth, and conditions such as `a.loss <= 2`."""
        said = ",".join(f"{name}:{number!r}" for name, number in (weights or {}).items())
        return self._get(run_values.Picked, "runs", run, "pick", weights=said, where=list(where))

    def log(self, run: str, tail: int = 200) -> answers.Log:
        """A line for each of the last answers, and what the run's process printed."""
        return self._get(answers.Log, "runs", run, "log", tail=tail)

    def table(self, run: str, kind: Literal["csv", "json", "parquet"] = "csv") -> bytes:
        """All candidates with all metrics and coordinates, as a file."""
        return bytes(self._ask("GET", "runs", run, f"table.{kind}").content)

    def job(self, run: str) -> str:
        """The run's job, as YAML."""
        return str(self._ask("GET", "runs", run, "job").text)

    def job_schema(self) -> dict[str, Any]:
        """The JSON Schema of a job."""
        return dict(self._ask("GET", "schema", "job").json())

    def events(self, run: str | None = None) -> Iterator[answers.Changed]:
        """What changes, of a run or of all, as it happens; until the service ends."""
        path = ("runs", run, "events") if run is not None else ("events",)
        with self._ask("GET", *path, stream=True) as found:
            for line in found.iter_lines():
                if line.startswith(b"data: "):
                    yield answers.Changed.model_validate_json(line[len(b"data: ") :])

    def check(self, yaml: str) -> answers.Checked:
        """Whether a job may start there, and what it will need."""
        return self._post(answers.Checked, answers.Checking(yaml=yaml), "jobs", "check")

    def draft(self, base: str, experts: Mapping[str, str], data: Mapping[str, str] | None = None) -> str:
        """A first job file of these models, as YAML."""
        wanted = answers.Drafting(base=base, experts=dict(experts), data=dict(data or {}))
        return self._post(answers.Draft, wanted, "jobs", "draft").yaml

    def launch(self, yaml: str, name: str | None = None, address: str | None = None) -> answers.Launched:
        """Start a search there, or from there on a cluster; without a name under the job's own."""
        return self._post(answers.Launched, answers.Launch(yaml=yaml, name=name, address=address), "jobs")

    def stop(self, run: str) -> answers.Done:
        """Ask nothing more, and wait for what is in flight."""
        return self._post(answers.Done, None, "runs", run, "stop")

    def cancel(self, run: str) -> answers.Done:
        """Stop at once; what was answered is kept."""
        return self._post(answers.Done, None, "runs", run, "cancel")

    def resume(self, run: str, evaluations: int | None = None) -> answers.Done:
        """Go on with a run."""
        return self._post(answers.Done, answers.Resume(evaluations=evaluations), "runs", run, "resume")

    def export(self, run: str, candidate: str = "best", name: str | None = None) -> str:
        """Write a candidate as a checkpoint there; the export's id."""
        wanted = answers.Exporting(candidate=candidate, name=name)
        return self._post(answers.Started, wanted, "runs", run, "exports").id

    def exports(self) -> list[answers.Export]:
        """All exports that were started there, the latest first."""
        return self._get(answers.Exports, "exports").exports

    def export_state(self, id: str) -> answers.Export:
        """How far an export is."""
        return self._get(answers.Export, "exports", id)

    def _get(self, kind: type[A], *path: str, **wanted: Any) -> A:
        said = {name: str(v).lower() if isinstance(v, bool) else v for name, v in wanted.items()}
        return kind.model_validate_json(self._ask("GET", *path, params=said).content)

    def _post(self, kind: type[A], body: BaseModel | None, *path: str) -> A:
        said = {} if body is None else body.model_dump()
        return kind.model_validate_json(self._ask("POST", *path, json=said).content)

    def _ask(self, method: str, *path: str, stream: bool = False, **said: Any) -> requests.Response:
        url = "/".join([self.url, "api", *(quote(part, safe="") for part in path)])
        seconds = QUIET_SECONDS if stream else SECONDS
        try:
            found = self._session.request(method, url, timeout=seconds, allow_redirects=False, stream=stream, **said)
        except requests.RequestException as error:
            raise RunError(f"no service answers at {self.url}: {error}; 'mergeopt serve' starts one") from error
        if found.status_code != 200:
            raise REFUSALS.get(found.status_code, RunError)(_reason(found))
        return found


def _reason(found: requests.Response) -> str:
    try:
        return str(found.json()["error"])
    except (ValueError, LookupError, TypeError, json.JSONDecodeError):
        return f"{found.url} answers with status {found.status_code}, and not as mergeopt does"


def _own(url: str) -> str | None:
    """The token of a service of this host and user; None where there is none."""
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        return None
    try:
        return token_file(parts.port or 80).read_text().strip() or None
    except OSError:
        return None
