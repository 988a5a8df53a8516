"""What are gradients taken of? The losses of a job's tasks, on items that no candidate is scored on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np

from evaluators.errors import meant
from evaluators.evaluator import TAUGHT, Differentiable, Evaluator, Indices, Loss
from evaluators.splits import after_equals
from optimizer import drivers
from optimizer.driver import Items, random_stream
from optimizer.errors import JobError
from optimizer.jobs.job import Job
from optimizer.jobs.job_search import Gradients
from searchspaces import CoefficientSpace, methods
from searchspaces.errors import RecipeError

PARTS = (
    4  # of a gradient, unless the job says: enough for a small cluster, and a few passes over the pool for one worker
)


@dataclass(frozen=True, eq=False)
class Training:
    """The tasks whose losses are differentiated, the loss, and the items that gradients see."""

    tasks: tuple[Differentiable, ...]
    loss: Loss
    share: float  # of the calibration items
    seed: int

    @classmethod
    def of(cls, job: Job, space: CoefficientSpace, made: Sequence[Evaluator]) -> Training | None:
        """The training of a job in its space, or None where its driver asks for no gradients.

        Raises JobError where method, evaluators or items lack what gradients need, naming which lacks what.
        """
        entry, asked = drivers.find(job.driver.name), job.driver.gradients or Gradients()
        if not check_gradients(job, space):
            return None
        who = f"driver {job.driver.name!r} asks for gradients"
        weights: Mapping[str, float] = {asked.loss: 1.0} if isinstance(asked.loss, str) else asked.loss or entry.loss
        loss = Loss(dict(weights), asked.temperature or entry.temperature)
        return cls(_tasks(who, asked.tasks, made, loss), loss, asked.train, job.seed)

    def rows(self, evaluator: Evaluator) -> Indices:
        """Those calibration rows of an evaluator that gradients are to see, sorted; candidates are scored on the rest.

        Raises JobError where either is left without items.
        """
        rows, alike = evaluator.splits.calibration, evaluator.splits.alike
        # equal rows stay together, or gradients would see what decides when to stop
        kinds = np.arange(len(rows)) if alike is None else np.unique(alike[rows], return_inverse=True)[1]
        place = random_stream(self.seed, "train", evaluator.name).permutation(int(kinds.max()) + 1).argsort()[kinds]
        order = np.argsort(place, kind="stable")
        cut = after_equals(place[order], round(self.share * len(rows)))
        if not 0 < cut < len(rows):
            raise JobError(
                f"evaluator {evaluator.name!r}: of {len(rows)} calibration items, driver.gradients.train: {self.share} "
                f"leaves {cut} for gradients and {len(rows) - cut} to score on (equal rows stay together); "
                "both need one at least: give more items, or another share as driver.gradients.train"
            )
        return np.sort(rows[order[:cut]])

    @property
    def follows(self) -> bool:
        """Whether the loss follows experts' outputs."""
        return not set(TAUGHT).isdisjoint(self.loss.weights)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)


def check_gradients(job: Job, space: CoefficientSpace) -> bool:
    """Whether a job's driver asks for gradients. Raises JobError where its space has none, or no use for them."""
    entry = drivers.find(job.driver.name)
    if not entry.asks_gradients(job.driver.gradients):
        if job.driver.gradients not in (None, Gradients()):
            raise JobError(f"driver {job.driver.name!r} asks for no gradients; remove driver.gradients")
        return False
    _coefficients_alone(f"driver {job.driver.name!r} asks for gradients", job, space, entry.several)
    if entry.plain and job.space.simplex:
        raise JobError(
            f"driver {job.driver.name!r} works on the coefficients themselves; set space.simplex: false (its own "
            "steps keep what they need of a simplex), or take another driver"
        )
    return True


def _coefficients_alone(who: str, job: Job, found: CoefficientSpace, several: bool) -> None:
    """Raises JobError where a space has more to search than coefficients that merged weights are linear in.

    `several`: but for linear methods to choose from.
    """
    space, remedy = job.space, "or take a driver that asks for scores (cma, tpe)"
    if drivers.find(job.driver.name).optional:
        remedy = "or leave out driver.gradients: by scores alone it searches that too"
    if len(space.methods) > 1 and not several:
        raise JobError(
            f"{who}, and which of {', '.join(space.methods)} is best has none; name one as space.method, take auto "
            f"with driver.gradients where all of them are linear, {remedy}"
        )
    if space.searched:
        named = ", ".join(f"space.options.{name}" for name in space.searched)
        raise JobError(f"{who}, and {named} has none; fix its value, or leave it out, {remedy}")
    if picks := [name for name in space.methods if methods.load(name).picks]:
        raise JobError(
            f"{who}, and the method {picks[0]!r} takes each group from one model: it has none; take another method, "
            f"{remedy}"
        )
    try:
        found.check_linear()
    except RecipeError as error:
        raise JobError(f"{who}, and {error}, {remedy}") from None


def minibatch(rows: Indices, items: Items, seed: int, name: str) -> Indices:
    """Minibatch number `items.draw` of `items.batch` rows; all rows where that is 0, or no less than there are.

    Minibatches follow each other through a shuffled list of all rows, then through a list shuffled anew.
    """
    n = len(rows)
    if items.batch == 0 or items.batch >= n:
        return rows
    places = np.arange(items.draw * items.batch, (items.draw + 1) * items.batch)
    found = np.empty(items.batch, dtype=np.int64)
    for epoch in np.unique(places // n):
        shuffled = random_stream(seed, "minibatch", name, int(epoch)).permutation(n)
        here = places // n == epoch
        found[here] = rows[shuffled[places[here] % n]]
    return found


def _tasks(who: str, names: Sequence[str] | None, made: Sequence[Evaluator], loss: Loss) -> tuple[Differentiable, ...]:
    by_name = {e.name: e for e in made}
    for i, name in enumerate(names or ()):
        if name in (names or ())[:i]:
            raise JobError(f"driver.gradients.tasks: {name!r} is listed twice; list each task once")
        if name not in by_name:
            raise JobError(f"driver.gradients.tasks: no evaluator {name!r}; there are: {', '.join(by_name)}")
    for kind, weight in loss.weights.items():
        if not (np.isfinite(weight) and weight > 0):
            raise JobError(f"driver.gradients.loss: the weight of {kind!r} is {weight}; expected a positive number")
    tasks = [cast(Differentiable, by_name[name]) for name in names or by_name]
    for task in tasks:
        for kind in loss.weights:
            if not task.losses:
                others = ", ".join(e.name for e in made if getattr(e, "losses", None))
                remedy = f"say driver.gradients.tasks: [{others}]" if others else "add one that has losses"
                raise JobError(f"{who}; evaluator {task.name!r} can be scored and not differentiated: {remedy}")
            if kind not in task.losses:
                offered = ", ".join(task.losses)
                raise JobError(
                    f"{who} of the loss {kind!r}, which evaluator {task.name!r} does not offer (its losses: {offered});"
                    f" {meant(kind.lower(), task.losses)}name one of these under driver.gradients.loss, or other "
                    "evaluators under driver.gradients.tasks"
                )
        if not set(TAUGHT).isdisjoint(loss.weights) and task.teacher is None:
            raise JobError(
                f"evaluator {task.name!r}: the losses kl and hidden follow an expert, and it names none; "
                "give it a `teacher`"
            )
    return tuple(tasks)
