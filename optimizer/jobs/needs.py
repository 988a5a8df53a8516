"""What does a worker need, before it is started? Bytes from headers and the job alone, no weight read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from optimizer.errors import JobError
from optimizer.jobs.assemble import most_steps
from optimizer.jobs.job import EvaluatorEntry, Job
from searchspaces import Pool, methods
from searchspaces.adapters.lowrank import BLOCK, LEAST
from searchspaces.models.headers import TensorInfo
from searchspaces.weights.accelerator import CHUNK, STAGED, Limit

BATCH = 32  # items together, where an evaluator does not say
PIECE = 2048  # elements that a merging thread holds at a time: `CHUNK` of the kernels, which bring a compiler
LENGTH = 512  # tokens of an item, where no evaluator and no shorter context says otherwise
PROCESS = 350_000_000  # bytes of a worker's process that no file backs, before any model: Python, torch, transformers
LOGITS = 3 * 4 * 2**24  # bytes: evaluators make logits 2^24 at a time, in fp32, and two copies for the loss


@dataclass(frozen=True)
class Needs:
    """Bytes. `forward` and `process` are estimates, all else arithmetic."""

    dtype: str
    model: int  # one merged model
    gradients: int  # as much again where the driver asks for gradients
    chunk: int  # the largest temporary that is no model: of loading, and of merging
    forward: int  # activations and logits of one batch
    process: int  # of the host's memory, where that is where models live
    files: int  # base and experts as they are on the disk
    read: int  # of these, what a merge of all experts reads
    wide: int  # what a merge on an accelerator moves beside, in fp32 copies of chunks
    workers: int  # at once, as far as they are on this host

    @property
    def certain(self) -> int:
        """What a worker cannot do without, whatever its items are."""
        return self.model + self.gradients + self.chunk

    @property
    def worker(self) -> int:
        """What a worker holds for itself, beside the pool."""
        return self.certain + self.forward + self.process

    @property
    def moved(self) -> int:
        """What one merge reads and writes."""
        return self.read + self.model

    @classmethod
    def of(cls, job: Job, pool: Pool) -> Needs:
        """Of a job whose pool is open. Raises JobError where the driver's options do not fit."""
        entry, walks = job.executor, most_steps(job) > 0
        dtype = job.models.resident_dtype
        tensors = pool.layout(dtype)
        model = sum(t.bytes for t in tensors)
        alone = entry.kind == "inline" or entry.address != "local"  # of a cluster one is sure to be on some host
        return cls(
            str(max(tensors, key=lambda t: t.bytes).dtype).removeprefix("torch."),
            model,
            sum(t.bytes for t in tensors[: len(pool.merged)]) if walks else 0,
            _chunk(job, pool, tensors, walks),
            max(_forward(e, pool.base.config, tensors, walks) for e in job.evaluators),
            PROCESS if on_cpu(job) else 0,
            pool.base.bytes + sum(e.bytes for e in pool.opened.values()),
            _read(job, pool),
            (20 * len(pool.experts) + 18) * sum(t.numel for t in pool.merged),
            1 if alone else entry.workers,
        )


@dataclass(frozen=True)
class Host:
    """What this host has left, in bytes. `device` is None where the job's device is the CPU, or is not here."""

    memory: int
    device: int | None = None
    devices: str = ""  # which

    @classmethod
    def here(cls, job: Job) -> Host:
        """Free memory of this host now, and of the accelerators that the job names."""
        memory = int(psutil.virtual_memory().available)
        found = [torch.device(name) for name in _accelerators(job)]
        cuda = [d for d in found if d.type == "cuda" and (d.index or 0) < torch.cuda.device_count()]
        if not cuda or len(cuda) < len(found):
            return cls(memory)
        share = _share(job)
        free = [torch.cuda.mem_get_info(d) for d in cuda]
        return cls(memory, sum(min(f, int(t * share)) for f, t in free), ", ".join(map(str, cuda)))


def refusal(job: Job, needs: Needs, host: Host) -> str | None:
    """Why a job cannot run on this host, and what to do; None where nothing says that it cannot.

    Only what is certain counts: how much a batch and a process take are estimates.
    """
    if on_cpu(job):
        needed, there, where = needs.workers * needs.certain, host.memory, "this host"
    elif host.device is not None:
        needed, there, where = needs.certain, host.device, f"each of its workers' devices ({host.devices})"
    else:
        return None
    if needed <= there:
        return None
    ways = [] if needs.dtype in ("bfloat16", "float16") else ["models.dtype: bfloat16"]
    if on_cpu(job):
        ways += ["fewer executor.workers"] if needs.workers > 1 else []
        ways += ["a host with more memory, or executor.device: auto where there are accelerators"]
    else:
        ways += ["executor.device: auto, which lays one model over several devices"]
    ways += ["a driver that asks for no gradients"] if needs.gradients else []
    twice = ", twice for its gradients" if needs.gradients else ""
    many = f"{needs.workers} workers need" if needs.workers > 1 and on_cpu(job) else "a worker needs"
    each = " each" if needs.workers > 1 and on_cpu(job) else ""
    return (
        f"{many} {gb(needs.certain)}{each} (a model of {gb(needs.model)} in {needs.dtype}{twice}, "
        f"{gb(needs.chunk)} to load and merge it), {gb(needed)} in all; {where} has {gb(there)} free: try "
        f"{'; or '.join(ways)}"
    )


def check_room(job: Job, pool: Pool) -> Needs:
    """The needs of a job; raises JobError, before any weight is read, where this host cannot hold its workers."""
    needs = Needs.of(job, pool)
    if (why := refusal(job, needs, Host.here(job))) is not None:
        raise JobError(f"the job does not fit here: {why}")
    return needs


def device_limit(job: Job, pool: Pool) -> Limit:
    """How much of an accelerator a worker may fill with its pool: what it has, without what it will need there."""
    needs = Needs.of(job, pool)
    return Limit(_share(job), needs.gradients + needs.forward + STAGED + 3 * 4 * CHUNK)


def on_cpu(job: Job) -> bool:
    """Whether models live in the host's memory."""
    device = job.executor.device
    if device == "auto":
        return not torch.cuda.is_available()
    return not job.executor.accelerators


def gb(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.2f} GB" if abs(count) >= 1e8 else f"{count / 1e6:.1f} MB"


def _accelerators(job: Job) -> list[str]:
    if job.executor.device == "auto":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return sorted(job.executor.accelerators)


def _share(job: Job) -> float:
    """A worker's of each device that it uses."""
    return job.executor.gpus if job.executor.kind == "ray" and 0 < job.executor.gpus < 1 else 1.0


def _chunk(job: Job, pool: Pool, tensors: list[TensorInfo], gradients: bool) -> int:
    """The largest tensor while it is loaded, or what the merging threads hold: fp32 pieces, and of adapters the thin
    factors and a block of their product."""
    columns = {t.name: math.prod(t.shape[1:]) for t in pool.merged if len(t.shape) > 1}
    blocks = 0
    for adapter in pool.adapters.values():
        for name, factors in adapter.low.items():
            n = columns.get(name, 1)
            blocks = max(blocks, 4 * (max(BLOCK, LEAST * n) + factors.rank * n))
    count = len(pool.adapters)
    each = 4 * 4 * PIECE + (count * blocks if gradients else blocks + (count - 1) * blocks // 2 if count else 0)
    return max(max(t.bytes for t in tensors), job.executor.threads * each)


def _forward(entry: EvaluatorEntry, config: Mapping[str, Any], tensors: list[TensorInfo], gradients: bool) -> int:
    """About what a forward pass over one batch holds, and with gradients what it keeps for the way back."""
    inner = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    assert inner is not None

    def number(*names: str, default: int) -> int:
        return next((v for n in names if isinstance(v := inner.get(n), int) and v > 0), default)

    hidden = number("hidden_size", "n_embd", "d_model", default=max(t.shape[-1] for t in tensors if t.shape))
    wide = number("intermediate_size", "n_inner", "d_ff", default=4 * hidden)
    layers = number("num_hidden_layers", "n_layer", "num_layers", default=1)
    batch, length = entry.options.get("batch_size"), entry.options.get("max_length")
    tokens = LENGTH if not isinstance(length, int) else length
    if isinstance(size := inner.get("image_size"), int) and isinstance(patch := inner.get("patch_size"), int):
        tokens = (size // max(patch, 1)) ** 2 + 1
    tokens = min(tokens, number("max_position_embeddings", "n_positions", default=tokens))
    tokens *= batch if isinstance(batch, int) else BATCH
    at_once = tokens * (4 * hidden + 3 * wide) * tensors[0].dtype.itemsize
    kept = layers * tokens * (8 * hidden + 4 * wide) * tensors[0].dtype.itemsize if gradients else 0
    vocabulary = number("vocab_size", default=0)
    return at_once + kept + min(LOGITS, 3 * 4 * tokens * vocabulary)


def _read(job: Job, pool: Pool) -> int:
    """Bytes of the merged tensors of base and experts, and of whole adapters."""
    adapters = pool.adapters
    processed = any(methods.load(name).processes for name in job.space.methods)
    cancels = any(getattr(methods.load(name), "cancels", False) for name in job.space.methods)
    total = sum(t.bytes for t in pool.merged)
    for name, expert in pool.opened.items():
        if name in adapters and not processed:
            total += expert.bytes
            continue
        for info in pool.merged:
            dtype = expert.tensors[info.name].dtype
            if processed:
                dtype = torch.float32 if cancels else torch.promote_types(dtype, info.dtype)
            total += info.numel * dtype.itemsize
    return total
