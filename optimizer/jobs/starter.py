"""What would a first job file say of these models? Inspects them, and writes one with comments."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Literal

from optimizer.errors import JobError

if TYPE_CHECKING:
    from searchspaces import Pool

TEMPLATE = Template("""\
# Written by 'mergeopt init'. Check it with 'mergeopt check $file', run it with 'mergeopt run $file'.
# An editor helps with the keys: 'mergeopt schema > job.schema.json', and as the first line here
# '# yaml-language-server: $$schema=job.schema.json' (docs/job.md)
name: $name                      # the run's folder: runs/$name

models:                          # folders in Hugging Face layout, or org/name@revision
  base: $base
  experts:
$experts
  heads: $heads                  # tensors that belong to one expert's task: kept for it, never merged
  exclude: []                    # tensors to take from the base as they are, e.g. ["embeddings.*"]
  $vocabulary # of experts with tokens of their own: base leaves them out, union keeps them
  # dtype: bfloat16              # materialise and export in this dtype; by default the base's

# $summary
space:
  method: task_arithmetic        # base + sum of coefficient x (expert - base); or another, or several: [ties, linear]
  # options: {lambda: search}    # the method's own, fixed or searched: docs/job.md
  granularity: $granularity            # model | layer | module | tensor: which tensors share a coefficient
  bounds: [0.0, 1.0]             # for all experts, or {NAME: [low, high], ...}
  start: 0.3                     # where the search starts, for all or {NAME: value, ...}
  frozen: []                     # groups that keep their start, e.g. ["embeddings"]
  simplex: false                 # true: coefficients of a group are positive and sum to at most 1

evaluators:
$evaluators

objectives:                      # NAME.metric; several make a Pareto front
$objectives$finer
# constraints: ["NAME.metric >= 0.9"]    # what no merge may fall short of, objective or not

$driver
budget: {evaluations: $budget}       # candidates, anchors included
executor: {kind: ray, workers: 2, threads: 1}   # or kind: inline, in this process
seed: 0
""")

FINER = """
  # or NAME.cross_entropy: it moves with every item, so that few items tell merges apart sooner (docs/choosing.md)"""

DRIVER = """\
# auto | cma | tpe | gp | nsga2 | ... (docs/search.md); the anchors (base, experts, averages) always come first
driver: {name: auto}
# The fastest way, where a method is linear and every evaluator has a loss, as here: the losses' slopes say where to go
# (docs/gradients.md). A coefficient of its own for each tensor (space.granularity: tensor) makes them no dearer.
# driver: {name: auto, gradients: {loss: cross_entropy}, steps: 60}"""

BY_GRADIENT = """\
# auto asks for slopes of each task's loss, which needs a linear method (task_arithmetic, tsv_m, ...) and
# evaluators that have losses: the fastest way (docs/gradients.md). `gradients` left out, it goes by scores alone.
driver: {name: auto, gradients: {loss: cross_entropy}, steps: 60}   # gradients at most, beside the budget"""


def write_job(base: str, experts: Sequence[str], data: Sequence[str], out: Path, gradients: bool = False) -> None:
    """Inspect the models and write a commented job to `out`; `experts` and `data` are NAME=PATH.

    With `gradients` its driver asks for them; else a comment says how it would.
    Raises JobError where `out` exists or a pair is malformed, and PoolError where the models do not fit together.
    """
    absent(out)
    named, tasks = pairs("--expert", experts), pairs("--data", data)
    models = look(base, named)
    pool, vocabulary = models.pool, "vocabulary: base              "
    granularity = "tensor" if gradients else "layer"
    groups = len(pool.groups(granularity))
    entries = {
        name: entry(name, seen(path, out), models.causal, models.images, named, columns(path))
        for name, path in (tasks or {n: f"data/{n}.jsonl" for n in named}).items()
    }
    metric = models.metric
    count = f"{len(named)} experts x {groups} {granularity} groups = {len(named) * groups} coefficients"
    summary = f"{count}, {pool.parameters / 1e6:.3g} M parameters a model."
    out.write_text(
        TEMPLATE.substitute(
            file=out,
            name=quoted(re.sub(r"[^A-Za-z0-9._-]", "-", Path.cwd().name).lstrip("._-")[:64] or "run"),
            base=quoted(seen(base, out)),
            experts="\n".join(f"    {quoted(name)}: {quoted(seen(path, out))}" for name, path in named.items()),
            vocabulary=vocabulary if models.vocabulary else f"# {vocabulary}",
            heads="[" + ", ".join(quoted(h) for h in models.heads) + "]",
            summary=summary,
            granularity=f"{granularity:6}",
            driver=BY_GRADIENT if gradients else DRIVER,
            evaluators="\n".join(entries.values()),
            objectives="\n".join(f"  - {name}.{metric}" for name in entries),
            finer=FINER if metric == "accuracy" else "",
            budget=max(200, 20 * len(named)),
        )
    )


@dataclass(frozen=True)
class Seen:
    """What the models themselves say: the pool, heads, how vocabularies fit, and what kind of model they are."""

    pool: Pool
    heads: Sequence[str]
    vocabulary: Literal["base"] | None
    causal: bool
    images: bool

    @property
    def metric(self) -> str:
        """What a first evaluator's objective is."""
        return "loss" if self.causal else "accuracy"


def look(base: str, experts: Mapping[str, str]) -> Seen:
    """Look at the models. Raises PoolError where they do not fit together."""
    from searchspaces import Pool
    from searchspaces.errors import VocabularyError
    from searchspaces.models.pool import suggest_heads

    heads, vocabulary = suggest_heads(base, experts), None
    try:
        pool = Pool.open(base, experts, heads=heads)
    except VocabularyError:
        pool, vocabulary = Pool.open(base, experts, heads=heads, vocabulary="base"), "base"
    config = pool.base.config
    causal = any("CausalLM" in a for a in config.get("architectures") or [])
    return Seen(pool, heads, "base" if vocabulary else None, causal, "num_channels" in config)


def absent(out: Path) -> None:
    """Raises JobError where there is a file already."""
    if out.exists():
        raise JobError(f"{out} exists already; remove it, or name another with --out")


def seen(path: str, out: Path) -> str:
    """A path as the job file sees it, which starts from its own folder; a name of the hub is no path."""
    if Path(path).is_absolute() or not Path(path).exists():
        return path
    return Path(os.path.relpath(path, out.parent)).as_posix()


def columns(path: str) -> list[str]:
    """The columns of a file's first row; none where it cannot be read: `check` will say why."""
    from evaluators.errors import DataError
    from evaluators.items import read

    try:
        return list(read(path, Path()).rows[0]) if Path(path).is_file() else []
    except DataError:
        return []


def entry(
    name: str, path: str, causal: bool, images: bool, experts: Mapping[str, str], columns: Sequence[str] = ()
) -> str:
    """An evaluator's entry, with comments; of a causal language model, of one of images, else of texts."""
    lines = [
        f"  - kind: {'language' if causal else 'classification'}",
        f"    name: {quoted(name)}",
        f"    data: {quoted(path)}   # .jsonl, .csv, .parquet, or {{calibration: FILE, heldout: FILE}}",
        "    calibration: 0.5             # the share that the search sees; the rest is held out",
    ]
    if not causal and name not in experts:
        lines.append(f"    head: {next(iter(experts))}   # the expert whose head reads this task")
    reads = (
        "image: image                 # or text: COLUMN"
        if images
        else "text: text                   # or image: COLUMN"
    )
    lines.append("    text: text" if causal else f"    {reads}")
    if columns:
        lines[-1] = f"{lines[-1]:38} # columns that are there: {', '.join(map(quoted, columns))}"
    if not causal:
        lines.append("    label: label")
    return "\n".join(lines)


def pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """NAME=PATH, each name once. Raises JobError for what is none."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise JobError(f"{option}: expected NAME=PATH, got {text!r}")
        if name in found:
            raise JobError(f"{option}: the name {name!r} is given twice")
        found[name] = path
    return found


def quoted(text: str) -> str:
    """A YAML scalar that reads back as this text, whatever it holds."""
    return (
        text if re.fullmatch(r"[A-Za-z0-9_./@-]+", text) and not re.fullmatch(r"[0-9._+-]+", text) else json.dumps(text)
    )
