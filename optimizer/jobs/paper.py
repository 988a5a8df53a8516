"""What will a job need, on paper? Headers, the job and measured bandwidths; no model is loaded."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import torch

from optimizer.executors import bandwidth
from optimizer.jobs.assemble import most_steps
from optimizer.jobs.caching import CacheNeeds
from optimizer.jobs.counted import missing, rungs_on_paper, said_of_rungs
from optimizer.jobs.entries import check_entries
from optimizer.jobs.job import Job
from optimizer.jobs.needs import Host, Needs, device_limit, gb, on_cpu, refusal
from optimizer.jobs.problem import open_pool, space_of
from optimizer.jobs.remarks import remarks
from optimizer.training.training import check_gradients
from searchspaces import CoefficientSpace, Pool
from searchspaces.axis import told


def on_paper(job: Job) -> dict[str, Any]:
    """Memory of a worker, where the pool would be, and seconds of one merge at this host's bandwidths.

    Bytes, seconds, and bytes a second. `refusal` says why the job cannot run here, where it cannot; `place` is one of
    `cache`, `disk` (more than free memory holds), `device` and `stream`. Raises PoolError for models that do not fit
    together, RecipeError and JobError for methods, options and bounds, for options of the driver, for evaluators that
    experts or gradients lack, for metrics that none of them reports, and for rungs of more items than there are, where
    these can be counted in the job's files. `missing` says which data files and tasks are not here: who plans for
    another host is told, and a run is refused. `unchecked`: what nobody can know on paper.
    """
    pool = open_pool(job)
    space = space_of(job, pool, {})  # methods, options and bounds are worth checking here too
    unchecked = check_entries(job, space)
    rungs = rungs_on_paper(job, check_gradients(job, space), len(space.anchors()) if job.driver.anchors else 0)
    caches = CacheNeeds.of(job, pool, space)
    needs, host = Needs.of(job, pool), Host.here(job)
    rates = _rates(job, pool, host)
    place = _place(job, pool, needs, host)
    left = host.memory - (needs.workers * needs.worker if on_cpu(job) else 0)
    return {
        "name": job.name,
        "experts": list(pool.names),
        "parameters": pool.parameters,
        "dtype": needs.dtype,
        "model_bytes": needs.model,
        "gradient_bytes": needs.gradients,
        "chunk_bytes": needs.chunk,
        "forward_bytes_about": needs.forward,
        "process_bytes_about": needs.process,
        "worker_bytes": needs.worker,
        "workers": needs.workers,
        "pool_bytes": needs.files,
        "moved_bytes": needs.moved,
        "available_bytes": host.memory,
        "left_for_pages_bytes": left,
        "device_available_bytes": host.device,
        "devices": host.devices,
        "on_cpu": on_cpu(job),
        "place": place,
        "bandwidth": rates,
        "merge_seconds": _seconds(needs, place, rates),
        "evaluations": job.budget.evaluations,
        "gradients": most_steps(job),
        "methods": _methods(space),
        "searched": {m: [name for name, _, whose in space.searched if m in whose] for m in space.methods},
        "fidelity": rungs,
        "cache_bytes": caches.total,
        "cache_kinds": caches.kinds,
        "cache_combinations": caches.combinations,
        "cache_limit_bytes": caches.most,
        "cache_held_bytes": caches.held,
        "cache_free_bytes": caches.free,
        "cache_folder": str(caches.folder),
        "cache_said": caches.said,
        "taught": any("teacher" in entry.options for entry in job.evaluators),
        "warnings": [*([caches.warning] if caches.warning else []), *remarks(job, space)],
        "refusal": refusal(job, needs, host) or caches.refusal,
        "missing": missing(job),
        "unchecked": [*unchecked, "items and labels", "whether the starting point can be scored"],
    }


def rows_of(found: dict[str, Any]) -> dict[str, str]:
    """The findings as rows of a table."""
    parts = [f"a model of {gb(found['model_bytes'])} in {found['dtype']}"]
    parts += [f"its gradients {gb(found['gradient_bytes'])}"] if found["gradient_bytes"] else []
    parts += [f"{gb(found['chunk_bytes'])} to load and merge", f"about {gb(found['forward_bytes_about'])} for a batch"]
    parts += [f"about {gb(found['process_bytes_about'])} for its process"] if found["process_bytes_about"] else []
    many = found["workers"]
    where = f"{gb(found['available_bytes'])} free here"
    if not found["on_cpu"]:
        there = found["device_available_bytes"]
        where = f"{gb(there)} free on {found['devices']}" if there is not None else "whose accelerator is not here"
    all_of_them = f", {gb(many * found['worker_bytes'])} in {many} workers" if many > 1 and found["on_cpu"] else ""
    return {
        "method": "\n".join(_method(m, options, found["searched"][m]) for m, options in found["methods"].items()),
        "a worker": f"{' + '.join(parts)} = {gb(found['worker_bytes'])}{all_of_them}; {where}",
        "the pool": f"{gb(found['pool_bytes'])} on disk; {_places(found)}",
        "bandwidth": _said(found["bandwidth"]),
        "one merge": _merge(found),
        **({"all merges": _merges(found)} if found["merge_seconds"] is not None else {}),
        "cache": _cache(found),
        **({"fidelity": said_of_rungs(found["fidelity"])} if found["fidelity"] else {}),
    }


def _methods(space: CoefficientSpace) -> dict[str, dict[str, Any]]:
    """Each method's fixed options as JSON values; numbers by expert, by expert."""
    return {
        method: {
            name: dict(zip(space.experts, value[0].tolist(), strict=True)) if isinstance(value, np.ndarray) else value
            for name, value in options.items()
        }
        for method, options in space.fixed.items()
    }


def _method(name: str, options: dict[str, Any], searched: list[str]) -> str:
    fixed = ", ".join(f"{option} {_value(value)}" for option, value in options.items())
    said = "; ".join([*([fixed] if fixed else []), *([f"searched: {', '.join(searched)}"] if searched else [])])
    return f"{name} ({said})" if said else name


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{told(number)} of {expert}" for expert, number in value.items())
    return told(value)


def _cache(found: dict[str, Any]) -> str:
    """What is kept on the disk before candidates are scored, or by the first that need it."""
    beside = "; experts' outputs on the items of evaluators with a teacher come beside" if found["taught"] else ""
    if not found["cache_bytes"]:
        return f"nothing is prepared{beside}"
    return (
        f"at most {gb(found['cache_bytes'])} in {found['cache_folder']}, kept between runs: {found['cache_said']}"
        f"{beside}; its limit is {gb(found['cache_limit_bytes'])}, {gb(found['cache_free_bytes'])} are free there"
    )


def _place(job: Job, pool: Pool, needs: Needs, host: Host) -> str:
    """Where a merge finds base and experts."""
    if on_cpu(job):
        return "cache" if needs.files + needs.workers * needs.worker <= host.memory else "disk"
    wanted = job.executor.pool
    if wanted != "auto" or host.device is None:
        return "device" if wanted == "device" else "stream"
    return "device" if needs.read <= device_limit(job, pool).of(host.device - needs.model) else "stream"


def _rates(job: Job, pool: Pool, host: Host) -> dict[str, Any]:
    """Bytes a second; None for what is not here, or could not be measured."""
    every = [pool.base, *pool.opened.values()]
    reads = bandwidth.files(sorted({file for checkpoint in every for file in checkpoint.files}))
    found: dict[str, Any] = {
        "threads": job.executor.threads,
        "memory": bandwidth.memory(job.executor.threads),
        "disk": reads.disk,
        "cache": reads.cache,
        "cached": reads.cached,
        "sparse": reads.sparse,
        "sample_bytes": reads.sample,
        "device": None,
        "to_device": None,
    }
    if host.device is not None:
        first = torch.device(host.devices.split(", ")[0])
        with suppress(torch.OutOfMemoryError):
            found["device"], found["to_device"] = bandwidth.device(first), bandwidth.to_device(first)
    return found


def _seconds(needs: Needs, place: str, rates: dict[str, Any]) -> float | None:
    """Of one merge: the bytes that it moves by the slowest way that they take; None where that was not measured."""
    memory: float = needs.moved / rates["memory"]
    if place == "cache":
        return memory
    if place == "disk":
        return max(memory, needs.read / rates["disk"]) if rates["disk"] else None
    if place == "device":
        return (needs.moved + needs.wide) / rates["device"] if rates["device"] else None
    slowest = [rates[name] for name in ("to_device", "cache") if rates[name]]
    return needs.read / min(slowest) if rates["to_device"] else None


def _places(found: dict[str, Any]) -> str:
    left = found["left_for_pages_bytes"]
    if found["place"] == "cache":
        return f"it stays in the page cache, {gb(left)} are left for that"
    if found["place"] == "disk":
        return f"{gb(max(left, 0))} are left for the page cache, so every candidate reads it from the disk anew"
    return "it is copied to the device" if found["place"] == "device" else "it is streamed to the device"


def _said(rates: dict[str, Any]) -> str:
    threads = "thread" if rates["threads"] == 1 else "threads"
    said = [f"memory {_rate(rates['memory'])} with {rates['threads']} {threads}"]
    if rates["device"]:
        said.append(f"device {_rate(rates['device'])}, to the device {_rate(rates['to_device'])}")
    if rates["sparse"]:
        said.append("the pool's files have holes, which no disk reads: its bandwidth was not measured")
        return "; ".join(said)
    if rates["cache"]:
        was = f" (where {rates['cached']:.0%} of a sample was)" if rates["cached"] is not None else ""
        said.append(f"the pool's files {_rate(rates['cache'])} from the page cache{was}")
    why = "" if rates["disk"] else ": the system keeps its pages"
    said.append(f"from the disk {_rate(rates['disk']) if rates['disk'] else 'not measured'}{why}")
    return "; ".join(said)


def _merge(found: dict[str, Any]) -> str:
    rates, moved = found["bandwidth"], found["moved_bytes"]
    said = f"{gb(moved)} read and written, at most"
    if not found["on_cpu"]:
        at = "the device's bandwidth" if found["place"] == "device" else "the bandwidth of the bus"
        return f"{said}: {_time(found['merge_seconds'])} at {at}"
    said += f": {_time(moved / rates['memory'])} at memory bandwidth"
    if found["place"] == "disk":
        said += f", and {_time(found['merge_seconds'])} at the disk's"
    return said


def _merges(found: dict[str, Any]) -> str:
    steps = f" and {found['gradients']} steps of gradients" if found["gradients"] else ""
    seconds = (found["evaluations"] + found["gradients"]) * found["merge_seconds"]
    return (
        f"at most {found['evaluations']} candidates{steps}: {_time(seconds)} by one worker; what scoring them takes is "
        "measured on one by 'mergeopt check' without --paper"
    )


def _rate(value: float) -> str:
    return f"{value / 1e9:.3g} GB/s"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "unknown time"
    if seconds >= 90:
        return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1e3 * seconds:.2g} ms"
