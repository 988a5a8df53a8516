"""Is what `check --paper` says of memory and time what then happens?

Makes a Llama-shaped pool of random weights in a temporary folder and, per dtype in a fresh process, sets beside each
other what paper says of a worker (without the batch, which is an estimate) and of one merge, and what a resident model
holds and `Resident.write` takes. Bandwidth and merge are measured several times in turn: other work disturbs both.

    python benchmarks/paper.py --parameters 100e6 --experts 4
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

sys.path.insert(0, str(Path(__file__).parent.parent))

JOB = """
models: {{base: base, experts: {{{experts}}}}}
evaluators: [{{kind: language, name: l, data: none.jsonl, text: text}}]
objectives: [l.loss]
executor: {{kind: inline, threads: {threads}}}
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="paper beside what happens")
    parser.add_argument("--parameters", type=float, default=100e6)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # a folder: the child process
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure), args.rounds)))
        return
    from materialise import make_pool

    print("dtype      merge ms: paper  measured  ratio   worker MB: paper  held at most")
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            make_pool(Path(folder), dtype, args.parameters, args.experts)
            names = ", ".join(f"e{k}: expert{k}" for k in range(1, args.experts + 1))
            (Path(folder) / "job.yaml").write_text(JOB.format(experts=names, threads=args.threads))
            command = [sys.executable, __file__, "--measure", folder, "--rounds", str(args.rounds)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
            row = json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)
        print(
            f"{dtype:10}{row['paper'] * 1e3:16.0f} {row['write'] * 1e3:9.0f} {row['write'] / row['paper']:6.2f}"
            f"{row['worker'] / 1e6:19.0f} {row['held'] / 1e6:13.0f}"
        )


def measure(folder: Path, rounds: int) -> dict[str, float]:
    """In this process: medians of the merge's seconds on paper and in fact, and a worker's bytes likewise."""
    import torch

    from optimizer import Job
    from optimizer.jobs.checking import _private_bytes
    from optimizer.jobs.needs import Needs
    from optimizer.jobs.paper import on_paper
    from optimizer.jobs.problem import open_pool
    from searchspaces import CoefficientSpace, Resident

    job = Job.load(folder / "job.yaml")
    torch.set_num_threads(job.executor.threads)
    pool = open_pool(job)
    space = CoefficientSpace([t.name for t in pool.merged], pool.names, start=0.3)
    recipe = space.decode(space.domain.start)
    before = _private_bytes()
    resident = Resident(pool, threads=job.executor.threads)
    resident.write(recipe)
    held = _private_bytes() - before
    paper, write = [], []
    for _ in range(rounds):
        paper.append(on_paper(job)["merge_seconds"])
        for _ in range(3):
            start = time.perf_counter()
            resident.write(recipe)
            write.append(time.perf_counter() - start)
    worker = Needs.of(job, pool).certain
    return {"paper": statistics.median(paper), "write": statistics.median(write), "worker": worker, "held": held}


if __name__ == "__main__":
    main()
