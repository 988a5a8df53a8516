"""How many items does each rung of a job take? Counted in the files, where evaluators read files of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import evaluators
from evaluators import items
from evaluators.errors import DataError
from evaluators.harness import task_files
from evaluators.harness.options import HarnessOptions
from evaluators.options import Files, ItemOptions, parse
from evaluators.splits import load_items
from optimizer.jobs.assemble import most_anchors
from optimizer.jobs.job import EvaluatorEntry, Job
from optimizer.jobs.job_search import Gradients
from optimizer.jobs.problem import check_rungs
from optimizer.rungs.whole import LEAST


def rungs_on_paper(job: Job, gradients: bool, anchors: int) -> dict[str, Any] | None:
    """What a job's `fidelity` asks for, as JSON values; None where it has none.

    `items` are the calibration items that candidates are scored on, by evaluator, `uncounted` why they are not known of
    others. `rungs`: items of each task, in all tasks (None where that is not known), and the share of candidates that
    is scored on them at most; the last is all items. `usual_share`: of all items, for a candidate on average that is
    not among the `whole` that are scored on all, of which `anchors` are anchors; `search_share`: for one of all
    `evaluations`. `anchors` are as many as there are, whatever the budget.

    Raises JobError where a rung has more items than a task, and OptionError for options that an evaluator refuses.
    """
    if job.fidelity is None:
        return None
    counted: dict[str, int] = {}
    uncounted: dict[str, str] = {}
    for entry in job.evaluators:
        try:
            counted[entry.name] = _counted(entry, job, gradients)
        except DataError as error:
            uncounted[entry.name] = str(error)
    check_rungs(job, counted)
    keep = job.fidelity.keep if job.fidelity.rule == "halving" else 1.0
    in_all = None if uncounted else sum(counted.values())
    rungs = [
        {"items": many, "in_all": many * len(job.evaluators), "share": keep**place}
        for place, many in enumerate(job.fidelity.rungs)
    ]
    fewest = min(counted.values(), default=None)
    usual = job.fidelity.usual_share(fewest) if fewest else None
    final = job.fidelity.final_share(fewest) if fewest else 0.0
    asked, evaluations = min(anchors, most_anchors(job)), job.budget.evaluations
    whole, share = share_in_all(evaluations, asked, usual or 0.0, final)
    return {
        "rule": job.fidelity.rule,
        "final": job.fidelity.final,
        "items": counted,
        "uncounted": uncounted,
        "rungs": [*rungs, {"items": None, "in_all": in_all, "share": keep ** len(rungs)}],
        "usual_share": usual,
        "evaluations": evaluations,
        "anchors": asked,
        "whole": whole,
        "search_share": share if usual is not None else None,
    }


def share_in_all(evaluations: int, anchors: int, usual: float, final: float) -> tuple[int, float]:
    """How many candidates of a budget are scored on all items whatever they promise, and the share that all take.

    These are the anchors, and the first ones until estimates can be made; the others take `usual` on average, and
    what is scored at the end takes `final` of the items of all.
    """
    whole = min(evaluations, max(anchors, LEAST))
    return whole, min((whole + usual * (evaluations - whole)) / evaluations + final, 1.0)


def missing(job: Job) -> list[str]:
    """Why data files and tasks of this host cannot be read, one sentence each; they are looked at, and not read.

    Data sets and tasks that go by a name are left to the run. Raises OptionError for options that are refused.
    """
    root, found = Path(job.root or "."), list[str | None]()
    for entry in job.evaluators:
        kind = evaluators.load(entry.kind).Options
        if not issubclass(kind, ItemOptions | HarnessOptions):
            continue  # another's, whose options mean what they mean
        asked = parse(kind, entry.name, entry.options)
        sources = [asked.data.calibration, asked.data.heldout] if isinstance(asked.data, Files) else [asked.data]
        why = [items.missing(source, root) for source in sources if source is not None]
        why += [task_files.missing(asked.task, root)] if isinstance(asked, HarnessOptions) else []
        found += [None if one is None else f"evaluator {entry.name!r}: {one}" for one in why]
    return list(dict.fromkeys(one for one in found if one is not None))


def _counted(entry: EvaluatorEntry, job: Job, gradients: bool) -> int:
    """Raises DataError where that cannot be counted here."""
    kind = evaluators.load(entry.kind).Options
    if not issubclass(kind, ItemOptions):
        raise DataError(f"kind {entry.kind} says what its items are when it is made")
    asked = parse(kind, entry.name, entry.options)
    sources = [asked.data.calibration, asked.data.heldout] if isinstance(asked.data, Files) else [asked.data]
    if any(source.startswith("datasets:") for source in sources):
        raise DataError("its items are on the hub")
    many = len(load_items(asked, Path(job.root or "."), None).splits.calibration)
    return many - round((job.driver.gradients or Gradients()).train * many) if gradients else many


def said_of_rungs(found: dict[str, Any]) -> str:
    """What `rungs_on_paper` found, for people."""
    lines = []
    for place, rung in enumerate(found["rungs"]):
        each = "all items" if rung["items"] is None else f"{rung['items']} items of each task"
        in_all = "" if rung["in_all"] is None else f" ({rung['in_all']} in all tasks)"
        lines.append(f"{each}{in_all}: {_who(found['rule'], place, rung['share'])}")
    stopped = "of those that stopped the most promising"
    lines.append(f"in the end {found['final']:.0%} of the candidates, {stopped}, are scored on all")
    if found["usual_share"] is not None:
        most = "at most" if found["rule"] == "racing" else "about"
        lines.append(f"so before the end one of these takes {most} {found['usual_share']:.2f} of the items")
        lines.append(
            f"of {found['evaluations']} candidates {found['whole']} are scored on all whatever they promise "
            f"({found['anchors']} anchors), so the whole search takes {most} {found['search_share']:.2f} of the items"
        )
    lines += [f"items of {name} are not counted: {why}" for name, why in found["uncounted"].items()]
    return "\n".join(lines)


def _who(rule: str, place: int, share: float) -> str:
    if place == 0:
        return "every candidate, but for anchors and the first ones, which are scored on all"
    return f"the best {100 * share:.3g}% of them" if rule == "halving" else "those that may still be on the front"
