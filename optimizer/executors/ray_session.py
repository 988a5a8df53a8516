"""How is Ray reached? A cluster by its address, or one of our own, on this host's loopback alone."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # GPU-less workers see what the machine has
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 never starts where others take all cores

import ray
from ray._private import ray_constants, services

from optimizer.errors import WorkerError
from searchspaces.errors import first_line

LOCAL = "local"  # the address of a Ray of our own
LOOK_SECONDS = 10.0  # for a cluster's head to take a connection; Ray itself would try for minutes, and say so in C++


def connect(address: str, cpus: float = 1.0) -> None:
    """Connect this process to the Ray at `address`; `local` starts one of `cpus` CPUs, which ends with this process.

    That one listens on loopback alone: whoever reaches Ray's ports runs commands as its user. Raises WorkerError where
    none answers, or ours does not start.
    """
    if address != LOCAL:
        _look(address)
    term = signal.getsignal(signal.SIGTERM)
    try:
        if address == LOCAL:
            with _on_loopback():
                _init(address, include_dashboard=False, num_cpus=max(1, ceil(cpus)))
        else:
            _init(address)
    except Exception as error:  # Ray raises plain ones, of a head that is slow to start say
        ray.shutdown()  # of what has come up
        raise WorkerError(_refusal(address, first_line(error))) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, term)  # Ray takes it, and would end us without a drain


def _refusal(address: str, said: str) -> str:
    if address == LOCAL:
        return (
            f"the workers cannot start, as Ray did not: {said}; 'mergeopt doctor' looks at this host, and "
            "executor.kind: inline needs no Ray"
        )
    return (
        f"no Ray cluster answers at {address!r} (executor.address): {said}; 'mergeopt doctor --address' looks at a "
        "cluster, and executor.address: local needs none"
    )


def _look(address: str) -> None:
    """Raises WorkerError where nothing listens where Ray would look for a cluster, naming the place that was meant."""
    if "://" in address:
        return  # of a kind that only Ray can read
    try:
        found = services.canonicalize_bootstrap_address(address)
    except ValueError as error:
        raise WorkerError(f"executor.address: expected HOST:PORT, auto or {LOCAL}, got {address!r}") from error
    if found is None or "://" in found:
        return
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), LOOK_SECONDS).close()
    except OSError as error:
        where = found if found == address else f"{address!r}, which is {found} here"
        raise WorkerError(
            f"no Ray cluster answers at {where} (executor.address): {error}; start it, name another, or set "
            f"executor.address: {LOCAL} for workers of this host"
        ) from error


def _init(address: str, **options: object) -> None:
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """What is started in here takes 127.0.0.1 for its own address, and listens there.

    Ray has this for laptops whose firewall asks about every port; elsewhere it takes the host's address and listens on
    all there are. Its processes have it of the variable, this one of a constant that was read when ray was imported.
    Both are put back: a cluster that is joined later has to know this host by its address.
    """
    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    before, constant = os.environ.get(name), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = constant
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
