"""What does a merge of language experts gain? The pool searched, its front, and the exported merge read by others.

    python benchmarks/smollm2/build.py && python benchmarks/smollm2/search.py

Prints held-out scores with standard errors of the base, of each expert, of their average and of the front; then what
transformers says of the exported checkpoint's held-out losses, and PEFT of the same merge as one adapter, by a plain
loop over their models. 1 where these differ from the front's by more than rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1])]
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch  # noqa: E402

LIMIT = 1e-3  # nats a token, between our held-out loss and that of a plain loop over transformers' model


def main() -> int:
    """Search, or go on with a search; print, export, reload."""
    parser = argparse.ArgumentParser(description="Search the language pool, and read its best merge back.")
    parser.add_argument("--pool", type=Path, default=HERE.parent / "data/smollm2")
    parser.add_argument("--evaluations", type=int, help="default: the job's")
    parser.add_argument(
        "--name", default="search", help="the run, in the pool's folder runs; one that is there goes on"
    )
    options = parser.parse_args()
    from optimizer import Job, Run

    job = Job.load(options.pool / "job.yaml")
    if options.evaluations:
        job = job.model_copy(update={"budget": job.budget.model_copy(update={"evaluations": options.evaluations})})
    folder = options.pool / "runs" / options.name
    job = job.model_copy(update={"name": options.name})
    run = Run(folder) if folder.is_dir() else Run.create(job, folder.parent)
    run.search()
    results = run.results()
    alone = [c for c in results.candidates.values() if c.is_anchor]
    print(f"{len(results.candidates)} candidates, {len(results.failures)} failed; {len(results.on_front)} on the front")
    names = [o.name for o in results.objectives]
    print(f"{'held out':28}" + "".join(f"{name:>19}" for name in names))
    for candidate in [*alone, *(c for c in results.on_front if not c.is_anchor)]:
        scores = candidate.heldout
        cells = [f"{scores[n].value:10.4f} +- {scores[n].stderr:.4f}" if n in scores else f"{'-':>19}" for n in names]
        print(f"{candidate.label[:28]:28}" + "".join(f"{cell:>19}" for cell in cells))
    best = results.pick("best")
    print(f"best mean: {best.label}, coefficients {results.coefficients(best)[2].round(3).tolist()}")
    for target in ("merged", "adapter"):
        shutil.rmtree(options.pool / target, ignore_errors=True)
    run.export(best, options.pool / "merged")
    _, adapter = run.export_adapter(best, options.pool / "adapter")
    print(f"exported: merged/, and adapter/, which is {adapter.describe()}")
    return compare(options.pool, run, best)


def compare(pool: Path, run: Any, best: Any) -> int:
    """Held-out losses of both exports by a plain loop, beside the front's."""
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pool / "merged")
    merged = AutoModelForCausalLM.from_pretrained(pool / "merged").eval()
    adapted = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(pool / "base"), pool / "adapter"
    ).eval()
    splits = json.loads((run.folder / "splits.json").read_text())
    worst = 0.0
    print(f"{'held-out loss':14}{'front':>10}{'merged':>10}{'adapter':>10}")
    for entry in (e for e in run.job.evaluators if e.kind == "language"):
        rows = [json.loads(line)["text"] for line in (pool / entry.options["data"]).read_text("utf-8").splitlines()]
        chosen = [rows[i] for i in splits[entry.name]["heldout"]]
        found = [loss(model, tokenizer, chosen, entry.options["max_length"]) for model in (merged, adapted)]
        front = best.heldout[f"{entry.name}.loss"].value
        worst = max(worst, *(abs(x - front) for x in found))
        print(f"{entry.name:14}{front:10.4f}{found[0]:10.4f}{found[1]:10.4f}")
    print(f"largest difference: {worst:.1e}, limit {LIMIT:.0e}: {'PASS' if worst <= LIMIT else 'FAIL'}")
    return int(worst > LIMIT)


@torch.inference_mode()
def loss(model: Any, tokenizer: Any, rows: list[str], longest: int) -> float:
    """Nats a token, one text at a time."""
    total, count = 0.0, 0
    for text in rows:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=longest)["input_ids"]
        total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return total / count


if __name__ == "__main__":
    raise SystemExit(main())
