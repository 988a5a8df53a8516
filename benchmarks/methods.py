"""What does a candidate of each method cost beside one of task arithmetic, and what does the first one cost?

Makes a Llama-shaped pool of random weights in a temporary folder, as `materialise.py` does. For each method of the
table, in a fresh process with an empty cache:

- first: seconds until the first candidate is written, which prepares what depends on models alone; cache: what that
  left on the disk, as a share of the experts' size.
- coefficients: a write of changing coefficients, options at their defaults, over a write of task arithmetic just
  before it. Options: the same with all numbers that can be searched drawn anew for every candidate.

Sparsifying and consensus methods are to take at most 4 times as long as task arithmetic, those that process task
vectors once 2 times. Methods that merge at most so many experts are compared with task arithmetic of as many. Methods
that merge with statistics get made-up ones: squares of random numbers, and Grams of random inputs.

    python benchmarks/methods.py --parameters 100e6 --experts 4 8
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from searchspaces import Pool

sys.path.insert(0, str(Path(__file__).parent.parent))

LIMIT, PROCESSED_LIMIT = 4.0, 2.0


def main() -> int:
    """Print the table; the exit code is 1 where a limit is missed."""
    from benchmarks.materialise import make_pool
    from searchspaces.methods import table

    parser = argparse.ArgumentParser(description="seconds a candidate, by method")
    parser.add_argument("--parameters", type=float, default=100e6)
    parser.add_argument("--experts", type=int, nargs="+", default=[4])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--methods", nargs="+", default=sorted(table()))
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # a folder: the child process
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure), args.methods[0], args.experts[0], args.threads, args.rounds)))
        return 0
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        make_pool(Path(folder), args.dtype, args.parameters, max(args.experts))
        for experts in args.experts:
            print(f"{experts} experts, {args.dtype}, {args.threads} thread(s), medians of {args.rounds} writes")
            print(
                "method             ms  x task arithmetic: coefficients  options  limit        first s  cache x experts"
            )
            for method in args.methods:
                failed = not tell(method, child(folder, method, experts, args)) or failed
    return int(failed)


def tell(method: str, row: dict[str, float]) -> bool:
    """Print a row of the table; whether it is within its limit."""
    limit = PROCESSED_LIMIT if row["processes"] else LIMIT
    fine = max(row["coefficients"], row["options"] or 0.0) <= limit
    options = f"{row['options']:8.2f}" if row["options"] else "        "
    print(
        f"{method:16} {row['write'] * 1e3:5.0f} {row['coefficients']:31.2f} {options}  {limit:.0f} "
        f"{'PASS' if fine else 'FAIL'} {row['first']:14.1f} {row['cache']:16.3f}",
        flush=True,
    )
    return fine


def child(folder: str, method: str, experts: int, args: argparse.Namespace) -> dict[str, float]:
    """What `measure` finds in a fresh process, with an empty cache."""
    command = [sys.executable, __file__, "--measure", folder, "--experts", str(experts), "--methods", method]
    command += ["--threads", str(args.threads), "--rounds", str(args.rounds)]
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            **os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": cache
        }  # fmt: skip
        found: dict[str, float] = json.loads(
            subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]
        )
    return found


def measure(folder: Path, method: str, experts: int, threads: int, rounds: int) -> dict[str, object]:
    """Seconds, ratios, and sizes of one method over the pool in `folder`."""
    import numpy as np
    import torch

    from optimizer.driver import at
    from searchspaces import CoefficientSpace, Pool, Resident, methods, processed
    from searchspaces.option import Number

    torch.set_num_threads(threads)
    kind = methods.load(method)
    least, most = kind.experts
    count = max(least, min(experts, most or experts))
    pool = Pool.open(folder / "base", {f"e{k}": folder / f"expert{k}" for k in range(1, count + 1)})
    hashes, names = pool.hashes(), [t.name for t in pool.merged]
    before = cached()
    searched = {
        name: "search"
        for name, spec in kind.options.items()
        if isinstance(spec, Number) and not spec.prepared and spec.search is not None
    }

    def recipes(method: str, options: dict[str, str]) -> list:  # type: ignore[type-arg]
        space = CoefficientSpace(names, pool.names, method, options, granularity="layer", hashes=hashes)
        rng = np.random.default_rng(0)
        return [space.decode(at(space.domain, rng.random(len(space.domain.low)))) for _ in range(rounds + 1)]

    gathers = kind.gathers if kind.processes else ""  # type: ignore[attr-defined]
    given = statistics_of(pool, gathers, folder / "statistics") if gathers else {}
    resident = Resident(
        pool, threads=threads, pools=lambda r: processed(pool, r.method, r.options, r.models, statistics=given)
    )
    plain = recipes("task_arithmetic", {})
    resident.write(plain[0])
    ours = recipes(method, {})
    first = timed(lambda: resident.write(ours[0]))
    size = (cached() - before) / sum(e.bytes for e in pool.experts.values())
    found: dict[str, object] = {"processes": kind.processes, "first": first, "cache": size}
    for what, made in (("coefficients", ours), ("options", recipes(method, searched) if searched else [])):
        pairs = [
            (timed(lambda a=a: resident.write(a)), timed(lambda b=b: resident.write(b)))
            for a, b in zip(plain[1:], made[1:], strict=False)
        ]
        found[what] = statistics.median(b / a for a, b in pairs) if pairs else None
        if what == "coefficients":
            found["write"] = statistics.median(b for _, b in pairs)
    return found


def statistics_of(pool: Pool, gathers: str, home: Path) -> dict[str, Path]:
    """Folders of made-up statistics, by expert, as `searchspaces.facts.gathered` has them; of linear layers Grams."""
    import torch
    from safetensors.torch import save_file

    found = {}
    for k, name in enumerate(pool.names):
        draw, tensors = torch.Generator().manual_seed(k), {}
        for info in pool.merged:
            if gathers == "fisher":
                tensors[info.name] = torch.randn(info.shape, generator=draw).square_()
            elif info.name.endswith("_proj.weight"):
                inputs = torch.randn(512, info.shape[1], generator=draw)
                tensors[info.name] = inputs.T @ inputs / len(inputs)
        found[name] = home / gathers / name
        found[name].mkdir(parents=True, exist_ok=True)
        save_file(tensors, found[name] / "statistics.safetensors")
    return found


def cached() -> int:
    """Bytes in the cache."""
    return sum(f.stat().st_size for f in Path(os.environ["XDG_CACHE_HOME"]).rglob("*") if f.is_file())


def timed(work) -> float:  # type: ignore[no-untyped-def]
    """Seconds that a call takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main())
