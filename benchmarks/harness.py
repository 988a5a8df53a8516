"""What does a candidate cost beside its forward passes, and are the numbers the harness's on a real model?

Without arguments: a Llama of about 98 M random weights and four experts; 64 documents with 4 choices each, of one token
and of several. `write + score` against `write + raw forwards`, which are 256 sequences sorted by length and nothing
more; against the forwards of the very sequences that the evaluator runs (a context once for all its choices); and
against these with the head at none but the positions that are read, the least that can be done: at most 1.15 of any.
Beside it `simple_evaluate`, and the write by mergekit in an environment of its own (see `mergekit_peer.py`). Medians
of interleaved rounds.

    python benchmarks/harness.py [--documents 64] [--rounds 3] [--dtype float32] [--mergekit PYTHON]

With `--smollm2`: scores, standard errors and per-item results of five kinds of task on SmolLM2-135M, ours and
`simple_evaluate`'s. The model is that of `benchmarks/smollm2/build.py`, which fetches and converts it.

    python benchmarks/smollm2/build.py --base-only && python benchmarks/harness.py --smollm2
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests"), str(HERE)]
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np  # noqa: E402
import torch  # noqa: E402

LIMIT = 1.15
EXPERTS = 4
TASK = """
task: bench
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_target: label
doc_to_choice: CHOICES
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
CHOICES = {"one token": ["A", "B", "C", "D"], "several tokens": ["thing", "other", "never", "water"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--mergekit", help="a Python that has mergekit 0.1.5")
    parser.add_argument("--smollm2", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        if args.smollm2:
            return equality(Path(folder))
        failed = cost(Path(folder), args.documents, args.rounds, args.dtype)
        if args.mergekit:
            print(f"mergekit's write: {mergekit(Path(folder), args.mergekit, args.rounds, args.dtype):.3f} s")
        return failed


def cost(home: Path, count: int, rounds: int, dtype: str) -> int:
    """Print the table of times; 1 where the limit is missed."""
    from materialise import make_pool
    from pico import byte_tokenizer

    from searchspaces import CoefficientSpace, Pool, Resident

    make_pool(home, dtype, 97.5e6, EXPERTS)
    byte_tokenizer(home / "base")
    pool = Pool.open(home / "base", {f"e{k}": home / f"expert{k}" for k in range(1, EXPERTS + 1)})
    resident = Resident(pool, "cpu", getattr(torch, dtype), 1)
    space = CoefficientSpace([t.name for t in pool.merged], pool.names, hashes=pool.hashes())
    draw = np.random.default_rng(0)
    size = sum(p.numel() for p in resident.model.parameters())
    print(f"{size / 1e6:.1f} M parameters, {dtype}, {EXPERTS} experts, {count} documents x 4 choices, {rounds} rounds")
    print(
        "choices          write s   score s   raw s  ratio   same sequences s  ratio   least s  ratio  (limit 1.15)"
        "  simple_evaluate s"
    )
    failed = False
    for name, choices in CHOICES.items():
        steps = prepare(home, resident, count, choices)
        times: dict[str, list[float]] = {step: [] for step in ("write", *steps)}
        for _ in range(rounds):
            recipe = space.decode(space.domain.low + draw.random(len(space.domain.low)) * 0.5)
            times["write"].append(timed(partial(resident.write, recipe)))
            for step, run in steps.items():
                times[step].append(timed(run))
        write, score, raw, same, least, theirs = (statistics.median(values) for values in times.values())
        ratios = [(write + score) / (write + base) for base in (raw, same, least)]
        failed = failed or max(ratios) > LIMIT
        print(
            f"{name:15} {write:8.3f} {score:9.3f} {raw:7.3f} {ratios[0]:6.2f} {same:18.3f} {ratios[1]:6.2f}"
            f" {least:9.3f} {ratios[2]:6.2f}"
            f"  {'FAIL' if max(ratios) > LIMIT else 'PASS':12} {theirs:18.3f}",
            flush=True,
        )
    return int(failed)


def mergekit(home: Path, python: str, rounds: int, dtype: str) -> float:
    """The median of mergekit's seconds for a candidate of the same pool."""
    command = [python, str(HERE / "mergekit_peer.py"), str(home), "--experts", str(EXPERTS)]
    command += ["--rounds", str(rounds), "--dtype", dtype]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{python} does not run mergekit: {done.stderr[-600:]}")
    return statistics.median(map(float, done.stdout.split()))


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def prepare(home: Path, resident: Any, count: int, choices: list[str]) -> dict[str, Callable[[], Any]]:
    """The steps to be timed, over one task file."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    from evaluators.evaluator import Setting
    from evaluators.harness.evaluator import Harness

    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz "
    texts = ["".join(draw.choices(letters, k=draw.randint(16, 32))) + ":" for _ in range(count)]
    rows = [{"text": text, "label": i % 4} for i, text in enumerate(texts)]
    tasks = home / f"tasks-{choices[0]}"
    tasks.mkdir()
    (tasks / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = TASK.replace("DATA", str(tasks / "data.jsonl")).replace("CHOICES", json.dumps(choices))
    (tasks / "bench.yaml").write_text(text)
    made = Harness("bench", {"task": f"{tasks}/bench"}, home)
    made.prepare(Setting(resident.model, home / "base", torch.device("cpu"), {}, 32))
    every = np.sort(np.concatenate([made.splits.calibration, made.splits.heldout]))
    tokenizer = AutoTokenizer.from_pretrained(home / "base")
    lm = HFLM(pretrained=resident.model, tokenizer=tokenizer, backend="causal", batch_size=32)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    encoded = sorted((tokenizer.encode(f"{t} {c}")[:-1] for t in texts for c in choices), key=len)
    batches = [torch.tensor(padded(encoded[i : i + 32])) for i in range(0, len(encoded), 32)]
    sequences = list(made.sequences())

    @torch.inference_mode()
    def raw() -> None:
        for batch in batches:
            resident.model(batch, use_cache=False)

    @torch.inference_mode()
    def same() -> None:
        for inputs, _ in sequences:
            resident.model(**inputs)

    @torch.inference_mode()
    def least() -> None:
        for inputs, read in sequences:
            states = resident.model.base_model(**inputs).last_hidden_state
            resident.model.lm_head(states.flatten(0, 1)[read])

    return {
        "score": lambda: made.score(resident.model, every),
        "raw": raw,
        "same": same,
        "least": least,
        "theirs": lambda: simple_evaluate(model=lm, tasks=["bench"], task_manager=manager),
    }


def padded(rows: list[list[int]]) -> list[list[int]]:
    longest = max(map(len, rows))
    return [row + [0] * (longest - len(row)) for row in rows]


def equality(home: Path) -> int:
    """Print ours beside theirs on SmolLM2-135M; 1 where they differ by more than rounding."""
    import harness_world as tests

    model = HERE / "data/smollm2/base"
    if not model.is_dir():
        raise SystemExit(f"no model in {model}; run benchmarks/smollm2/build.py --base-only first")
    (home / "base").symlink_to(model)
    files = tests.write(home, 8, 4)
    print(f"SmolLM2-135M, float32, {files} task files, 8 documents each")
    print("task        metric                     ours       harness    stderr     harness    items apart by")
    worst = 0.0
    for task in ("choices", "endings", "last_word", "rolling", "echo", "say", "both"):
        scores = tests.ours(home, task)
        found = tests.theirs(home, task)
        for name, ours, wanted, stderr, apart in tests.compared(scores, found, task):
            print(
                f"{task:11} {name:22} {ours.value:10.6f} {wanted:10.6f} {shown(ours.stderr)} {shown(stderr)}"
                f" {apart:12.1e}"
            )
            pairs = [(ours.value, wanted)]
            if ours.stderr is not None and stderr is not None:
                pairs.append((ours.stderr, stderr))
            elif ours.stderr is not stderr:
                worst = float("inf")  # one of the two says that it is not known
            gaps = [abs(x / y - 1) if y else abs(x) for x, y in pairs] + [apart]
            worst = max(worst, *(gap for gap in gaps if gap == gap))  # NaN: no per-item values
    print(f"largest difference: {worst:.1e}, limit 1e-3: {'PASS' if worst <= 1e-3 else 'FAIL'}")
    return int(worst > 1e-3)


def shown(stderr: float | None) -> str:
    """In ten characters."""
    return f"{'-':>10}" if stderr is None else f"{stderr:10.6f}"


if __name__ == "__main__":
    raise SystemExit(main())
