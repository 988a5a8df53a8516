"""Which models are compared with as they are? Base and experts, where no anchor is exactly that model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from evaluators.evaluator import brings_head
from optimizer.jobs.assemble import most_anchors

if TYPE_CHECKING:
    from optimizer.jobs.problem import Problem
    from searchspaces import CoefficientSpace, Pool


def references(problem: Problem, space: CoefficientSpace) -> list[str]:
    """`base` and experts that a job is to score as they are, beside its candidates.

    An anchor is an expert exactly where its method restores it, every group takes it, and what merges take from the
    base is the same in both. Reads the tensors that are not merged, and no others.
    """
    anchored = _anchored(problem, space)
    # what evaluators bring no head for is scored with the model's own
    heads = not all(map(brings_head, problem.evaluators))
    return [
        name
        for name in ("base", *problem.pool.names)
        if name not in anchored or not (name == "base" or _same_beside(problem.pool, name, heads))
    ]


def _anchored(problem: Problem, space: CoefficientSpace) -> set[str]:
    """The models whose merged tensors an anchor within the budget has."""
    job, found = problem.job, set()
    for label, point in space.anchors(most_anchors(job)) if job.driver.anchors else ():
        rows = space.decode(point).coefficients
        if (rows != rows[0]).any():  # frozen groups keep their start
            continue
        if label == "base" and not rows.any():
            found.add("base")
        elif label.startswith("expert: "):
            found.add(label.removeprefix("expert: ").partition(" (")[0])  # of several methods, each is named
    return found


def _same_beside(pool: Pool, name: str, heads: bool) -> bool:
    """Whether an expert's tensors that are not merged are the base's; of its heads only where those are looked at."""
    expert, own = pool.opened[name], pool.heads.get(name, {})
    for info in pool.copied:
        found = expert.tensors.get(info.name)
        if found is None or found.shape != info.shape or (info.name in own and not heads):
            continue
        if not torch.equal(expert.tensor(info.name).to(info.dtype), pool.base.tensor(info.name)):
            return False
    return True
