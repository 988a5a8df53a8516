"""How does a search of mergekit-evolve become a job? The same models, methods and tasks; what differs is said."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluators.options import expanded
from optimizer.errors import JobError
from optimizer.importing import models as naming
from optimizer.importing.documents import Evolution, Genome, Reference, Task
from optimizer.importing.draft import Draft, vocabulary_of
from optimizer.importing.methods import DRAWS

NORMALISED = ("linear", "ties", "dare_ties")  # unless the genome says otherwise
SPARSE = ("ties", "dare_ties")
LOWER = ("perplexity", "bits_per_byte", "loss", "ter", "brier_score")
HIGHER = ("acc", "exact_match", "f1", "bleu", "rouge", "mcc", "em", "chrf")
SECOND_FILTERS = ("flexible-extract",)  # of tasks with several filters, what is not their first
TASK_FILE = 1_000_000  # bytes
YAML = (".yaml", ".yml")


def draft(evolution: Evolution, source: Path, at: Mapping[str, str], home: Path) -> Draft:
    """The job of a genome and its tasks. Raises JobError for what cannot be searched here, and what contradicts."""
    genome, notes = evolution.genome, list[str]()
    method = _method(genome, source)
    base, experts = _models(genome, method, notes)
    if not experts:
        raise JobError(f"{source}: genome.models: expected a model beside the base")
    found = naming.found(base, experts, at, source.parent, home)
    granularity, remark = _granularity(genome, notes)
    options, bounds = _options(genome, method, granularity), _bounds(genome, method)
    tasks = _tasks(evolution, source, home, notes)
    notes += _beside(evolution, method, bounds)
    start = 0.5 if method == "slerp" else float(f"{1 / len(genome.models):.6g}")
    return Draft(
        method=method,
        base=found.base.text,
        experts={name: one.text for name, one in found.experts.items()},
        start=start,
        options=options,
        granularity=granularity,
        bounds=bounds,
        dtype="bfloat16",
        vocabulary=vocabulary_of(genome.tokenizer_source, str(base), notes),
        tasks=tasks.entries,
        objectives=list(tasks.weights),
        driver=tasks.driver,
        notes=[*notes, *found.notes],
        remarks={
            "space.granularity": remark,
            "space.start": "as mergekit-evolve begins: 1/n, and all densities 1",
            "driver": "CMA-ES on the weighted sum, as mergekit-evolve; {name: auto} finds the whole trade-off",
        },
    )


def _models(genome: Genome, method: str, notes: list[str]) -> tuple[Reference, list[Reference]]:
    """The base and the experts."""
    if method == "slerp":
        notes.append(
            "slerp goes from the first model towards the second here; mergekit-evolve lets each be either end, which "
            "are the same merges"
        )
        return genome.models[0], genome.models[1:]
    experts = [one for one in dict.fromkeys(genome.models) if one != genome.base_model or method == "linear"]
    if genome.base_model is not None:
        return genome.base_model, experts
    base = naming.stand_in(experts)
    notes.append(f"the file names no base: {base} stands for it; name the model that the experts were trained from")
    return base, experts


def _method(genome: Genome, source: Path) -> str:
    """The method. Raises JobError for one that mergekit-evolve does not search, or that merges other models here."""
    method = genome.merge_method
    if method not in ("linear", "task_arithmetic", "ties", "dare_ties", "slerp"):
        raise JobError(f"{source}: genome.merge_method: mergekit-evolve has no {method!r}")
    if method == "slerp" and len(genome.models) != 2:
        raise JobError(
            f"{source}: slerp of {len(genome.models)} models chooses two of them, layer by layer, and mergeopt's goes "
            "between two; take merge_method: linear, or name two models (multislerp, karcher merge any number)"
        )
    if method in ("task_arithmetic", "ties", "dare_ties") and genome.base_model is None:
        raise JobError(f"{source}: genome.base_model is required by {method}")
    if method == "slerp" and (genome.smooth or genome.filters):
        raise JobError(f"{source}: mergekit-evolve has neither smooth nor filters for slerp")
    return method


def _granularity(genome: Genome, notes: list[str]) -> tuple[str, str]:
    """What is nearest to the genome's, and a remark."""
    size = genome.layer_granularity
    if genome.smooth:
        notes.append("smooth: left out; coefficients of neighbouring layers are free of each other here")
    if genome.filters:
        return _filtered(genome.filters, size, notes)
    if size == 0:
        return "model", "layer_granularity was not set: one for all layers; layer, module and tensor are finer"
    if size == 1:
        return "layer", "layer_granularity: 1; embeddings, final norm and head have their own here"
    notes.append(f"layer_granularity: {size}: each layer has its own here, not each {size}; model has one for all")
    return "layer", f"nearest to layer_granularity: {size}, finer; model is coarser"


def _filtered(filters: list[str], size: int, notes: list[str]) -> tuple[str, str]:
    """What is nearest to filters: `model` where a set of coefficients is for all layers, else `module`."""
    count = len(filters) + 1  # the last for what no filter names
    said = f"filters ({', '.join(filters)}): mergekit-evolve has {count} coefficients of each model"
    if size == 0:
        notes.append(
            f"{said}, each for all layers; here it is one (granularity model), and granularity module has one for "
            "attention, mlp and norms of each layer"
        )
        return "model", "nearest to filters over all layers, coarser; module is finer"
    notes.append(
        f"{said} for {'each layer' if size == 1 else f'each {size} layers'}; granularity module has three for each "
        "layer: of attention, mlp and norms"
    )
    return "module", "nearest to the filters: attention, mlp and norms of each layer apart"


def _options(genome: Genome, method: str, granularity: str) -> dict[str, Any]:
    normalize = method in NORMALISED if genome.normalize is None else genome.normalize
    options: dict[str, Any] = {} if method == "slerp" else {"normalize": normalize}
    if method in SPARSE:
        per = "expert" if granularity == "model" else "both"
        options["density"] = {"low": 0.05, "high": 1.0, "per": per, "start": 1.0}
    return options


def _bounds(genome: Genome, method: str) -> tuple[float, float]:
    """Where a common factor cancels, and on an arc, weights up to 1 say all."""
    normalised = method in NORMALISED if genome.normalize is None else genome.normalize
    high = 1.0 if normalised or method == "slerp" else 2.0
    return (-high if genome.allow_negative_weights else 0.0), high


def _beside(evolution: Evolution, method: str, bounds: tuple[float, float]) -> list[str]:
    """What else is otherwise here."""
    found = [
        f"weights have bounds here, {bounds[0]:g} to {bounds[1]:g}; mergekit-evolve has none",
        "dtype: bfloat16, as mergekit-evolve merges",
        "budget: mergekit-evolve's is --max-fevals, 100 unless it was said",
    ]
    if method == "dare_ties":
        found.append(DRAWS.format(method=method))
    if evolution.apply_chat_template and "apply_chat_template" not in evolution.model_fields_set:
        found.append("apply_chat_template: on, mergekit-evolve's default; set it false where the base has no template")
    if evolution.random_init:
        found.append("random_init: left out; the search starts at 1/n, and base, experts and averages are scored first")
    if evolution.shuffle:
        found.append("shuffle: left out; which documents the search sees is drawn by content hash")
    return found


@dataclass
class _Tasks:
    """Evaluators, and the weight of each objective."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)

    @property
    def driver(self) -> dict[str, Any]:
        rows = list(self.weights.values())
        return {"name": "cma"} | ({"preferences": [rows]} if len(rows) > 1 else {})


def _tasks(evolution: Evolution, source: Path, home: Path, notes: list[str]) -> _Tasks:
    found, names = _Tasks(), dict[str, str]()
    files = _task_files(source.parent)
    for number, task in enumerate(evolution.tasks):
        if task.name not in names:
            by_path = task.name not in files and ("/" in task.name or task.name.endswith(YAML))
            name = naming.plain(Path(task.name).stem if by_path else task.name, names.values())
            names[task.name] = name
            place = _there(task.name, source.parent) if by_path else files.get(task.name)
            where = task.name if place is None else naming.told(home, place)
            if place is not None:
                ours = "" if by_path else ", whatever the harness calls so"
                notes.append(f"task {task.name} is the {'file' if place.is_file() else 'folder'} {where}{ours}")
            elif by_path:
                notes.append(
                    f"task {task.name} is a path at which nothing is here: under evaluators, at {name}, say where its "
                    ".yaml is, or the name of a task of the harness; 'check' refuses the job until then"
                )
            found.entries.append(_entry(evolution, name, where))
        objective = f"{names[task.name]}.{_metric(task, notes)}"
        weight = _weight(task, f"{source}: tasks[{number}]", notes)
        if weight:
            found.weights[objective] = found.weights.get(objective, 0.0) + weight
        else:
            notes.append(f"{objective}: weight 0, and no objective; it is measured all the same")
    if not found.weights:
        raise JobError(f"{source}: tasks: every weight is 0, so that there is nothing to search for")
    notes += [
        "tasks: the search sees documents of train or validation, never those that the harness reports on; where a "
        "task has no others, 'check' says so, and allow_test: true lets it (docs/harness.md)",
        "weights: of scores in units of what base, experts and averages range over; mergekit-evolve's are of the "
        "scores themselves",
    ]
    return found


def _there(task: str, beside: Path) -> Path | None:
    """The file or folder at a path that lm-eval was given, as it stands or beside the configuration; None: nothing."""
    for path in (expanded(task), beside / task):
        with suppress(OSError):  # it is longer than names of files may be
            if path.is_file() or path.is_dir():
                return path.absolute()
    return None


def _entry(evolution: Evolution, name: str, task: str) -> dict[str, Any]:
    limit = evolution.limit
    more: dict[str, Any] = {"limit": int(limit) if limit is not None and limit >= 1 else limit} if limit else {}
    if evolution.num_fewshot is not None:
        more["num_fewshot"] = evolution.num_fewshot
    for key in ("apply_chat_template", "fewshot_as_multiturn"):
        more[key] = getattr(evolution, key)
    return {"kind": "harness", "name": name, "task": task, **more}


def _metric(task: Task, notes: list[str]) -> str:
    """`acc,none` is `acc`: the metric under the task's first filter has no filter in its name."""
    metric, _, filtered = task.metric.partition(",")
    if filtered in ("", "none"):
        return metric
    if filtered in SECOND_FILTERS:
        return f"{metric}.{filtered}"
    notes.append(
        f"metric {task.metric!r} of {task.name}: taken for the task's first filter, so {metric}; of another it is "
        f"{metric}.{filtered}"
    )
    return metric


def _weight(task: Task, where: str, notes: list[str]) -> float:
    """How much the objective counts. Which way is better the metric knows, and a weight's sign has to agree."""
    metric = task.metric.partition(",")[0]
    parts = "_".join(["", *re.split(r"[_.]", metric), ""])  # "ter" is a part of no criteria_score
    lower = any(f"_{word}_" in parts for word in LOWER)
    higher = not lower and any(metric == word or metric.startswith(f"{word}_") for word in HIGHER)
    if task.weight < 0 and higher:
        raise JobError(f"{where}: a weight of {task.weight:g} on {metric}, of which more is better, asks for the worst")
    if task.weight > 0 and lower:
        raise JobError(
            f"{where}: a weight of {task.weight:g} on {metric}, of which less is better, asks for the worst: "
            "mergekit-evolve wants it negative"
        )
    if task.weight and not lower and not higher:
        notes.append(f"{metric} of {task.name}: whether more is better is what the task says (higher_is_better)")
    return abs(task.weight)


def _task_files(folder: Path) -> dict[str, Path]:
    """Task files beside the configuration, or in `tasks` there, by the task that each says it is."""
    found: dict[str, Path] = {}
    for home in (folder, folder / "tasks"):
        for path in sorted(p for p in home.glob("*.y*ml") if p.is_file() and p.stat().st_size <= TASK_FILE):
            said = re.search(r"^task:[ \t]*[\"']?([^\s\"'#]+)[\"']?[ \t]*(?:#.*)?$", _text(path), re.MULTILINE)
            if said:
                found.setdefault(said[1], path)
    return found


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
