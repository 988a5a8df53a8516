"""How close to the speed of memory is a merge, and how much memory does a worker hold?

Makes a Llama-shaped pool of random weights in a temporary folder and, per dtype in a fresh process, times
`Resident.write` of changing recipes against the bound `(K + 2) * bytes / copy bandwidth`: base and K experts are read
once and the result is written once. The bandwidth is that of `Tensor.copy_` over as much memory, measured between the
writes with the same number of threads; a copy of N bytes counts 2N, its reads and its writes.

    python benchmarks/materialise.py --parameters 100e6 --experts 4

With `--rank R` the experts are LoRA adapters of rank R on every linear layer. The bound then is the time of reading the
base and writing the result once, and of the adapters' products by torch's own matrix product on one thread, all terms
of a tensor in one call, into memory that is in cache.

    python benchmarks/materialise.py --parameters 100e6 --experts 4 --rank 16
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

LIMITS = {"float32": 1.3, "bfloat16": 1.5}
LORA_LIMIT = 2.0
SPARE = 64e6  # bytes of private memory beyond an empty worker and one model


def main() -> int:
    """Print the table; the exit code is 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description="time and memory of materialising a recipe")
    parser.add_argument("--parameters", type=float, default=100e6)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--rank", type=int, default=0, help="of adapters; 0: the experts are whole models")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # a folder: the child process
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure), args.experts, args.threads, args.rounds, args.rank)))
        return 0
    failed = False
    kind = f"adapters of rank {args.rank}" if args.rank else "experts"
    print(f"{args.experts} {kind}, {args.threads} thread(s), medians of {args.rounds} writes")
    print("dtype     parameters  write ms  bound ms  ratio  limit        copy GB/s  torch x  private MB (limit)")
    for dtype, limit in LIMITS.items():
        limit = LORA_LIMIT if args.rank else limit
        with tempfile.TemporaryDirectory() as folder:
            make_pool(Path(folder), dtype, args.parameters, args.experts, args.rank)
            command = [sys.executable, __file__, "--measure", folder, "--experts", str(args.experts)]
            command += ["--threads", str(args.threads), "--rounds", str(args.rounds)]
            command += ["--rank", str(args.rank)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
            row = json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)
        allowed = row["empty"] + row["model"] + row["adapters"] + SPARE
        fast, small = row["ratio"] <= limit, row["private"] <= allowed
        failed = failed or not (fast and small)
        bound, write = row["bound"] * 1e3, row["write"] * 1e3
        print(
            f"{dtype:9} {row['parameters'] / 1e6:8.1f} M {write:9.1f} {bound:9.1f} {row['ratio']:6.2f}"
            f"  {limit:.1f} {'PASS' if fast else 'FAIL'} {row['bandwidth'] / 1e9:14.1f} {row['peer']:8.1f}"
            f"  {row['private'] / 1e6:.0f} ({allowed / 1e6:.0f}) {'PASS' if small else 'FAIL'}"
        )
        if args.rank:
            size = row["adapters"] / 1e6
            print(f"{'':10}{row['product'] * 1e3:.1f} ms of the bound are products; adapters {size:.1f} MB")
    print("ratio: write / bound; torch x: `out = out + c * (expert - base)`, tensor by tensor, over the bound")
    return int(failed)


def make_pool(folder: Path, dtype: str, parameters: float, experts: int, rank: int = 0) -> None:
    """Write a base and experts of random weights with at least that many parameters; adapters where there is a rank."""
    import torch
    import transformers
    from safetensors.torch import save_file

    width, vocabulary = 768, 32_000
    embeddings, layer = 2 * vocabulary * width, 4 * width * width + 3 * width * 2048 + 2 * width
    layers = max(1, -(-int(parameters - embeddings) // layer))
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=12,
        intermediate_size=2048, architectures=["LlamaForCausalLM"], dtype=dtype,
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in transformers.LlamaForCausalLM(config).state_dict().items()}
    for k in range(experts + 1):
        generator = torch.Generator().manual_seed(k)
        home = folder / (f"expert{k}" if k else "base")
        home.mkdir()
        if k and rank:
            make_adapter(home, {n: s for n, s in shapes.items() if "proj" in n}, rank, getattr(torch, dtype), generator)
            continue
        tensors = {n: 0.02 * torch.randn(s, generator=generator) for n, s in shapes.items()}
        save_file(
            {n: t.to(getattr(torch, dtype)) for n, t in tensors.items()}, home / "model.safetensors", {"format": "pt"}
        )
        config.save_pretrained(home)


def make_adapter(home: Path, shapes: dict, rank: int, dtype, generator) -> None:  # type: ignore[no-untyped-def, type-arg]
    """Write a LoRA of these weights, its factors random."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for name, (rows, columns) in shapes.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = 0.02 * torch.randn(rank, columns, generator=generator)
        tensors[f"{module}.lora_B.weight"] = 0.02 * torch.randn(rows, rank, generator=generator)
    save_file({n: t.to(dtype) for n, t in tensors.items()}, home / "adapter_model.safetensors", {"format": "pt"})
    (home / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}))


def private() -> int:
    """Anonymous memory of this process, in bytes.

    Not `Private_Dirty`: that counts file pages, too, which nobody else has mapped and the disk has yet to receive.
    """
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def measure(folder: Path, experts: int, threads: int, rounds: int, rank: int) -> dict[str, float]:
    """Times in seconds and sizes in bytes of one worker over the pool in `folder`."""
    import numpy as np
    import torch
    import transformers

    from searchspaces import CoefficientSpace, Pool, Resident

    torch.set_num_threads(1)  # several threads share out tensors, in the copies as in the merge
    workers = ThreadPoolExecutor(threads)
    assert transformers.LlamaForCausalLM  # what an empty worker has imported too
    empty = private()
    pool = Pool.open(folder / "base", {f"e{k}": folder / f"expert{k}" for k in range(1, experts + 1)})
    space = CoefficientSpace([t.name for t in pool.merged], pool.names)
    resident = Resident(pool, threads=threads)
    rng = np.random.default_rng(0)
    recipes = [space.decode(rng.uniform(0.05, 1.0, len(space.domain.names))) for _ in range(rounds + 2)]
    for recipe in recipes[:2]:
        resident.write(recipe)
    held = private()
    tensors = [pool.base.tensor(t.name) for t in pool.merged]
    copies = [[torch.empty_like(t) for t in tensors] for _ in range(2)]
    for copy in copies:
        copy_all(workers, copy, tensors)
    writes, moves, multiplied = [], [], []
    factors = [stacked(pool, t.name) for t in pool.merged] if rank else []
    for recipe in recipes[2:]:
        moves.append(timed(lambda: copy_all(workers, copies[1], copies[0])))
        multiplied.append(timed(lambda: list(workers.map(multiply, factors))))
        writes.append(timed(lambda r=recipe: resident.write(r)))
    bandwidth = 2 * pool.bytes / statistics.median(moves)
    whole = 2 + (0 if rank else experts)  # models that are read or written
    product = statistics.median(multiplied)
    bound = whole * pool.bytes / bandwidth + product
    peer = statistics.median(timed(lambda: textbook(pool, copies[0])) for _ in range(2))
    return {
        "parameters": pool.parameters, "model": pool.bytes, "empty": empty, "private": held, "bandwidth": bandwidth,
        "write": statistics.median(writes), "bound": bound, "peer": peer / bound, "product": product,
        "adapters": sum(a.bytes for a in pool.adapters.values()),
        # each write against the copy just before it: a neighbour who slows one slows the other
        "ratio": statistics.median(w / (whole * m / 2 + p) for w, m, p in zip(writes, moves, multiplied, strict=True)),
    }  # fmt: skip


def copy_all(workers: ThreadPoolExecutor, targets: list, sources: list) -> None:  # type: ignore[type-arg]
    """Copy tensors, shared out among threads."""
    list(workers.map(lambda pair: pair[0].copy_(pair[1]), zip(targets, sources, strict=True)))


def textbook(pool, outs: list) -> None:  # type: ignore[no-untyped-def, type-arg]
    """The expression that papers print, in fp32."""
    for out, info in zip(outs, pool.merged, strict=True):
        base = pool.base.tensor(info.name).float()
        total = base
        for expert in pool.experts.values():
            total = total + 0.3 * (expert.tensor(info.name).float() - base)
        out.copy_(total)


def stacked(pool, name: str):  # type: ignore[no-untyped-def]
    """All adapters' factors of a tensor as one product, `(m, K r)` and `(K r, n)`, fp32; None where there are none."""
    import torch

    parts = [p for e in pool.experts.values() if (p := e.source(name)) is not None]
    return (
        (torch.cat([p.left.float() for p in parts], 1), torch.cat([p.right.float() for p in parts])) if parts else None
    )


def multiply(factors) -> None:  # type: ignore[no-untyped-def]
    """One tensor's product, in pieces that stay in cache."""
    import torch

    if factors is not None:
        left, right = factors
        step = max(32, (1 << 17) // right.shape[1])
        out = torch.empty(step, right.shape[1])
        for rows in left.split(step):
            torch.mm(rows, right, out=out[: len(rows)])


def timed(work) -> float:  # type: ignore[no-untyped-def]
    """Seconds that a call takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main())
