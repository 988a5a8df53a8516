"""What does a coefficient gradient cost beside its forward and backward, in time and memory, against autograd?

Makes a ViT-B (fp32, random weights) and experts (base + noise) in a temporary folder, and prints

- memory: private (anonymous) memory of a fresh process after a whole step, which should not grow with the experts;
- pass: `Resident.gradient` alone, its files mapped and in the system's cache, against the bound
  `(K + 2) * bytes / copy bandwidth`: base, K experts and the weights' gradient are read once. The bandwidth is that of
  `Tensor.copy_`, measured between the passes with the same number of threads; a copy of N bytes counts 2N;
- step: write the weights, forward and backward of four 224 x 224 images a task, the pass; against the same step by
  autograd through the merge, task vectors in memory: as FusionBench's layer-wise AdaMerging has it (task vectors added
  one after the other, a backward for each task through the kept graph), and `stacked`, the fastest graph known to us (a
  tensor's merge is one product of vector and matrix, one backward of the summed losses), without a limit. Seconds are
  of interleaved steps in one process, peaks of private memory in fresh ones.

All of it twice: with malloc as it is, and with freed blocks kept (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_).
Times are minima.

    python benchmarks/gradient.py --rounds 5 --threads 2

With `--rank R` the experts are LoRA adapters of rank R on every linear layer. The bound of the pass then is the time of
reading base and gradient once, and of the adapters' products by torch's own matrix product on one thread, all experts
of a tensor in one call, into memory that is in cache. The graphs that it is compared with have task vectors whole.

    python benchmarks/gradient.py --rounds 5 --threads 2 --rank 16
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from materialise import copy_all, make_adapter, multiply, private, stacked, timed  # noqa: E402

EXPERTS = (2, 4, 8, 16)
GROWTH, PASS = 1.05, 3.0
STEP = {1: 0.75, 8: 0.60}  # tasks -> share of autograd's time, at eight experts
PEAK = 0.25
IMAGES = 4
MALLOC: dict[str, dict[str, str]] = {
    "as it is": {},
    "blocks kept": {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)},
}


def main() -> int:
    """Print the tables; the exit code is 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description="time and memory of a coefficient gradient")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--patch", type=int, default=32, choices=(16, 32), help="ViT-B/16: 85.8 M, B/32: 87.5 M")
    parser.add_argument("--rank", type=int, default=0, help="of adapters; 0: the experts are whole models")
    parser.add_argument("--layers", type=int, default=12, help="fewer make it a quick look")
    parser.add_argument("--measure", nargs=4, metavar=("WHAT", "FOLDER", "K", "T"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        what, folder, experts, tasks = args.measure
        world = World(Path(folder), int(experts), int(tasks), args.threads)
        print(json.dumps(MEASURES[what](world, args.rounds)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        models = 2 if args.rank else 1 + max(EXPERTS)  # adapters together are less than one
        needed, free = models * 4 * (3e6 + 7.1e6 * args.layers), shutil.disk_usage(folder).free
        if free < needed:
            sys.exit(f"{folder}: {free / 1e9:.1f} GB free, the models need {needed / 1e9:.1f} GB; set TMPDIR")
        make_pool(Path(folder), args.patch, args.layers, max(EXPERTS), args.rank)
        kind = f"adapters of rank {args.rank}" if args.rank else "whole experts"
        of = f"ViT-B/{args.patch}, {args.layers} layers, fp32, {kind}"
        print(f"{of}, {args.threads} thread(s), minima of {args.rounds} rounds")
        results = [table(folder, args, name) for name in MALLOC]
    return int(not all(results))


def table(folder: str, args: argparse.Namespace, malloc: str) -> bool:
    """Measure and print everything under one setting of malloc; whether all limits are kept."""

    def child(what: str, experts: int, tasks: int) -> dict[str, float]:
        command = [sys.executable, __file__, "--measure", what, folder, str(experts), str(tasks)]
        command += ["--rounds", str(args.rounds), "--threads", str(args.threads)]
        environment = {**os.environ, **MALLOC[malloc], "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
        found: dict[str, float] = json.loads(
            subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
        )
        return found

    kept = []

    def verdict(value: float, limit: float) -> str:
        kept.append(value <= limit)
        return f"{value:5.2f} (limit {limit:.2f} {'PASS' if value <= limit else 'FAIL'})"

    print(f"\nmalloc {malloc}\nexperts  private MB  of that at 2              pass ms  bound ms  pass / bound")
    smallest = None
    for experts in EXPERTS:
        row = child("passes", experts, 1)
        smallest = smallest or row["private"]
        growth, ratio = verdict(row["private"] / smallest, GROWTH), verdict(row["pass"] / row["bound"], PASS)
        passes = f"{row['pass'] * 1e3:9.1f} {row['bound'] * 1e3:9.1f}"
        print(f"{experts:7} {row['private'] / 1e6:11.0f}  {growth} {passes}  {ratio}")
    print("experts  tasks  streaming s  against            s  streaming / it            peak MB        of its peak")
    for tasks, limit in STEP.items():
        row = child("steps", 8, tasks)
        peaks = {name: child(f"peak of {name}", 8, tasks)["peak"] for name in ("streaming", *GRAPHS)}
        for name in GRAPHS:
            over, share = row["streaming"] / row[name], peaks["streaming"] / peaks[name]
            limited = name == "fusionbench"
            print(
                f"{8:7} {tasks:6} {row['streaming']:12.2f}  {name:11} {row[name]:8.2f}"
                f"  {verdict(over, limit) if limited else f'{over:5.2f}':24}"
                f"  {peaks['streaming'] / 1e6:5.0f} / {peaks[name] / 1e6:5.0f}"
                f"  {verdict(share, PEAK) if limited else f'{share:5.2f}'}",
            )
    return all(kept)


def make_pool(folder: Path, patch: int, layers: int, experts: int, rank: int) -> None:
    """Write a base of random weights, and experts: base + noise, or adapters where there is a rank."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    config = transformers.ViTConfig(patch_size=patch, num_hidden_layers=layers)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder / "base")
    base = load_file(folder / "base" / "model.safetensors")
    for k in range(1, experts + 1):
        home = folder / f"expert{k}"
        home.mkdir()
        if rank:
            linear = {n: t.shape for n, t in base.items() if t.dim() == 2}
            make_adapter(home, linear, rank, torch.float32, torch.Generator().manual_seed(k))
            continue
        noisy = {n: t + 0.002 * torch.randn(t.shape) for n, t in base.items()}
        save_file(noisy, home / "model.safetensors", {"format": "pt"})
        shutil.copyfile(folder / "base" / "config.json", home / "config.json")


class World:
    """A pool, a recipe with a coefficient for each tensor and expert, and tasks: images and a head of 100 classes."""

    def __init__(self, folder: Path, experts: int, tasks: int, threads: int) -> None:
        import numpy as np
        import torch

        from searchspaces import CoefficientSpace, Pool

        torch.set_num_threads(threads)
        torch.manual_seed(1)
        self.threads = threads
        self.pool = Pool.open(folder / "base", {f"e{k}": folder / f"expert{k}" for k in range(1, experts + 1)})
        self.space = CoefficientSpace([t.name for t in self.pool.merged], self.pool.names, granularity="tensor")
        self.recipe = self.space.decode(np.random.default_rng(0).uniform(0.05, 0.5, len(self.space.domain.names)))
        self.tasks = [(torch.randn(IMAGES, 3, 224, 224), torch.randn(100, 768)) for _ in range(tasks)]

    @cached_property
    def task_vectors(self) -> tuple[Any, list[tuple[int, str, Any, Any]]]:
        """A model, and of each parameter its group, name, base `shape` and task vectors `(K, *shape)`."""
        import torch

        from searchspaces.models.loading import load_model, targets

        model = load_model(self.pool.base.folder)
        places = {p.data_ptr(): (name, p.detach()) for name, p in model.named_parameters()}
        parts = []
        for group, place in targets(self.pool, model).items():  # granularity tensor: a group is a tensor
            name, base = places[place.parts[0].owner.data_ptr()]
            taus = torch.empty(len(self.pool.names), *base.shape)
            for tau, expert in zip(taus, self.pool.experts.values(), strict=True):
                torch.sub(expert.tensor(group), base, out=tau)
            parts.append((self.recipe.groups.index(group), name, base, taus))
        return model, parts


def entropy(output: Any, head: Any) -> Any:
    """The mean entropy of a task's class probabilities: AdaMerging's loss."""
    logits = output.last_hidden_state[:, 0] @ head.T / 30
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()


class Streaming:
    """The step as `optimizer.executors.worker` takes it."""

    def __init__(self, world: World) -> None:
        from searchspaces import Resident

        self.world = world
        self.resident = Resident(world.pool, threads=world.threads)

    def step(self) -> Any:
        """dL/dc, `(G, K)`."""
        self.resident.write(self.world.recipe)
        with self.resident.tracking():
            for images, head in self.world.tasks:
                entropy(self.resident.model(images), head).backward()
            return self.resident.gradient(self.world.recipe)


class Autograd:
    """The step by autograd through the merge. Base weights are the model's own, and nothing is held twice."""

    def __init__(self, world: World, stacked: bool) -> None:
        self.world, self.stacked = world, stacked
        self.model, self.parts = world.task_vectors

    def step(self) -> Any:
        """dL/dc, `(G, K)`."""
        import torch
        from torch.func import functional_call

        c = torch.tensor(self.world.recipe.coefficients, dtype=torch.float32, requires_grad=True)
        rows = c.unbind(0)
        merged = {name: self._merge(rows[g], base, taus) for g, name, base, taus in self.parts}
        losses = (entropy(functional_call(self.model, merged, (images,)), head) for images, head in self.world.tasks)
        if self.stacked:
            sum(losses).backward()
        else:
            for loss in losses:
                loss.backward(retain_graph=True)
        assert c.grad is not None
        return c.grad.double().numpy()

    def _merge(self, row: Any, base: Any, taus: Any) -> Any:
        if self.stacked:
            return base + (row @ taus.view(len(taus), -1)).view_as(base)
        total = base
        for coefficient, tau in zip(row, taus, strict=True):
            total = total + coefficient * tau
        return total


GRAPHS: dict[str, Callable[[World], Autograd]] = {
    "fusionbench": lambda world: Autograd(world, stacked=False),
    "stacked": lambda world: Autograd(world, stacked=True),
}


def passes(world: World, rounds: int) -> dict[str, float]:
    """Private memory after a step; seconds of the pass alone, and its bound."""
    import torch

    ours = Streaming(world)
    ours.step()
    held = private()
    tensors = [world.pool.base.tensor(t.name) for t in world.pool.merged]
    copies = [[torch.empty_like(t) for t in tensors] for _ in range(2)]
    resident, (images, head) = ours.resident, world.tasks[0]
    threads = torch.get_num_threads()
    with resident.tracking(), ThreadPoolExecutor(threads) as workers:
        entropy(resident.model(images), head).backward()
        torch.set_num_threads(1)  # threads share out tensors, in the copies as in the pass
        for copy in copies:
            copy_all(workers, copy, tensors)
        moves, found = [], []
        for _ in range(3 * rounds):
            moves.append(timed(lambda: copy_all(workers, copies[1], copies[0])))
            found.append(timed(lambda: resident.gradient(world.recipe)))
    once = min(moves) / 2  # reading a model
    if world.pool.adapters:
        with ThreadPoolExecutor(threads) as workers:
            torch.set_num_threads(1)
            factors = [stacked(world.pool, t.name) for t in world.pool.merged]
            bound = 2 * once + min(timed(lambda: list(workers.map(multiply, factors))) for _ in range(3 * rounds))
    else:
        bound = (len(world.pool.names) + 2) * once
    return {"private": held, "pass": min(found), "bound": bound}


def steps(world: World, rounds: int) -> dict[str, float]:
    """Seconds of a step of each kind, in turn."""
    import numpy as np

    kinds: dict[str, Any] = {"streaming": Streaming(world), **{name: make(world) for name, make in GRAPHS.items()}}
    expected = kinds["stacked"].step()
    for kind in kinds.values():
        assert np.linalg.norm(kind.step() - expected) < 1e-3 * np.linalg.norm(expected)
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, kind in kinds.items():
            times[name].append(timed(kind.step))
    return {name: min(found) for name, found in times.items()}


def peak(make: Callable[[World], Streaming | Autograd]) -> Callable[[World, int], dict[str, float]]:
    """The most private memory that a process has while it takes two steps of one kind."""

    def measure(world: World, rounds: int) -> dict[str, float]:
        step, found, over = make(world).step, [0], threading.Event()

        def watch() -> None:
            while not over.wait(0.002):
                lines = Path("/proc/self/status").read_text().splitlines()
                found[0] = max(found[0], *(int(x.split()[1]) * 1024 for x in lines if x.startswith("RssAnon:")), 0)

        watcher = threading.Thread(target=watch)
        watcher.start()
        for _ in range(2):
            step()
        over.set()
        watcher.join()
        return {"peak": found[0]}

    return measure


MEASURES: dict[str, Callable[[World, int], dict[str, float]]] = {
    "passes": passes,
    "steps": steps,
    "peak of streaming": peak(Streaming),
    **{f"peak of {name}": peak(make) for name, make in GRAPHS.items()},
}


if __name__ == "__main__":
    sys.exit(main())
