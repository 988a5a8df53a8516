"""A node that is lost: its questions run elsewhere, and none is blamed for it."""

from __future__ import annotations

import json
import time

import numpy as np
from simulated import Bowl

from optimizer.answer import Answer
from optimizer.driver import Question
from optimizer.executors.cluster import RayExecutor


def test_the_questions_of_a_lost_node_run_elsewhere() -> None:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1)]
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        executor = RayExecutor(Bowl.TARGET, json.dumps({"seconds": 1.0}), workers=2, cpus=1, address=cluster.address)
        executor.start()  # one worker is ready, and the other need not be
        end = time.monotonic() + 120
        while executor.slots < 2 and time.monotonic() < end:
            executor.collect(timeout=0.2)
        for i, x in enumerate(np.linspace(0, 1, 6)):
            executor.submit(Question(i, np.array([x, 0.5])))
        cluster.remove_node(nodes.pop())  # a worker and its question were there
        found: dict[int, Answer] = {}
        while len(found) < 6 and time.monotonic() < end:
            found.update((a.number, a) for a in executor.collect(timeout=0.5))
        assert sorted(found) == list(range(6)) and all(a.failure is None for a in found.values())
        assert sum(a.attempts for a in found.values()) == 7
        assert [t.kind for a in found.values() for t in a.tries] == ["infrastructure"]
        executor.close()
    finally:
        ray.shutdown()
        cluster.shutdown()
