"""What a cluster's machines do to a search's workers: they join, they leave, and not every one is large enough."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray._private import services
from simulated import Bowl

from optimizer.answer import Answer
from optimizer.driver import Question
from optimizer.errors import JobError, WorkerError
from optimizer.executors import ray_session
from optimizer.executors.cluster import RayExecutor
from optimizer.executors.placement import Share, shortage
from optimizer.jobs.job import Job
from optimizer.jobs.job_means import ExecutorEntry


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that holds no worker, and whatever machines a test adds."""
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
    yield made
    ray.shutdown()
    made.shutdown()


def executor(cluster: Any, spec: dict[str, object] | None = None, **options: Any) -> RayExecutor:
    return RayExecutor(Bowl.TARGET, json.dumps(spec or {}), address=cluster.address, **options)


def until(running: RayExecutor, slots: int, seconds: float = 150) -> list[Answer]:
    """Collect until so many workers are ready; the answers on the way."""
    end, found = time.monotonic() + seconds, []
    while running.slots != slots and time.monotonic() < end:
        found += running.collect(timeout=0.2)
    assert running.slots == slots
    return found


def test_workers_join_and_leave_with_their_machines_and_every_question_is_answered_once(
    cluster: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stays = cluster.add_node(num_cpus=1)
    running = executor(cluster, {"seconds": 0.05}, workers=3, cpus=1)
    with caplog.at_level(logging.WARNING):
        running.start()  # two of the three have no place yet
    assert running.slots == 1
    assert "3 workers of 1 CPU each are wanted, and 2 machines" in caplog.text and "can hold 1" in caplog.text
    leaves = cluster.add_node(num_cpus=2)
    until(running, 3)
    for i in range(40):
        running.submit(Question(i, np.array([i / 40, 0.5])))
    answers = running.collect(timeout=5)
    assert len(answers) < 40
    cluster.remove_node(leaves)
    end = time.monotonic() + 60
    while len(answers) < 40 and time.monotonic() < end:
        answers += running.collect(timeout=0.5)
    assert sorted(a.number for a in answers) == list(range(40))
    assert not [a for a in answers if a.failure is not None]
    assert running.slots == 1 and any(a.attempts > 1 for a in answers)
    running.close()
    cluster.remove_node(stays)


def test_who_waits_for_workers_is_told_so(
    cluster: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.executors.fleet.QUIET_SECONDS", 0.5)
    node = cluster.add_node(num_cpus=1)
    running = executor(cluster, {"start_seconds": 0.7}, workers=1, cpus=1)
    with caplog.at_level(logging.WARNING):
        running.start()
    said = [r.getMessage() for r in caplog.records if "no worker is ready; 1 is" in r.getMessage()]
    assert said and len(said) == len(set(said))  # once, as long as it is the same
    running.close()
    cluster.remove_node(node)


def test_shares_of_an_accelerator_and_several_of_one_machine_are_set_aside(cluster: Any) -> None:
    node = cluster.add_node(num_cpus=8, num_gpus=2, memory=10 * 10**9)
    for options, placed in (
        ({"gpus": 0.5, "workers": 5}, 4),
        ({"gpus": 2.0, "workers": 2}, 1),
        ({"memory": 4 * 10**9, "workers": 3}, 2),
    ):
        running = executor(cluster, cpus=0.5, **options)
        running.start()
        until(running, placed)
        assert not running.collect(timeout=0.5) and running.slots == placed
        running.close()
    cluster.remove_node(node)


def test_a_worker_that_no_machine_could_hold_is_told_after_the_patience_that_the_job_has(cluster: Any) -> None:
    running = executor(cluster, workers=2, gpus=3, patience=0.2)
    with pytest.raises(WorkerError, match=r"1 workers? of 1 CPU, 3 GPU .* none joined within 0.2 s"):
        running.start()
    running.close()


@pytest.mark.parametrize(
    ("share", "machines", "held"),
    [
        (Share(1), [{"CPU": 4.0}], 4),
        (Share(0.1), [{"CPU": 0.3}], 3),  # 0.3 / 0.1 is below 3 in floating point
        (Share(1, 0.25), [{"CPU": 8.0, "GPU": 1.0}], 4),
        (Share(1, 2), [{"CPU": 8.0, "GPU": 1.0}] * 2, 0),  # no worker lies on two machines
        (Share(1, 0, 6 * 10**9), [{"CPU": 8.0, "memory": 10e9}] * 2, 2),
        (Share(1), [], 0),
    ],
)
def test_what_machines_can_hold(share: Share, machines: list[dict[str, float]], held: int) -> None:
    assert shortage(share, held, machines) is None
    assert f"can hold {held}" in (shortage(share, held + 1, machines) or "")


def test_a_share_of_more_than_one_accelerator_is_refused_with_the_next_whole_number() -> None:
    with pytest.raises(JobError, match="set gpus: 2"):
        job = {"models": {"base": "b", "experts": {"e": "e"}}, "evaluators": [{"kind": "k", "name": "n"}]}
        Job.parse({**job, "objectives": ["n.m"], "executor": {"gpus": 1.5}}, Path())
    assert ExecutorEntry(gpus=2.0).gpus == 2


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:{port}"])
def test_a_cluster_that_is_not_there_is_told_at_once_with_the_place_that_was_looked_at(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(services, "get_ray_address_from_environment", lambda *said: f"127.0.0.1:{port}")
    monkeypatch.setattr(ray_session, "_init", lambda *said, **options: pytest.fail("Ray was asked, for minutes"))
    with pytest.raises(WorkerError, match=rf"no Ray cluster answers at .*:{port}.* refused.*executor.address: local"):
        ray_session.connect(address.format(port=port))
    with pytest.raises(WorkerError, match="expected HOST:PORT, auto or local"):
        ray_session.connect("somewhere")
