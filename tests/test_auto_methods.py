"""What does `auto` make of several methods and gradients? It asks those of the one that promises most."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import moocore
import numpy as np
import pytest
import worlds
from driver_rows import Box, frozen, mixed
from numpy.typing import NDArray
from quadratics import domain, made

from optimizer import Job, Run
from optimizer.driver import ANCHOR, FOREIGN, Driver, Outcome, Question, Trained
from optimizer.drivers.shared.criterion import promising
from optimizer.drivers.shared.scale import Scale
from optimizer.errors import JobError
from optimizer.record.ledger import Ledger

Array = NDArray[np.float64]
GROUPS, EXPERTS, CONFLICT = 8, 2, (1.0, 0.2)
BUDGET = 40


def choice(methods: int = 2) -> Box:
    """Coefficients, and which method merges."""
    dim = GROUPS * EXPERTS
    low, high = np.zeros(dim + 1), np.append(np.ones(dim), methods - 1.0)
    return Box(frozen(low), frozen(high), frozen(np.append(np.full(dim, 0.3), 0.0)), (GROUPS, EXPERTS), ("choice",))


def told(point: Array, method: int | None = None) -> tuple[Array, Array]:
    """Losses `(2,)` of two tasks, 1 at the base, and their slopes: experts conflict, less in method 1."""
    rows = point[: GROUPS * EXPERTS].reshape(GROUPS, EXPERTS)
    conflict = CONFLICT[int(point[-1]) if method is None else method]
    own, other = rows, rows[:, ::-1]
    losses = 1 + (own**2 - 2 * own + conflict * other**2).mean(axis=0)
    slopes = np.zeros((EXPERTS, len(point)))
    for task in range(EXPERTS):
        by = 2 * conflict * rows
        by[:, task] = 2 * rows[:, task] - 2
        slopes[task, : GROUPS * EXPERTS] = by.ravel() / GROUPS
    return losses, slopes


def answer(question: Question, method: int | None = None) -> Outcome:
    losses, slopes = told(question.point, method)
    return Outcome(question, losses, np.zeros(2), slopes if question.wants == "gradients" else None)


def anchors(driver: Driver, where: Box, methods: int, alike: bool = False) -> None:
    """Base and experts once, as what they are under the first method, and a sweep of each method (or of the second)."""
    ends = [np.zeros(2), *np.eye(2)]
    rows = [(row, 0) for row in ends] + [(np.full(2, c), m) for m in range(methods) for c in (0.3, 0.5)]
    for i, (row, method) in enumerate(rows):
        point = np.append(np.tile(row, GROUPS), method)[: len(where.low)]
        driver.tell([answer(Question(FOREIGN, frozen(point), stage=f"{ANCHOR}{i}"), 1 if alike else method)])


def trained(where: Box, objectives: int = 2, **options: Any) -> Driver:
    driver = made("auto", where, objectives, **options)
    cast(Trained, driver).trained_on(objectives)
    return driver


def search(driver: Driver, count: int, method: int | None = None) -> list[Outcome]:
    found = []
    for _ in range(count):
        (question,) = driver.ask(1)
        found.append(answer(question, method))
        driver.tell(found[-1:])
    return found


def volume(found: list[Outcome]) -> float:
    scored = [o.losses for o in found if o.question.wants == "scores"]
    return float(moocore.hypervolume(np.array(scored), ref=np.ones(2)))


def test_gradients_are_of_the_method_that_promises_most_and_others_stay_candidates() -> None:
    where = choice()
    driver = trained(where, steps=15)
    anchors(driver, where, 2)
    found = search(driver, BUDGET)
    walked = [o.question.point for o in found if o.question.wants == "gradients"]
    assert len(walked) == 15 and {point[-1] for point in walked} == {1.0}
    assert (walked[0][:-1] == 0).all(), "it begins at the base, under that method"
    assert {o.question.point[-1] for o in found if "foretold" in o.question.stage} == {1.0}


def test_a_method_that_is_as_good_stays_a_candidate() -> None:
    driver = trained(choice(), steps=6)
    anchors(driver, choice(), 2, alike=True)
    found = search(driver, 60, method=1)
    levels = [o.question.point[-1] for o in found if "level" in o.question.stage]
    assert set(levels) == {0.0, 1.0} and len(levels) > 12


def test_it_finds_what_a_job_of_the_better_method_alone_finds() -> None:
    where, alone = choice(), domain(GROUPS, EXPERTS)
    several = trained(where, steps=15)
    anchors(several, where, 2)
    found = [volume(search(several, BUDGET))]
    for method in (1, 0):
        only = trained(alone, steps=15)
        for value in (0.0, 0.3, 0.5):
            question = Question(FOREIGN, frozen(np.full(GROUPS * EXPERTS, value)), stage=f"{ANCHOR}{value}")
            only.tell([answer(question, method)])
        found.append(volume(search(only, BUDGET, method)))
    assert found[0] > 0.97 * found[1] > 1.2 * found[2]


def test_candidates_of_other_methods_do_not_count_as_there() -> None:
    """What gradients foretell is of their own method: of another, the same coefficients are another model."""
    where = choice()
    one, other = (trained(where, steps=6) for _ in range(2))
    for driver in (one, other):
        anchors(driver, where, 2)
    walked = search(one, 7)
    for told_of in walked:
        (question,) = other.ask(1)
        other.tell([replace(told_of, question=question)])
    for row in np.array(np.meshgrid([0.5, 0.7, 0.9], [0.5, 0.7, 0.9])).T.reshape(-1, 2):
        point = np.append(np.tile(row, GROUPS), 0.0)  # what the second has seen besides is of method 0
        other.tell([answer(Question(FOREIGN, frozen(point)))])
    (mine,), (theirs,) = one.ask(1), other.ask(1)
    assert "foretold" in mine.stage and (mine.point == theirs.point).all()


@pytest.mark.parametrize("objectives", [1, 2])
def test_other_coordinates_are_held_whatever_they_are(objectives: int) -> None:
    where = mixed()
    driver = trained(where, objectives, steps=8)
    held = where.start.copy()
    held[4:] = [0.7, 2, 3, 1]
    for point, loss in ((where.start, 1.0), (held, 0.2)):
        question = Question(FOREIGN, frozen(point), stage=ANCHOR)
        driver.tell([Outcome(question, np.full(objectives, loss), np.zeros(objectives))])
    walked = []
    for _ in range(16):
        (question,) = driver.ask(1)
        loss = np.full(objectives, float(((question.point - 0.5) ** 2).mean()))
        slopes = np.tile(2 * (question.point - 0.5) / len(question.point), (objectives, 1))
        walked += [question.point[4:].tolist()] if question.wants == "gradients" else []
        driver.tell([Outcome(question, loss, loss, slopes if question.wants == "gradients" else None)])
    assert len(walked) == 8 and all(row == held[4:].tolist() for row in walked)


def test_without_anchors_gradients_are_of_the_first_method() -> None:
    found = search(trained(choice(), steps=5), 8)
    assert {o.question.point[-1] for o in found if o.question.wants == "gradients"} == {0.0}


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([[1, 1], [0, 1.2], [0.6, 0.6], [0.5, 0.5]], 3),  # a compromise, and no expert alone
        ([[1, 1], [0, 1.2], [1.1, 0.2]], 1),  # none dominates any of the box: the best mean
        ([[0.5, 0.5], [0.5, 0.5]], 0),  # equals: by the point, whoever answered first
    ],
)
def test_what_promises_most(losses: list[list[float]], best: int) -> None:
    made = [
        Outcome(Question(FOREIGN, np.array([float(i)]), stage=ANCHOR), np.array(row, dtype=float), np.zeros(2))
        for i, row in enumerate(losses)
    ]
    box = Scale(np.zeros(2), np.ones(2))
    assert promising(made, box).item() == promising(made[::-1], box).item() == best


def job(folder: Path, methods: str, driver: str) -> Job:
    path = worlds.classification(folder, evaluations=24)
    text = path.read_text().replace("space: {granularity: layer}", f"space: {{granularity: layer, method: {methods}}}")
    path.write_text(text.replace("driver: {name: sobol}", f"driver: {{{driver}}}"))
    return Job.load(path)


BY_GRADIENT = "name: auto, gradients: {}, steps: 5, every: 3"


def test_a_job_of_several_methods_asks_for_gradients_of_one_and_resumes(tmp_path: Path) -> None:
    found = []
    for name, kill in (("whole", False), ("killed", True)):
        run = Run.create(job(tmp_path, "[task_arithmetic, tsv_m]", BY_GRADIENT), tmp_path / name)

        def stop(search: Any, answer: Any) -> None:
            if search.answered + search.gradients == 22:
                raise KeyboardInterrupt

        if kill:
            with pytest.raises(KeyboardInterrupt):
                run.search(stop)
        run.search()
        results = run.results()
        assert results.gradients == 5 and not results.failures
        ledger = Ledger.open(run.folder / "ledger.db", readonly=True)
        asked = [q.point for q in ledger.questions("train")]
        ledger.close()
        assert len({point[-1] for point in asked}) == 1
        methods = {results.recipe(c).method for c in results.candidates.values()}
        assert methods == {"task_arithmetic", "tsv_m"}
        found.append([*(p.tobytes() for p in asked), *(c.point.tobytes() for c in results.candidates.values())])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("methods", "driver", "message"),
    [
        ("[task_arithmetic, ties]", BY_GRADIENT, "'ties' with these options is not linear in its coefficients"),
        ("[tsv_m, layer_swap]", BY_GRADIENT, "'layer_swap' takes each group from one model"),
        (
            "[task_arithmetic, tsv_m]",
            "name: supervised",
            "take auto with driver.gradients where all of them are linear",
        ),
    ],
)
def test_methods_without_gradients_are_refused(tmp_path: Path, methods: str, driver: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        Run.create(job(tmp_path, methods, driver), tmp_path / "run")
