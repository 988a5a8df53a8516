"""How do orders reach a cluster, and answers come back? Through Ray's job API alone: one port, one token."""

from __future__ import annotations

import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from optimizer.errors import ClusterError
from optimizer.remote import asking, wire
from optimizer.remote.address import TOKEN_FILE, Endpoint
from optimizer.remote.wire import Order
from searchspaces.errors import first_line

ENTRY = "exec python -m optimizer.remote.orders"
LOG = "job-driver-{}.log"  # Ray's name of what an order prints
STOP_SECONDS = 60  # that Ray waits between SIGTERM and -9: a drain takes at most 30 s, and then workers are ended
POLL_SECONDS = 0.5
START_SECONDS = 180.0  # for Ray to start an order
FIRST_SECONDS, CALL_SECONDS = 30.0, 120.0  # for the whole of the first answer of its job API, and of each other
QUIET_SECONDS = (5, 60)  # to be connected, and without a byte
MOST_BYTES = 1 << 28  # of one answer; logs are among them
LINE_BYTES = 1 << 24  # of a line of a log
MISSING = re.compile(r"No module named '?optimizer|python: (command )?not found")
T = TypeVar("T")


@dataclass(frozen=True)
class Sent:
    """An order that the cluster was given. `id` is Ray's submission id."""

    id: str
    verb: str
    name: str
    runs: str
    status: str  # Ray's: PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED
    began: int  # milliseconds since the epoch
    message: str = ""
    node: str = ""  # that its process is on

    @property
    def told(self) -> str:
        """Ray's status in the words of who gave the order: one that sends a file waits until it is stopped."""
        return "done" if self.verb == "fetch" and self.status == "STOPPED" else self.status

    @property
    def over(self) -> bool:
        return bool(JobStatus(self.status).is_terminal())


class Cluster:
    """A Ray cluster, spoken to from outside: nothing is connected, and nothing of this process runs there.

    Raises ClusterError where it is not reached, or does not let us in.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        for name in ("ray", "ray.dashboard.modules.dashboard_sdk"):  # which say what they upload
            logging.getLogger(name).setLevel(logging.ERROR)
        self._client: Any = self._call(lambda: _Client(endpoint.url, headers=dict(endpoint.headers)), FIRST_SECONDS)

    @property
    def url(self) -> str:
        return self._endpoint.url

    def send(self, order: Order) -> str:
        """Give the cluster an order; Ray's id of it. What travels is the order, and nothing of the environment."""
        found = f"{order.name if order.verb in ('run', 'resume') else order.verb}-{secrets.token_hex(4)}"
        with tempfile.TemporaryDirectory() as folder:
            order.write(Path(folder))
            self._call(
                lambda: self._client.submit_job(
                    entrypoint=ENTRY,
                    submission_id=found,
                    runtime_env={"working_dir": folder, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}},
                    metadata={"mergeopt": order.verb, "name": order.name, "runs": order.runs},
                )
            )
        return found

    def sent(self) -> list[Sent]:
        """All orders that the cluster remembers, the latest first."""

        def ours() -> list[Sent]:
            found: list[JobDetails] = self._client.list_jobs()
            mine = [_sent(job) for job in found if (job.metadata or {}).get("mergeopt") and job.submission_id]
            return sorted(mine, key=lambda s: -s.began)

        return self._call(ours)

    def find(self, run: str, runs: str | None = None) -> Sent:
        """The order that drives, or drove, a run last: by the run's name, or by an order's id.

        `runs`: only of runs that are kept there, as the order that started them said; None: wherever they are.
        """
        drivers = [s for s in self.sent() if s.verb in ("run", "resume") and runs in (None, s.runs)]
        for one in drivers:
            if run in (one.id, one.name):
                return one
        known = ", ".join(dict.fromkeys(s.name for s in drivers)) or "none"
        where = f" in {runs!r}" if runs is not None else ""
        raise ClusterError(f"the cluster at {self._endpoint.url} knows no run {run!r}{where}; it knows: {known}")

    def state(self, order: str) -> Sent:
        return self._call(lambda: _sent(self._client.get_job_info(order)))

    def log(self, order: str) -> str:
        """What the cluster's side printed so far."""
        return str(self._call(lambda: self._client.get_job_logs(order)))

    def stop(self, order: str) -> bool:
        """SIGTERM to the order's process; False where it was over already."""
        return bool(self._call(lambda: self._client.stop_job(order)))

    def answer(self, order: str, seconds: float | None = START_SECONDS) -> dict[str, Any]:
        """Wait for an order's answer. Raises ClusterError with what it says where that is a refusal, or no answer."""
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            sent = self.state(order)
            tail = self._tail(sent) if sent.node else ""
            found = wire.answered(tail)
            if found is not None:
                if "error" in found:
                    raise refused(found)
                return found
            if sent.over:
                raise ClusterError(explained(self.log(order) or sent.message, sent))
            if end is not None and time.monotonic() > end:
                raise ClusterError(
                    f"the cluster at {self._endpoint.url} has not answered within {seconds:.0f} s: its order {order} "
                    f"is {sent.status}; 'ray job logs {order}' there says more"
                )
            time.sleep(POLL_SECONDS)

    def receive(self, order: str, into: IO[bytes]) -> str:
        """The file that an order sends, once its answer is there; what the cluster's side says of it."""
        note = self.answer(order, None).get("note")
        from_there = self.state(order)
        self._call(lambda: wire.decode(self._lines(from_there, -1), into), None)  # as long as it goes on
        self.stop(order)  # which takes the file out of the cluster's logs
        return note if isinstance(note, str) else ""

    def _tail(self, order: Sent) -> str:
        """The last lines of an order's log, however long it is."""
        return b"\n".join(self._call(lambda: list(self._lines(order, 20)))).decode(errors="replace")

    def _lines(self, order: Sent, last: int) -> Iterator[bytes]:
        """Lines of an order's log as bytes, not all of it in memory; `last` -1: all."""
        asked: dict[str, str | int] = {"node_id": order.node, "filename": LOG.format(order.id), "lines": last}
        with requests.get(
            f"{self._endpoint.url}/api/v0/logs/file",
            params={**asked, "timeout": 86400},
            headers=self._endpoint.headers,
            stream=True,
            timeout=QUIET_SECONDS,
            **_private(),
        ) as found:
            if found.status_code == 500 and last > 0:
                return  # Ray's way to say that there is no log yet
            found.raise_for_status()
            yield from _split(found.iter_content(1 << 20))

    def _call(self, ask: Callable[[], T], seconds: float | None = CALL_SECONDS) -> T:
        """What Ray's client says, within so many seconds, its complaints in our words."""
        url = self._endpoint.url
        try:
            with understood(url):
                return ask() if seconds is None else asking.within(seconds, ask)
        except AuthenticationError:
            there = "the token for it is not the cluster's" if self._endpoint.token else "it asks for a token"
            raise ClusterError(f"{url}: {there}; name the file of the cluster's token in {TOKEN_FILE}") from None
        except (ConnectionError, TimeoutError, requests.ConnectionError, requests.Timeout) as error:
            raise ClusterError(
                f"no cluster answers at {url}; is it running, and is this the port of its job API (8265 unless it was "
                f"given another)? {first_line(error)[:200]}"
            ) from error


class _Client(JobSubmissionClient):  # type: ignore[misc]  # Ray's has no types
    """Ray's, which shows the token to nobody but the cluster that was named."""

    def _do_request(self, method: str, endpoint: str, **said: Any) -> requests.Response:
        bounded = {"timeout": QUIET_SECONDS, "hooks": {"response": _bounded}}
        return super()._do_request(method, endpoint, **{**said, **bounded}, **_private())


@contextmanager
def understood(url: str) -> Iterator[None]:
    """While an answer is read: what is none of a Ray cluster, or of mergeopt there, is a ClusterError that says so."""
    reached = (AuthenticationError, ConnectionError, TimeoutError, requests.ConnectionError, requests.Timeout)
    try:
        yield
    except (ClusterError, *reached):
        raise
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, requests.RequestException) as error:
        raise ClusterError(
            f"{url} answers, but not as a Ray cluster does: {type(error).__name__}: {first_line(error)[:300]}"
        ) from error


def _bounded(answer: requests.Response, **said: object) -> None:
    """The whole of an answer, before requests reads it without a bound."""
    body = bytearray()
    for block in answer.iter_content(1 << 16):
        body += block
        if len(body) > MOST_BYTES:
            answer.close()
            raise requests.RequestException(f"an answer of over {MOST_BYTES} bytes")
    answer._content = bytes(body)


def _split(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines of what comes in blocks, without their ends."""
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
        if len(rest) > LINE_BYTES:
            raise requests.RequestException(f"a line of over {LINE_BYTES} bytes")
    if rest:
        yield rest


def _private() -> dict[str, Any]:
    """For each request: no proxy reads what is sent in the clear (one of https reads nothing), none is redirected."""
    return {"proxies": {"http": None, "all": None}, "allow_redirects": False}


def refused(answer: dict[str, Any]) -> ClusterError:
    """An answer that is a refusal, with the exit code that it would have had here."""
    error = ClusterError(f"on the cluster: {answer['error']}")
    code = answer.get("exit_code")
    error.exit_code = code if isinstance(code, int) and 0 < code < 126 else error.exit_code
    return error


def explained(log: str, order: Sent) -> str:
    """Why an order ended without an answer."""
    if MISSING.search(log):
        return (
            f"the cluster's python has no mergeopt; install mergeopt {wire.version()} on all its machines, for the "
            "python that its PATH finds first"
        )
    lines = [line for line in log.splitlines() if line.strip()]
    last = " ".join(lines[-2:])[-600:]
    return f"the order {order.id} ended as {order.status} without an answer; the last that it said: {last}"


def _sent(job: JobDetails) -> Sent:
    said = job.metadata or {}
    return Sent(
        job.submission_id or "",
        *(said.get("mergeopt", ""), said.get("name", ""), said.get("runs", "")),
        str(JobStatus(job.status).value),
        job.start_time or 0,
        job.message or "",
        job.driver_node_id or "",
    )
