"""Is the MiniLM pool what it should be? Held-out accuracy of the base and of each expert, read from the files alone.

python benchmarks/minilm/evaluate.py benchmarks/data/minilm
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import BertModel

HERE = Path(__file__).parent


def main() -> None:
    """Print a table: tasks by base, own expert, and the standard error of the latter."""
    parser = argparse.ArgumentParser(description="Accuracy of the base and of each expert on its own task.")
    parser.add_argument("pool", type=Path, nargs="?", default=HERE.parent / "data/minilm")
    parser.add_argument("--split", choices=("heldout", "calibration"), default="heldout")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["TRANSFORMERS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    from training import load, quiet

    quiet()
    experts = sorted(folder for folder in (options.pool / "experts").glob("[!.]*") if folder.is_dir())
    if not experts:
        raise SystemExit(
            f"{options.pool}: expected folders experts/NAME, found none; run build.py --out {options.pool}"
        )
    base = load(options.pool / "base")
    rows = []
    print(f"{'task':10} {'items':>5} {'base':>6} {'expert':>7} {'stderr':>7}")
    for folder in experts:
        items = options.pool / "data" / f"{folder.name}.{options.split}.jsonl"
        count = items.read_text("utf-8").count("\n")
        of_base, own = (accuracy(model, options.pool / "base", folder, items) for model in (base, load(folder)))
        rows.append((of_base, own))
        error = (own * (1 - own) / count) ** 0.5
        print(f"{folder.name:10} {count:5} {of_base:6.3f} {own:7.3f} {error:7.3f}", flush=True)
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    print(f"{'mean':10} {'':5} {means[0]:6.3f} {means[1]:7.3f}")


def accuracy(model: BertModel, tokenizer: Path, head: Path, items: Path) -> float:
    """Share of items that `model` under the head of the expert's folder `head` puts into their class; float32."""
    from safetensors.torch import load_file
    from training import all_features, encode

    tensors = load_file(head / "model.safetensors")
    numbers = json.loads((head / "config.json").read_text("utf-8"))["label2id"]
    lines = [json.loads(line) for line in items.read_text("utf-8").split("\n") if line]
    encoded = encode(tokenizer, [(line["text"], numbers[line["label"]]) for line in lines])
    logits = all_features(model, encoded, bf16=False) @ tensors["classifier.weight"].T + tensors["classifier.bias"]
    return float((logits.argmax(1) == encoded.labels).float().mean())


if __name__ == "__main__":
    main()
