"""Which documents of a task may the search see? Never in silence those that the harness reports on."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evaluators.errors import DataError, OptionError
from evaluators.evaluator import Indices, Splits
from evaluators.harness.own_documents import is_own
from evaluators.harness.tasks import Loaded
from evaluators.items import Row, Table
from evaluators.splits import ItemSet, digest, keep_apart, split

SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Wish:
    """What the user asks of the splits."""

    calibration: float | int | None  # share or count
    seed: int
    limit: float | int | None
    calibration_split: SplitName | None
    heldout_split: SplitName | None
    allow_test: bool
    own_data: bool  # the documents are the user's, whatever the task
    two_files: bool  # ... and split by the user


MOST = 200
"""Calibration documents of a task where the user does not say how many: a forward pass for each of thousands would be
the cost of every candidate."""


@dataclass(frozen=True, eq=False)
class Part:
    """Documents of one split of one task: rows `start` to `start + len(docs)` of the evaluator."""

    task: str
    view: Any  # the task, for which these are the documents that it reports on
    docs: list[Row]
    start: int
    used: Indices  # row numbers within the part that are in either split; prompts are made for these alone


@dataclass(frozen=True, eq=False)
class Documents:
    """All documents of an evaluator, and which of them the search may see, in words too."""

    items: ItemSet
    parts: tuple[Part, ...]
    provenance: tuple[str, ...]


def choose(name: str, loaded: Loaded, wish: Wish) -> Documents:
    """Split every task's documents.

    Raises `OptionError` where the search would see what the harness reports on, `DataError` where a side is empty.
    """
    if wish.two_files and wish.calibration is not None:
        raise OptionError(
            f"evaluator {name!r}: option 'calibration' says how to split one file, but `data` names a file per split; "
            "drop one of them"
        )
    tables: list[Table] = []
    parts: list[Part] = []
    sides: list[tuple[Indices, Indices]] = []
    said = []
    start = 0
    for task_name, task in loaded.tasks.items():
        _refuse(name, task_name, task)
        found, splits, sentence = _one(name, task_name, task, loaded, wish)
        sides.append((splits.calibration + start, splits.heldout + start))
        said.append(sentence)
        used = np.concatenate([splits.calibration, splits.heldout])
        inside = 0
        for table, view in found:
            mine = np.sort(used[(used >= inside) & (used < inside + len(table.rows))]) - inside
            parts.append(Part(task_name, view, table.rows, start, mine))
            tables.append(table)
            inside += len(table.rows)
            start += len(table.rows)
    seen, unseen = (np.sort(np.concatenate([side[i] for side in sides])) for i in range(2))
    joined = Splits(seen, unseen)
    return Documents(ItemSet(tuple(tables), joined), tuple(parts), tuple(said))


def contents(loaded: Loaded, parts: Sequence[Part]) -> dict[str, str]:
    """sha256, by task, of the documents that are used, in their order, and of what few-shot examples are drawn from.

    It knows a data set by what it says, on whatever machine and from wherever it was loaded.
    """
    found = {}
    for name, task in loaded.tasks.items():
        rows = [part.docs[row] for part in parts if part.task == name for row in part.used.tolist()]
        if task.get_config("num_fewshot"):
            rows += list(getattr(getattr(task, "sampler", None), "df", None) or [])
        total = hashlib.sha256()
        for row in rows:
            total.update(digest(0, row))
        found[name] = total.hexdigest()
    return found


def _refuse(name: str, task_name: str, task: Any) -> None:
    """Raise `OptionError` for what is no task over text."""
    if getattr(task, "MULTIMODAL", False):
        raise OptionError(f"evaluator {name!r}: task {task_name!r} needs images or sound; use a task over text")


def _one(
    name: str, task_name: str, task: Any, loaded: Loaded, wish: Wish
) -> tuple[list[tuple[Table, Any]], Splits, str]:
    """One task's tables with their views, its splits (rows counted through them), and what was chosen, in words."""
    names = _names(task)
    reported: SplitName = "test" if task.has_test_docs() else "validation"
    own = wish.own_data or (task_name in loaded.found.own and is_own(task.config.to_dict(keep_callable=True)))
    heldout = wish.heldout_split or reported
    calibration = wish.calibration_split or _calibration(names, heldout, own and not wish.two_files)
    for option, chosen in (("calibration_split", calibration), ("heldout_split", heldout)):
        if chosen not in names:
            raise OptionError(
                f"evaluator {name!r}: option {option!r}: task {task_name!r} has no {chosen} split; "
                f"it has: {', '.join(names) or 'none'}"
            )
    where = f"{task_name}: "
    called = {s: ("data" if wish.own_data else repr(names[s])) for s in names}
    if wish.two_files:
        called |= {calibration: "data.calibration", heldout: "data.heldout"}
    if names[calibration] == names[reported] and not own and not wish.allow_test:
        others = ", ".join(s for s in names if names[s] != names[reported])
        remedy = f"take calibration_split from {others}" if others else "it has no other documents: use another task"
        raise OptionError(
            f"evaluator {name!r}: the search would see {names[reported]!r} of task {task_name!r}, which the harness "
            f"reports on; {remedy}, or say allow_test: true, and no report on that split will mean anything"
        )
    whose = "" if own else " (what the harness reports on)"
    limits = (wish.limit, loaded.found.files)
    last = _table(task_name, names[heldout], _docs(task, heldout), *limits)
    unseen: list[Row] = []
    if not own and not wish.allow_test and names[reported] != names[heldout]:
        unseen = _docs(task, reported)  # all of them, whatever the limit
    if names[calibration] == names[heldout]:
        share = wish.calibration
        if share is None:
            share = 0.5 if own or len(last.rows) <= 2 * MOST else MOST
        splits, dropped = _without(split(last, wish.seed, share), last, unseen)
        counts = f"{len(splits.calibration)} and {len(splits.heldout)} documents"
        sentence = f"{where}calibration and held out are {counts} of {called[heldout]}{whose}, split by content"
        return [(last, _view(task, heldout))], splits, sentence + _told(dropped, "the reported ones")
    first = _table(task_name, names[calibration], _docs(task, calibration), *limits)
    if wish.two_files:
        splits, dropped = keep_apart(first, last, wish.seed), 0
    else:
        splits, dropped = _apart(first, last, unseen, wish, None if own else MOST)
    seen = whose if calibration == reported else ""
    sentence = (
        f"{where}calibration is {len(splits.calibration)} documents of {called[calibration]}{seen}, held out "
        f"{len(splits.heldout)} of {called[heldout]}{whose if heldout == reported else ''}"
    )
    rest = len(first.rows) - dropped - len(splits.calibration)
    if wish.calibration is None and rest:
        sentence += f"; {rest} more are there: say calibration: {len(first.rows)} for all of them"
    among = "the held-out or reported ones" if unseen else "the held-out ones"
    return [(first, _view(task, calibration)), (last, _view(task, heldout))], splits, sentence + _told(dropped, among)


def _told(dropped: int, among: str) -> str:
    return f"; {dropped} that are among {among} too were left out" if dropped else ""


def _names(task: Any) -> dict[SplitName, str]:
    """The splits that a task has, with their names in its data set."""
    has: list[tuple[SplitName, str, bool]] = [
        ("train", "training_split", bool(task.has_training_docs())),
        ("validation", "validation_split", bool(task.has_validation_docs())),
        ("test", "test_split", bool(task.has_test_docs())),
    ]
    return {split: str(task.get_config(key) or split) for split, key, there in has if there}


def _calibration(names: Mapping[SplitName, str], heldout: SplitName, together: bool) -> SplitName:
    """Validation where the task has it beside what is held out, else train; else what is held out itself."""
    order: tuple[SplitName, ...] = () if together else ("validation", "train")
    return next((s for s in order if s in names and names[s] != names.get(heldout)), heldout)


def _docs(task: Any, split_name: SplitName) -> list[Row]:
    kept = {"train": task.training_docs, "validation": task.validation_docs, "test": task.test_docs}
    return list(kept[split_name]())


def _table(
    task_name: str, split_name: str, docs: list[Row], limit: float | int | None, files: tuple[Path, ...]
) -> Table:
    """The first documents of a split, as many as the harness would take."""
    if limit is not None:
        docs = docs[: math.ceil(len(docs) * limit) if isinstance(limit, float) else limit]
    if not docs:
        raise DataError(f"{task_name}: split {split_name!r} has no documents; an evaluator needs items to score on")
    return Table(f"{task_name}, split {split_name!r}", docs, files, files[0].parent if files else Path())


def _apart(calibration: Table, heldout: Table, unseen: list[Row], wish: Wish, most: int | None) -> tuple[Splits, int]:
    """Calibration documents by content hash, without those that are among the held-out or unseen ones too; and how
    many these are. At most `most` where the user does not say."""
    hidden = {digest(wish.seed, row) for row in [*heldout.rows, *unseen]}
    keys = {i: key for i, row in enumerate(calibration.rows) if (key := digest(wish.seed, row)) not in hidden}
    order = sorted(keys, key=lambda i: (keys[i], i))
    asked = most if wish.calibration is None else wish.calibration
    count = len(order) if asked is None else asked if isinstance(asked, int) else round(asked * len(order))
    if not order[:count]:
        raise DataError(
            f"{calibration.name}: {len(calibration.rows)} documents, of which {len(order)} are not held out or "
            f"reported on too, and calibration: {wish.calibration} make no calibration items; give more, or another "
            "split"
        )
    first = len(calibration.rows)
    sides = np.array(sorted(order[:count]), dtype=np.int64), np.arange(first, first + len(heldout.rows), dtype=np.int64)
    return Splits(*sides), first - len(keys)


def _without(splits: Splits, table: Table, unseen: list[Row]) -> tuple[Splits, int]:
    """The splits without calibration documents that are among the unseen ones too, and how many these are."""
    hidden = {digest(0, row) for row in unseen}
    kept = [i for i in splits.calibration.tolist() if digest(0, table.rows[i]) not in hidden] if hidden else None
    if kept is None or len(kept) == len(splits.calibration):
        return splits, 0
    if not kept:
        raise DataError(f"{table.name}: every calibration document is one that the harness reports on; use others")
    return Splits(np.array(kept, dtype=np.int64), splits.heldout), len(splits.calibration) - len(kept)


def _view(task: Any, split_name: SplitName) -> Any:
    """The task, as if it reported on this split: an example is never among its own prompt's examples.

    The harness keeps a document out of its examples only where the split that it reports on is named as the one that
    examples come from. On the split that it does report on, nothing is changed: the prompts are the harness's.
    """
    view = copy.copy(task)
    if hasattr(view, "sampler"):
        view.sampler = copy.copy(view.sampler)
    if split_name != ("test" if task.has_test_docs() else "validation"):
        config = copy.copy(task.config)
        config.test_split = _names(task)[split_name]
        examples = copy.copy(task.fewshot_cfg) if hasattr(task, "fewshot_cfg") else None
        if examples is not None and examples.split is None and examples.samples is None:
            key = "training_split" if task.has_training_docs() else "validation_split"
            examples.split = task.get_config(key)
            view.fewshot_cfg = examples
        view._config = config
    return view
