"""How does a candidate become a checkpoint? Written beside its place, loaded, scored again, and only then renamed."""

from __future__ import annotations

import dataclasses
import errno
import glob
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evaluators.evaluator import Head, Measure, Setting
from optimizer.driver import Items, Split
from optimizer.errors import DiskFull, ExportError, ScoreMismatch
from optimizer.jobs.problem import open_pool
from optimizer.output import markdown
from optimizer.record.results import Candidate
from optimizer.training.gathering import merged_pool
from optimizer.training.teachers import teach
from searchspaces import Pool, Recipe, Resident
from searchspaces.adapters.concatenate import OneAdapter, write_adapter
from searchspaces.errors import Inexpressible
from searchspaces.mergekit import to_mergekit
from searchspaces.models import shards
from searchspaces.models.architecture import model_class
from searchspaces.models.loading import input_device, load_model
from searchspaces.weights.materialise import merged_tensors

if TYPE_CHECKING:
    from optimizer.jobs.job import Job
    from optimizer.jobs.problem import Problem
    from optimizer.run import Run

# what travels from the base besides weights: never code, never pickles
KEPT = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
]
RECIPE, MERGEKIT = "recipe.yaml", "mergekit.yaml"
TEMPLATES = Path(__file__).parent / "templates"
TOLERANCE = 1e-4  # relative and absolute; the same bits on the same machine, the last digits may differ on another


def export(run: Run, candidate: Candidate, target: Path, allow_code: bool = False) -> Path:
    """Write `candidate` to the folder `target` as an ordinary Hugging Face checkpoint, and return it.

    Sharded safetensors (one tensor in memory at a time), config, tokenizer, heads, card, recipe and mergekit YAML.
    What was written is loaded with transformers and scored on calibration and held-out items before the folder gets
    its name. Raises ExportError where `target` exists or the candidate failed, ScoreMismatch where a score is not the
    ledger's, DiskFull where there is no room.
    """
    with _opened(run, candidate, target, allow_code) as (partial, problem, recipe):
        _room(target.parent, int(1.2 * problem.pool.bytes))
        _write_model(partial, problem, recipe)
        _write_heads(partial, problem)
        note = _write_recipe(partial, problem, recipe)
        model = load_model(partial, problem.job.executor.device)
        scores = _scored(model, partial, _exported_heads(partial, problem), problem)
        _compare(scores, candidate)
        _write_card(partial, run, problem, candidate, recipe, scores, target.name, note)
    return target


def export_adapter(
    run: Run, candidate: Candidate, target: Path, rank: int | None = None, allow_code: bool = False
) -> OneAdapter:
    """Write `candidate` to the folder `target` as one LoRA of the base, and say how near it is to the merge.

    `rank` None puts the adapters' factors side by side, which loses nothing. The adapter, heads, card and recipe are
    written; the base with the adapter merged into it is scored on calibration and held-out items before the folder gets
    its name. Raises as `export`, and Inexpressible where the candidate is no merge of adapters; ScoreMismatch where
    what loses nothing but rounding scores otherwise.
    """
    with _opened(run, candidate, target, allow_code) as (partial, problem, recipe):
        adapters = sum(e.bytes for e in problem.pool.adapters.values())
        _room(target.parent, int(1.2 * 2 * adapters) + 1_000_000)  # bf16 factors are written in fp32
        pool = merged_pool(problem, recipe)
        found = write_adapter(partial, pool, recipe, rank, _reference(problem.job, problem.job.models.base))
        _write_heads(partial, problem)
        shards.write_text(partial / RECIPE, recipe.to_yaml())
        entry = problem.job.executor
        # by name: a pattern of the job's may be about tensors that only its experts have
        merged = Pool.open(pool.base.folder, {"merged": partial}, (), [glob.escape(t.name) for t in pool.copied])
        dtype = problem.job.models.resident_dtype
        resident = Resident(merged, entry.device, dtype, entry.threads)
        resident.write_expert("merged")
        scores = _scored(resident.model, pool.base.folder, _exported_heads(partial, problem), problem)
        if found.exact:
            _compare(scores, candidate)
        note = f"It is {found.describe()}.\n"
        _write_card(partial, run, problem, candidate, recipe, scores, target.name, note, found)
    return found


@contextmanager
def _opened(run: Run, candidate: Candidate, target: Path, allow_code: bool) -> Iterator[tuple[Path, Problem, Recipe]]:
    """A folder beside `target` that gets its name where all goes well, and is removed where it does not."""
    if candidate.failure is not None:
        raise ExportError(f"candidate {candidate.number} failed ({candidate.failure}); choose one that was scored")
    if target.exists():
        raise ExportError(f"{target} exists already; remove it, or name another folder with --out")
    if candidate.is_reference:
        raise ExportError(f"{candidate.label} is a model of the pool as it is, and no merge; copy its own folder")
    problem = run.open_problem(allow_code)
    hashes = run.job.hashes.models if run.job.hashes else {}
    recipe = problem.space(hashes).decode(candidate.point)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.{os.getpid()}"
    partial.mkdir()
    try:
        yield partial, problem, recipe
        shards.sync_folder(partial)
        partial.rename(target)
        shards.sync_folder(target.parent)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFull(f"no room left for {target}; nothing was left there, free some and export again") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _scored(model: Any, folder: Path, heads: Mapping[str, Head], problem: Problem) -> dict[Split, dict[str, Measure]]:
    """Every evaluator's measures of a model, by split and qualified metric."""
    entry = problem.job.executor
    torch.set_num_threads(entry.threads)
    setting = Setting(model, folder, input_device(model), heads)
    found: dict[Split, dict[str, Measure]] = {"calibration": {}, "heldout": {}}
    for evaluator in problem.evaluators:
        evaluator.prepare(setting)
    teach(problem, problem.pool.hashes(), lambda: Resident(problem.pool, entry.device, model.dtype, entry.threads))
    for evaluator in problem.evaluators:
        for split, measures in found.items():
            scores = evaluator.score(model, problem.rows(evaluator, Items(split)))
            measures.update({f"{evaluator.name}.{metric}": m for metric, m in scores.measures.items()})
    return found


def _compare(found: Mapping[Split, Mapping[str, Measure]], candidate: Candidate) -> None:
    """Raises ScoreMismatch where a score differs from the ledger's; estimates, told from some items, are none."""
    seen = candidate.measures if candidate.share == 1.0 else {}
    ledgers: dict[Split, Mapping[str, Measure]] = {"calibration": seen, "heldout": candidate.heldout}
    for split, ledger in ledgers.items():
        for name, was in ledger.items():
            now = found[split][name]
            if not abs(now.value - was.value) <= TOLERANCE * (1 + abs(was.value)):
                raise ScoreMismatch(
                    f"candidate {candidate.number}: {name} on {split} items is {now.value:.6g} after export, the "
                    f"ledger says {was.value:.6g}; nothing was exported. Use a machine and libraries like the search's"
                )


def _room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFull(
            f"{folder}: {free / 1e6:,.1f} MB free, the export needs {needed / 1e6:,.1f} MB; free some or use --out"
        )


def _write_model(folder: Path, problem: Problem, recipe: Recipe) -> None:
    dtype = problem.job.models.resident_dtype
    specs = [shards.Spec(n, s, d) for n, s, d in problem.pool.layout(dtype)]
    pool = merged_pool(problem, recipe)
    shards.write(folder, specs, merged_tensors(pool, recipe, dtype))
    for name in KEPT:
        source = Path(problem.pool.base.folder) / name
        if source.is_file():
            shutil.copyfile(source, folder / name)
    if dtype is not None:  # or transformers would load it in the base's
        config = {**problem.pool.base.config, "dtype": problem.job.models.dtype}
        config.pop("torch_dtype", None)
        shards.write_text(folder / "config.json", json.dumps(config, indent=2))


def _write_heads(folder: Path, problem: Problem) -> None:
    for name, tensors in problem.pool.heads.items():
        home = folder / "heads" / name
        home.mkdir(parents=True)
        shutil.copyfile(problem.pool.opened[name].model_folder / "config.json", home / "config.json")
        specs = [shards.Spec(n, tuple(t.shape), t.dtype) for n, t in tensors.items()]
        shards.write(home, specs, iter(tensors.items()))


def _exported_heads(folder: Path, problem: Problem) -> dict[str, Head]:
    from safetensors.torch import load_file

    return {
        n: Head(folder / "heads" / n, load_file(folder / "heads" / n / "model.safetensors")) for n in problem.pool.heads
    }


def _write_recipe(folder: Path, problem: Problem, recipe: Recipe) -> str:
    """recipe.yaml, and mergekit.yaml where mergekit can say it; returns a sentence on the latter for the card."""
    shards.write_text(folder / RECIPE, recipe.to_yaml())
    try:
        text = to_mergekit(recipe, problem.pool)
    except Inexpressible as error:
        return f"mergekit cannot express it: {markdown.sentence(error)}.\n"
    shards.write_text(folder / MERGEKIT, text)
    return "`mergekit.yaml` says the same to mergekit.\n"


def why_not_mergekit(run: Run, folder: Path) -> str | None:
    """Why a checkpoint that was just exported has no mergekit.yaml; None where it has one."""
    if not (folder / MERGEKIT).is_file():
        try:
            to_mergekit(Recipe.from_yaml((folder / RECIPE).read_text("utf-8")), open_pool(run.job))
        except Inexpressible as error:
            return str(error)
    return None


def _write_card(
    folder: Path,
    run: Run,
    problem: Problem,
    candidate: Candidate,
    recipe: Recipe,
    scores: Mapping[Split, Mapping[str, Measure]],
    name: str,
    note: str,
    adapter: OneAdapter | None = None,
) -> None:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=False, trim_blocks=False)
    environment.filters["md"] = markdown.plain
    job = problem.job
    base, *experts = (_reference(job, text) for text in (job.models.base, *job.models.experts.values()))
    text = environment.get_template("card.md.j2").render(
        title=f"{run.job.name}: merge {candidate.number}",
        models=[base, *experts],
        base=base,
        experts=problem.pool.names,
        recipe=recipe,
        number=candidate.number,
        run=run.job.name,
        scores=list(_score_rows(scores)),
        auto=model_class(problem.pool.base.config).__name__,
        folder=name,
        heads=list(_head_rows(problem)),
        hashes=list((run.job.hashes.models if run.job.hashes else {}).items()),
        note=note,
        estimated=candidate.share < 1.0,
        adapter=adapter,
        provenance=[(evaluator, line) for evaluator, lines in problem.provenance.items() for line in lines],
    )
    shards.write_text(folder / "README.md", text)


def _score_rows(scores: Mapping[Split, Mapping[str, Measure]]) -> Iterator[dict[str, str]]:
    for metric, m in scores["calibration"].items():
        unseen = scores["heldout"][metric]
        yield {"metric": metric, "calibration": _measure(m), "heldout": _measure(unseen)}


def _head_rows(problem: Problem) -> Iterator[dict[str, Any]]:
    """How each evaluator that reads a task's head uses it, as the evaluator itself tells once it is prepared."""
    for evaluator in problem.evaluators:
        use = getattr(evaluator, "head_use", None)
        if use is not None:
            yield {"task": evaluator.name, **dataclasses.asdict(use)}


def _measure(m: Measure) -> str:
    spread = "" if m.stderr is None else f" ± {m.stderr:.4f}"
    return f"{m.value:.4f}{spread} ({m.count} items)"


def _reference(job: Job, text: str) -> str:
    """A model as others may name it: a folder by its name, a hub id as it is."""
    path = job.path(text)
    return path.name if path.exists() else text.partition("@")[0]
