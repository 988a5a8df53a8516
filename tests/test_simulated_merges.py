"""Are simulated merges what they were, are their slopes right, and does the benchmark of drivers count as it says?"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import search as benchmark
from benchmarks.simulated import searches
from benchmarks.simulated.merge import Merge
from benchmarks.simulated.problems import domain
from optimizer.driver import Outcome, Question, Wants

GOLDEN = {
    "mlp24": ([0.5358138814682094, 0.4621398689818427], [0.6590279481753074, 0.4276951605777099]),
    "mlp48": (
        [0.5141143608368858, 0.5824455962358153, 0.8432035213445318],
        [0.8509526760610976, 0.6725080884940736, 0.8143847265805697],
    ),
    "mlp96": (
        [0.4689521781569653, 1.097304413773877, 0.5316806038859153],
        [0.5883893662253926, 1.3014155876372726, 0.7571677484208517],
    ),
    "ana24": ([0.19689451517430798, 0.17272880025016074], [0.27763283387896165, 0.11374366100194931]),
    "ana96": (
        [0.3703054197105074, 0.17847075639151633, 0.11242115077523981],
        [1.5267484252288464, 0.49963964775092234, 0.9860470395976411],
    ),
}
"""Objectives at 0.3 everywhere, and at 0 to 1 in equal steps; of the program that the hypervolumes were found with."""

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("mlp48", "mlp96")]


def merge(name: str) -> Merge:
    found = benchmark.problem(name)
    assert isinstance(found, Merge)
    return found


def inside(problem: Merge) -> NDArray[np.float64]:
    return np.random.default_rng(3).random(problem.shape[0] * problem.shape[1])


@pytest.mark.parametrize("name", ["mlp24", "ana24", "ana96", *SLOW])
def test_objectives_are_those_that_the_reference_hypervolumes_are_of(name: str) -> None:
    problem = merge(name)
    dim = problem.shape[0] * problem.shape[1]
    for point, golden in zip((np.full(dim, 0.3), np.linspace(0, 1, dim)), GOLDEN[name], strict=True):
        np.testing.assert_allclose(problem.objectives(point), golden, rtol=0, atol=1e-9)
    box = domain(problem)
    assert box.base is not None and box.vertices is not None
    np.testing.assert_allclose(problem.objectives(box.base), 1, rtol=1e-12)
    for task, vertex in enumerate(box.vertices):
        assert abs(problem.objectives(vertex)[task]) < 1e-12


@pytest.mark.parametrize("name", ["mlp24", "ana24"])
def test_slopes_are_those_of_the_objectives(name: str) -> None:
    problem = merge(name)
    point, step = inside(problem), 1e-5
    losses, slopes = problem.slopes(point)
    np.testing.assert_allclose(losses, problem.objectives(point), rtol=1e-12)
    for i, row in enumerate(np.eye(len(point))):
        ahead, behind = problem.objectives(point + step * row), problem.objectives(point - step * row)
        np.testing.assert_allclose(slopes[:, i], (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-8)


def test_cosines_are_those_of_the_slope_by_weights_and_of_experts() -> None:
    problem = merge("ana24")
    groups, experts = problem.shape
    coefficients = inside(problem).reshape(groups, experts)
    weights = np.einsum("gk,gkp->gp", coefficients, problem.deltas) + problem.base
    span = np.subtract(
        *(
            np.array([problem.tasks.losses(w, c)[t] for t, (w, c) in enumerate(rows)])
            for rows in (
                [(problem.base, np.zeros((groups, experts)))] * experts,
                [(problem.deltas[:, k], np.tile(np.eye(experts)[k], (groups, 1))) for k in range(experts)],
            )
        )
    )

    def mean(moved: NDArray[np.float64]) -> float:
        return float(np.mean(problem.tasks.losses(moved, coefficients) / span))

    found = problem.cosines(coefficients.ravel()).reshape(groups, experts)
    for g in range(groups):
        by_weights = np.zeros(weights.shape[1])
        for p in range(len(by_weights)):
            moved = np.zeros_like(weights)
            moved[g, p] = 1e-5
            by_weights[p] = (mean(weights + moved) - mean(weights - moved)) / 2e-5
        for k in range(experts):
            expert = problem.deltas[g, k]  # the base is 0
            cosine = by_weights @ expert / np.linalg.norm(by_weights) / np.linalg.norm(expert)
            assert found[g, k] == pytest.approx(cosine, abs=1e-6)


class Scripted:
    """Asks what it is given, as much at a time as there is room for, and keeps what it is told."""

    def __init__(self, wants: Sequence[Wants], dim: int) -> None:
        self.left = [Question(i, np.full(dim, 0.3 + 0.01 * i), want) for i, want in enumerate(wants)]
        self.asked, self.told, self.flights = 0, list[Outcome](), list[int]()

    done = False

    def ask(self, n: int) -> list[Question]:
        found, self.left = self.left[:n], self.left[n:]
        self.asked += len(found)
        return found

    def replay(self, n: int, questions: Sequence[Question]) -> None: ...

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        self.flights.append(self.asked - len(self.told))
        self.told += outcomes


def scripted(monkeypatch: pytest.MonkeyPatch, wants: Sequence[Wants], budget: int, workers: int = 1) -> Any:
    problem = merge("ana24")
    driver = Scripted(wants, problem.shape[0] * problem.shape[1])
    monkeypatch.setattr(searches, "made", lambda *given: driver)
    return searches.search(problem, "sobol", 0, budget, workers=workers), driver


def test_scores_cost_one_and_gradients_three_and_show_the_objectives(monkeypatch: pytest.MonkeyPatch) -> None:
    found, driver = scripted(monkeypatch, ["scores", "gradient", "sizes", "gradients", "cosines"], 100)
    assert (found.cost, found.questions, found.ended) == (10, 5, True)
    # larger coefficients are better here: each point adds to the front, but for the one that shows nothing
    assert [cost for cost, _ in found.curve] == [1, 4, 7, 10]
    values = [value for _, value in found.curve]
    assert values == sorted(values) and values[0] == pytest.approx(np.prod(1 - np.array(GOLDEN["ana24"][0])))
    problem = merge("ana24")
    by_want = {outcome.question.wants: outcome for outcome in driver.told}
    for want in ("gradient", "gradients", "cosines"):
        np.testing.assert_allclose(by_want[want].losses, problem.objectives(by_want[want].question.point), rtol=1e-12)
    slopes = problem.slopes(by_want["gradient"].question.point)[1]
    np.testing.assert_allclose(by_want["gradient"].gradient, slopes.mean(axis=0, keepdims=True), rtol=1e-12)
    assert by_want["gradients"].gradient.shape == (2, 24) and by_want["cosines"].gradient.shape == (1, 24)
    assert by_want["sizes"].gradient.shape == (1, 24) and not len(by_want["sizes"].losses)


def test_a_search_ends_at_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    found, driver = scripted(monkeypatch, ["scores", "gradient", "gradient"] * 9, 12)
    assert (found.cost, found.ended, driver.asked) == (14, False, 6)


def test_so_many_questions_are_in_flight_before_the_next_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    _, driver = scripted(monkeypatch, ["scores"] * 10, 10, workers=4)
    assert driver.flights == [4] * 7 + [3, 2, 1]
    assert [outcome.question.number for outcome in driver.told] == list(range(10))


def test_walks_take_all_items_unless_told_otherwise() -> None:
    assert [searches.options_of("supervised", given).batch for given in ({}, {"batch": 8})] == [0, 8]
    assert "batch" not in searches.options_of("sobol", {}).model_dump()


def test_a_front_counts_what_nothing_shown_before_dominates() -> None:
    front = searches.Front(2)
    shown = [([0.5, 0.5], True), ([0.6, 0.5], False), ([1.0, -1.0], False), ([0.2, 0.9], True), ([0.1, 0.4], True)]
    for losses, larger in shown:
        assert front.show(np.array(losses)) is larger
    assert front.hypervolume == pytest.approx(0.9 * 0.6)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = benchmark.main(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_drivers_are_compared_and_what_is_done_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, page = tmp_path / "searches.json", tmp_path / "searches.html"
    common = ("--problems", "mlp24", "--seeds", "0", "1", "--budgets", "30", "60", "--out", str(out))
    drivers = ("sobol", "cma", "cma/wide", "supervised")
    options = ("--options", json.dumps({"cma/wide": {"sigma0": 0.9}}))
    code, table, err = run(capsys, *common, "--drivers", *drivers, *options, "--plot", str(page))
    assert code == 0 and err.count("seed") == 8
    rows = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in table.splitlines() if line.startswith("| ")}
    assert set(rows) == {"driver", *drivers} and rows["driver"][:2] == ["30", "60"]
    for name in drivers:
        first, last = (float(cell.partition(" ")[0]) for cell in rows[name][:2])
        assert 40 < first <= last < 100 * 1.01
    assert rows["cma"] != rows["cma/wide"]
    text = page.read_text()
    assert all(f'"{name}"' in text for name in ("mlp24", "sobol", "cma", "supervised"))
    assert not re.search(r"<(script|link)[^>]* (src|href)=", text)  # it fetches nothing

    searched: list[str] = []
    real = searches.search
    monkeypatch.setattr(benchmark, "search", lambda *given: (searched.append(given[1]), real(*given))[1])
    code, again, _ = run(capsys, *common, "--drivers", *drivers, *options)
    assert code == 0 and again == table and not searched
    run(capsys, *common, "--drivers", "sobol", "random")
    assert searched == ["random", "random"]


def test_a_search_that_ended_by_itself_is_not_computed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "searches.json")
    common = ("--problems", "ana24", "--seeds", "0", "--drivers", "frank_wolfe", "sobol", "--out", out)
    assert run(capsys, *common, "--budgets", "100")[2].count("seed") == 2
    _, table, err = run(capsys, *common, "--budgets", "200")
    assert err.count("seed") == 1 and "sobol" in err
    assert next(line for line in table.splitlines() if "frank_wolfe" in line).split(" | ")[2] == "46"


def test_a_problem_of_the_users_own_is_searched_by_drivers_that_ask_for_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = "def bowl():\n    return (3, 2), lambda c: [((c - 0.2) ** 2).mean(), ((c - 0.7) ** 2).mean()]\n"
    Path("own_problem.py").write_text(source)
    common = ("--problems", "--problem-from", "own_problem:bowl", "--budgets", "40", "--seeds", "0")
    code, table, _ = run(capsys, *common, "--drivers", "cma", "supervised")
    assert code == 0 and "### own_problem:bowl: 3 groups x 2 experts" in table and "\n| cma | " in table
    assert "Not compared: supervised on own_problem:bowl (it asks for gradient" in table
    Path("bad_problem.py").write_text(
        "def shape():\n    return 3\ndef none():\n    return (0, 0), lambda c: [1.0]\n"
        "def raises():\n    raise KeyError('key')\ndef stuck():\n    return (1, 1), lambda c: {}['key']\n"
        "def nan():\n    return (1, 1), lambda c: [float('nan')]\n"
        "def low():\n    return (1, 1), lambda c: [-1e307]\n"
    )
    for entry, told in (
        ("own_problem:bowel", "AttributeError"),
        ("bad_problem:shape", "got 3"),
        ("bad_problem:none", "groups and experts are from 1"),
        ("bad_problem:raises", "KeyError: 'key'"),
        ("bad_problem:stuck", "got KeyError at [0.3]: 'key'; mend the function"),
        ("bad_problem:nan", "expected m finite losses of -1e+06 or more at [0.3], got [nan]"),
        ("bad_problem:low", "got [-1e+307]"),
        ("nobody", "No module"),
    ):
        code, out, err = run(capsys, "--problems", "--problem-from", entry)
        assert code == 2 and told in err and err.count("\n") == 1 and not out


@pytest.mark.parametrize(
    ("then", "told"),
    [
        ("raise OSError('gone')", "got OSError at [0. 0.]: gone; mend the function"),
        ("return [float('nan')]", "expected 1 finite losses of -1e+06 or more at [0. 0.], got [nan]"),
        ("return [0.5, 0.5]", "got [0.5, 0.5]"),
        ("return [-1e307]", "got [-1e+307]"),
    ],
)
def test_a_problem_that_fails_once_it_is_searched_is_refused_with_the_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, then: str, told: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "late_problem", raising=False)
    source = f"def losses(c):\n    if c.sum():\n        return [0.5]\n    {then}\n"
    (tmp_path / "late_problem.py").write_text(f"{source}\ndef late():\n    return (1, 2), losses\n")
    benchmark.problem.cache_clear()
    code, out, err = run(capsys, "--problems", "--problem-from", "late_problem:late", "--budgets", "9", "--seeds", "0")
    assert code == 2 and told in err and err.count("\n") == 1 and not out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--drivers", "soboll"], "did you mean 'sobol'?"),
        (["--options", "{"], "expected JSON"),
        (["--options", "[1]"], "expected an object of objects"),
        (["--drivers", "sobol", "--options", '{"cma": {}}'], "cma is not among --drivers"),
        (["--drivers", "cma", "--options", '{"cma": {"sigma": 1}}'], "its options are: sigma0, popsize"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_is_searched(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "search", lambda *given: pytest.fail("searched"))
    code, out, err = run(capsys, "--problems", "ana24", *arguments)
    assert code == 2 and told in err and not out


@pytest.mark.parametrize("flag", ["--out", "--plot"])
def test_what_cannot_be_written_is_refused_before_anything_is_searched(
    tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "search", lambda *given: pytest.fail("searched"))
    for path, told in ((tmp_path, "it is a folder"), (tmp_path / "nowhere" / "x", "or name another")):
        code, out, err = run(capsys, "--problems", "ana24", flag, str(path))
        assert code == 2 and f"{flag} {path}: expected a file" in err and told in err and not out
    code, out, err = run(capsys, "--problems", flag, str(tmp_path / "x"))
    assert code == 2 and err == "error: --problems: expected one or more, or --problem-from; name one\n" and not out


def test_a_file_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = '{"format": "mergeopt searches 1", "cells": '
    others = ("[]", "{}", "not JSON", '{"format": "mergeopt searches 0", "cells": {}}')
    for text in (*others, cells + "[]}", cells + '{"a": 1}}', cells + '{"a": {"curve": [["x", 1]]}}}'):
        (tmp_path / "other.json").write_text(text)
        code, _, err = run(capsys, "--problems", "ana24", "--out", str(tmp_path / "other.json"))
        assert code == 2 and f"--out {tmp_path / 'other.json'}: expected a file of this benchmark" in err
        assert err.count("\n") == 1
        assert (tmp_path / "other.json").read_text() == text
