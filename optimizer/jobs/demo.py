"""What can be tried at once, offline? A tiny ViT base and four experts, trained on digits, and their job."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import JobError
from optimizer.jobs.job import Job
from optimizer.record.folders import LEDGER

Images = NDArray[np.float32]  # (n, 8, 8), in [0, 1]
Labels = NDArray[np.int64]  # (n,)

# what each task makes of its own quarter of the images: nobody sees another's
TASKS: dict[str, tuple[Callable[[Images], Images], Callable[[Labels], Labels], list[str]]] = {
    "upright": (lambda x: x, lambda y: y, [str(d) for d in range(10)]),
    "rotated": (lambda x: np.rot90(x, 1, (1, 2)), lambda y: y, [str(d) for d in range(10)]),
    "negative": (lambda x: 1 - x, lambda y: y, [str(d) for d in range(10)]),
    "parity": (lambda x: x[:, :, ::-1], lambda y: y % 2, ["even", "odd"]),
}
NAME = "digits"  # of its run
PRETRAINED, TRAINED = 100, 240  # images a task for the joint base, and for each expert; the rest is scored on
BASE_STEPS, EXPERT_STEPS, BATCH = 300, 100, 48
BASE_RATE, EXPERT_RATE = 2e-3, 3e-4  # gentle: experts that stay near their base merge well


def prepare(out: Path, evaluations: int, say: Callable[[str], None]) -> Job:
    """Train and save the models (unless they are there), write data and job file under `out`; returns the job."""
    job_file = out / "job.yaml"
    if (out / "runs").exists():
        run = out / "runs" / NAME
        there = (run / LEDGER).is_file()
        on = f"'{shlex.join(['mergeopt', 'resume', str(run)])}' goes on with it, or " if there else ""
        raise JobError(f"{out}/runs exists already: the demo has been run here; {on}remove {out}, or say --out ANOTHER")
    data = _digits()
    if not (out / "experts" / "parity" / "model.safetensors").is_file():
        _train(out, data, say)
    for name, (images, labels) in data.items():
        _save_items(out / "data" / f"{name}.parquet", images[TRAINED:], labels[TRAINED:], TASKS[name][2])
    job_file.write_text(_job_text(evaluations))
    say(f"wrote {job_file}")
    return Job.load(job_file)


def _digits() -> dict[str, tuple[Images, Labels]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise JobError("the demo needs scikit-learn; pip install 'mergeopt[demo]'") from error
    found: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images, labels = (found.images[order] / 16).astype(np.float32), found.target[order].astype(np.int64)
    quarters = zip(np.array_split(images, len(TASKS)), np.array_split(labels, len(TASKS)), strict=True)
    return {
        name: (np.ascontiguousarray(see(x)), np.ascontiguousarray(say(y)))
        for (name, (see, say, _)), (x, y) in zip(TASKS.items(), quarters, strict=True)
    }


def _train(out: Path, data: dict[str, tuple[Images, Labels]], say: Callable[[str], None]) -> None:
    """The base jointly on a few images of every task; then an expert a task, under the head it was trained with."""
    import torch
    import transformers
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    threads = torch.get_num_threads()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)  # tensors this small are slower on more
    shape = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    pixels = {"image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_dropout_prob": 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = {}
        trunk = ViTModel(ViTConfig(**shape, **pixels), add_pooling_layer=False)
        for name, (_, _, classes) in TASKS.items():
            labels = {"id2label": dict(enumerate(classes)), "label2id": {c: i for i, c in enumerate(classes)}}
            models[name] = ViTForImageClassification(ViTConfig(**shape, **pixels, **labels))
            models[name].vit = trunk
        say("training the base on a few images of every task")
        few = {name: (x[:PRETRAINED], y[:PRETRAINED]) for name, (x, y) in data.items()}
        _fit(
            models,
            few,
            [*trunk.parameters(), *(p for m in models.values() for p in m.classifier.parameters())],
            BASE_STEPS,
            BASE_RATE,
        )
        trunk.save_pretrained(out / "base")
        start = {k: v.clone() for k, v in trunk.state_dict().items()}
        for name, (x, y) in data.items():
            say(f"training the expert {name!r}")
            trunk.load_state_dict(start)
            _fit(
                {name: models[name]},
                {name: (x[:TRAINED], y[:TRAINED])},
                list(trunk.parameters()),
                EXPERT_STEPS,
                EXPERT_RATE,
            )
            models[name].save_pretrained(out / "experts" / name)
    torch.set_num_threads(threads)


def _fit(
    models: dict[str, Any], data: dict[str, tuple[Images, Labels]], parameters: list[Any], steps: int, rate: float
) -> None:
    """AdamW on the sum of the tasks' cross-entropies, with warm-up and linear decay."""
    import torch

    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    draw = np.random.default_rng(1)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * max(0.05, 1 - step / steps)
        loss = torch.zeros(())
        for name, (x, y) in data.items():
            rows = draw.integers(len(y), size=BATCH)
            logits = models[name](torch.from_numpy(x[rows, None])).logits
            loss = loss + torch.nn.functional.cross_entropy(logits, torch.from_numpy(y[rows]))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def _save_items(path: Path, images: Images, labels: Labels, classes: list[str]) -> None:
    import pandas

    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame({"image": [x.tolist() for x in images], "label": [classes[y] for y in labels]}).to_parquet(path)


def _job_text(evaluations: int) -> str:
    experts = "\n".join(f"    {name}: experts/{name}" for name in TASKS)
    entries = "\n".join(
        f"  - {{kind: classification, name: {name}, data: data/{name}.parquet, image: image, seed: 11}}"
        for name in TASKS
    )
    return f"""# A search over layer-wise coefficients of four tiny ViT experts, four objectives.
name: {NAME}
models:
  base: base
  experts:
{experts}
  heads: ["classifier.*"]        # each expert's own: kept for its task, never merged
space:
  method: task_arithmetic
  granularity: layer
  bounds: [0.0, 1.0]
evaluators:      # half of the items calibrate the search, the rest it never sees; this draw is about even
{entries}
objectives: [{", ".join(f"{name}.accuracy" for name in TASKS)}]
driver: {{name: cma}}
budget: {{evaluations: {evaluations}}}
executor: {{kind: ray, workers: 2}}
"""
