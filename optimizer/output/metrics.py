"""What can a monitor see of a search? Counters and gauges in Prometheus' text, on a port of this host alone."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from optimizer.errors import JobError
from optimizer.objectives import values

if TYPE_CHECKING:
    from optimizer.answer import Answer
    from optimizer.searching.search import Search

HOST = "127.0.0.1"  # whoever reaches it reads scores; a proxy that asks for a password can stand before it
BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)  # seconds


def _asked_by_name(app: Any) -> Any:
    """The same for whoever asks for this host: a page of elsewhere, whose name leads here by now, reads nothing."""

    def asked(environ: dict[str, Any], start: Any) -> Any:
        host = environ.get("HTTP_HOST", "").rpartition(":")[0] or environ.get("HTTP_HOST", "")
        if host in (HOST, "localhost"):
            return app(environ, start)
        start("421 Misdirected Request", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"ask for {HOST} or localhost\n".encode()]

    return asked


class Metrics:
    """A search's figures at `http://127.0.0.1:PORT/metrics`, until `close`. `port` 0 takes one that is free.

    Raises JobError where the port is taken, or prometheus_client is not installed.
    """

    def __init__(self, run: str, port: int) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise JobError("--metrics-port needs prometheus_client; pip install 'mergeopt[metrics]'") from error
        registry = prometheus.CollectorRegistry()

        def family(kind: Any, name: str, says: str, *labels: str, **more: Any) -> Any:
            made = kind(f"mergeopt_{name}", says, ("run", *labels), registry=registry, **more)
            return made if labels else made.labels(run)

        self._run = run
        self._answers = family(
            prometheus.Counter, "answers", "Answers committed by this process", "kind", "split", "outcome"
        )
        self._seconds = family(
            prometheus.Histogram, "answer_seconds", "Time of one answer in its worker", "kind", buckets=BUCKETS
        )
        self._retries = family(prometheus.Counter, "retries", "Attempts beyond the first, of answered questions")
        self._scored = family(prometheus.Gauge, "candidates", "Candidates answered in this run, failures included")
        self._failed = family(prometheus.Gauge, "candidates_failed", "Candidates of this run without scores")
        self._budget = family(prometheus.Gauge, "candidates_budget", "Candidates that this run may score")
        self._waiting = family(prometheus.Gauge, "waiting", "Questions in flight, or waiting for a worker")
        hypervolume = "Of the front, on calibration items; above 1 beyond the anchors' best of each objective at once"
        self._hypervolume = family(prometheus.Gauge, "hypervolume", hypervolume)
        self._best = family(prometheus.Gauge, "best", "Of the candidate of the best mean, natural units", "objective")
        try:
            self._server, self._thread = prometheus.start_http_server(port, HOST, registry)
        except OSError as error:
            taken = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror})"
            raise JobError(f"--metrics-port: port {port} of {HOST} {taken}; name another, or 0 for any") from error
        self._server.set_app(_asked_by_name(self._server.get_app()))
        self.address = f"http://{HOST}:{self._server.server_port}/metrics"

    def on_start(self, search: Search) -> None:
        """The search is about to start."""
        self._refresh(search)

    def on_answer(self, search: Search, answer: Answer) -> None:
        """An answer was committed."""
        kind = "gradient" if answer.split == "train" else "scores"
        outcome = "scored" if answer.failure is None else answer.failure.kind
        self._answers.labels(self._run, kind, answer.split, outcome).inc()
        self._seconds.labels(self._run, kind).observe(answer.seconds)
        self._retries.inc(answer.attempts - 1)
        self._refresh(search)

    def close(self) -> None:
        """Free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _refresh(self, search: Search) -> None:
        self._scored.set(search.answered)
        self._failed.set(search.failed)
        self._budget.set(search.evaluations)
        self._waiting.set(search.waiting)
        self._hypervolume.set(search.front.hypervolume)
        best = search.front.best()
        if best is not None:
            for objective, value in zip(search.objectives, values(search.objectives, best), strict=True):
                self._best.labels(self._run, objective.name).set(value)
