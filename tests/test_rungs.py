"""Are candidates scored on few items first, and on more while they promise something? The front is of whole ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import worlds
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from evaluators.metrics import mean
from optimizer import Job, Run
from optimizer.answer import Answer, Failure
from optimizer.commands.cli import app
from optimizer.driver import WHOLE, Items, Outcome, Question, reference
from optimizer.drivers.sampling import Sobol
from optimizer.errors import JobError
from optimizer.executors.rungs import Rungs
from optimizer.executors.worker import Worker, specification
from optimizer.jobs.assemble import build_ladder, plan_of
from optimizer.jobs.checking import check_job
from optimizer.jobs.job_search import Fidelity
from optimizer.objectives import Objective
from optimizer.output import logs, plain
from optimizer.record.ledger import Ledger
from optimizer.rungs.ladder import Ladder
from optimizer.rungs.rules import among_the_best, dominated, part, promise
from optimizer.rungs.whole import Known
from optimizer.searching.search import Search
from optimizer.views import summary
from optimizer.views.kept import kept

HALVING = "fidelity: {rungs: [8, 16], keep: 0.4}"
RACING = "fidelity: {rungs: [6, 12, 20], rule: racing, sure: 0.8, estimate: gmp_irt, choose: clusters}"
FINALISTS = 4  # a tenth of 40
METRICS = ("spam.accuracy", "mood.cross_entropy")


@pytest.fixture(scope="module", params=[HALVING, RACING], ids=["halving", "racing"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    job = worlds.classification(tmp_path_factory.mktemp("world"), evaluations=40, extra=request.param)
    return worlds.searched(job)


def test_some_stop_early_and_the_front_is_of_candidates_scored_on_all_items(finished: Run) -> None:
    results = finished.results()
    found = list(results.candidates.values())
    partly = [c for c in found if c.share < 1]
    assert len(found) == 40 and 0 < len(partly) < 33 and sum(len(c.told) > 0 for c in found) > 20
    assert not {c.number for c in partly} & set(results.front.numbers)
    assert all(c.share == 1 for c in [*results.on_front, *(c for c in found if c.is_anchor)])
    for c in results.on_front:
        assert all(c.measures[m].count == 30 for m in METRICS) and c.heldout


def test_in_the_end_the_most_promising_of_those_that_stopped_are_scored_on_all_items(finished: Run) -> None:
    results = finished.results()
    finals = [c for c in results.candidates.values() if c.row is not None]
    most = FINALISTS if finished.job.fidelity.rule == "halving" else 0  # who was raced out promises nothing
    assert most <= len(finals) <= FINALISTS and {c.number for c in finals} <= set(range(40))
    assert all(c.share == 1 and len(c.told) > 0 for c in finals), "what was thought of them is kept"
    assert {c.number for c in finals} <= set(results.front.numbers)
    for c in finals:
        assert results.items([c.number], "calibration")[c.number]["spam.accuracy"].shape == (30,)
        assert bool(c.heldout) == (c in results.on_front)


def test_an_estimate_says_of_how_many_items_it_is_and_how_sure(finished: Run) -> None:
    results = finished.results()
    rungs = finished.job.fidelity.rungs
    for c in results.candidates.values():
        told = [round(30 * t.share) for t in c.told]
        if c.share < 1:
            assert told == rungs[: len(told)] and round(30 * c.share) == told[-1]
            for name in METRICS:
                m = c.measures[name]
                assert m.count == told[-1] and m.stderr is not None and m.stderr > 0
                kept = results.items([c.number], "calibration")[c.number][name]
                assert kept.shape == (30,) and int(np.isfinite(kept).sum()) == told[-1]
        elif told:
            assert told == rungs or c.row is not None, "a whole candidate came by every rung, or was a finalist"


def test_a_driver_is_told_which_losses_are_estimates_and_how_sure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Outcome] = []
    tell = Sobol.tell

    def noted(driver: Sobol, outcomes: Sequence[Outcome]) -> None:
        heard.extend(outcomes)
        tell(driver, outcomes)

    monkeypatch.setattr(Sobol, "tell", noted)
    run = worlds.searched(
        worlds.classification(tmp_path, evaluations=24, extra="fidelity: {rungs: [8], keep: 0.4, final: 0}")
    )
    found = [(c.share, *(c.measures[name].stderr for name in METRICS)) for c in run.results().candidates.values()]
    assert {share == 1 for share, *_ in found} == {True, False}
    assert sorted((o.share, *o.stderr.tolist()) for o in heard) == sorted(found)


def test_a_candidate_that_came_by_every_rung_has_the_scores_that_it_has_at_once(finished: Run) -> None:
    results, worker = finished.results(), Worker(specification(finished.job, False), "again")
    climbed = [c for c in results.candidates.values() if c.told and c.share == 1]
    assert climbed
    for c in climbed[:4]:
        at_once = worker.answer(Question(c.number, c.point))
        for name, m in at_once.measures.items():
            assert c.measures[name].value == pytest.approx(m.value, rel=1e-6)
            assert c.measures[name].stderr == pytest.approx(m.stderr, rel=1e-6)
        kept = results.items([c.number], "calibration")[c.number]
        assert all(np.array_equal(kept[name], row) for name, row in at_once.per_item.items())


@pytest.mark.parametrize("rung", [0, 1, 2])
def test_a_rung_costs_what_its_items_cost_and_gives_what_all_of_them_would(tmp_path: Path, rung: int) -> None:
    job = worlds.classification(tmp_path, extra=HALVING)
    worker = Worker(specification(Job.load(job), False), "one")
    spam = worker.problem.evaluators[0]
    sizes: list[int] = []
    forward = spam._forward  # type: ignore[attr-defined]
    spam._forward = lambda model, inputs, layers: (  # type: ignore[attr-defined]
        sizes.append(len(inputs["input_ids"])) or forward(model, inputs, layers)
    )
    ladder = build_ladder(worker.job, worker.problem, lambda number: {})
    assert ladder is not None
    places = ladder.block(0, rung)
    point = worker.space.domain.start
    part = worker.answer(Question(0, point, items=Items(places=places)))
    assert sum(sizes) == len(places[0]) == (8, 8, 14)[rung], "no other item went through the model"
    whole = worker.answer(Question(0, point))
    for i, name in enumerate(("spam", "mood")):
        found = part.per_item[f"{name}.cross_entropy"]
        assert np.array_equal(found, whole.per_item[f"{name}.cross_entropy"][list(places[i])]), "to the bit"


def test_stopped_anywhere_and_resumed_it_ends_the_same(finished: Run, tmp_path: Path) -> None:
    run = Run.create(finished.job.model_copy(update={"name": "stopped"}), tmp_path)

    def stop_at(count: int) -> Callable[[Search, Answer], None]:
        return lambda search, answer: search.stop() if search.answered == count else None

    for count in (3, 11, 12, 27, 40):  # the last among those that are scored on all items in the end
        assert run.search(stop_at(count)).stopped
    run.search()
    first, second = finished.results().candidates, run.results().candidates
    assert {n: (c.recipe, c.share, dict(c.measures), list(c.told)) for n, c in first.items()} == {
        n: (c.recipe, c.share, dict(c.measures), list(c.told)) for n, c in second.items()
    }


def test_finalists_are_chosen_once_whatever_their_scores_say_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all items known of some, others may promise most: a resume would score ever more."""
    monkeypatch.setattr(Ladder, "finalists", lambda ladder, answered: list(ladder._partly)[:2])
    job = worlds.classification(tmp_path, evaluations=24, extra="fidelity: {rungs: [8], keep: 0.2}")
    run = worlds.searched(job)
    whole = [c.number for c in run.results().candidates.values() if c.share == 1]

    def stop_at_once(search: Search, answer: Answer) -> None:
        if search.phase == "finalists":
            search.stop()

    assert not run.search().stopped and whole == [c.number for c in run.results().candidates.values() if c.share == 1]
    stopped = Run.create(run.job.model_copy(update={"name": "stopped"}), tmp_path)
    assert stopped.search(stop_at_once).stopped
    stopped.search()
    assert whole == [c.number for c in stopped.results().candidates.values() if c.share == 1]
    longer = run.search(evaluations=30)
    assert longer.answered == 30 and sum(c.row is not None for c in run.results().candidates.values()) == 4


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("fidelity: {rungs: [8, 30]}", "at most 29"),
        ("fidelity: {rungs: [300]}", "has 30 calibration items; name at most 29"),
        ("fidelity: {rungs: [16, 8]}", r"numbers of items that grow, got \[16, 8\]; sort them, each once$"),
        ("fidelity: {rungs: [8], keeps: 0.2}", r"fidelity\.keeps: unknown key; did you mean 'keep'\?"),
        ("fidelity: {rungs: []}", "rungs"),
        ("fidelity: {rungs: [0, 8]}", "rungs"),
        ("fidelity: {rungs: [8], keep: 1.0}", "keep"),
        ("fidelity: {rungs: [8], rule: luck}", "halving"),
        ("fidelity: {rungs: [8], estimate: guess}", "there are: mean"),
        ("fidelity: {rungs: [8], choose: best}", "there are: turns, random, clusters"),
        ("fidelity: {shares: [0.1]}", "shares"),
    ],
)
def test_what_cannot_be_is_refused_with_what_would_work(tmp_path: Path, said: str, words: str) -> None:
    job = worlds.classification(tmp_path, extra=said)
    with pytest.raises(JobError, match=words):
        Run.create(Job.load(job), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_check_says_what_rungs_will_save_and_refuses_what_some_items_cannot_tell(tmp_path: Path) -> None:
    job = worlds.classification(tmp_path, evaluations=40, extra="fidelity: {rungs: [6, 12], keep: 0.5}")
    found = check_job(Job.load(job))
    assert found["usual_share"] == pytest.approx((6 + 0.5 * 6 + 0.25 * 18) / 30)
    text = job.read_text().replace("spam.accuracy", "spam.macro_f1")
    job.write_text(text)
    with pytest.raises(JobError, match=r"spam\.macro_f1 is no mean over items"):
        check_job(Job.load(job))


def test_a_run_whose_objective_is_no_mean_scores_all_on_all_items_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = worlds.classification(tmp_path, evaluations=16, extra="fidelity: {rungs: [6]}")
    job.write_text(job.read_text().replace("spam.accuracy", "spam.macro_f1"))
    run = worlds.searched(job)
    assert all(c.share == 1 and not c.told for c in run.results().candidates.values())
    assert caplog.text.count("every candidate is scored on all items") == 1


def test_status_and_show_tell_estimates_from_scores(finished: Run) -> None:
    results = finished.results()
    found = plain.status(results)["fidelity"]
    partly = [c for c in results.candidates.values() if c.share < 1]
    assert found["partly"] == len(partly) and found["whole"] == 40 - len(partly)
    assert 0 < found["within"] <= found["checked"]
    told = CliRunner().invoke(app, ["status", str(finished.folder)]).stdout
    assert f"{len(partly)} candidates were told from some items" in told
    told = CliRunner().invoke(app, ["show", str(finished.folder), str(partly[0].number)]).stdout
    assert "its scores are estimates" in told


def test_the_service_and_the_report_tell_what_rungs_saved(finished: Run) -> None:
    results = finished.results()
    said, found = plain.status(results)["fidelity"], summary.run(results).fidelity
    assert found is not None and found.model_dump(exclude={"rungs"}) == said
    assert finished.job.fidelity is not None and found.rungs == finished.job.fidelity.rungs
    assert kept(results)["run"]["fidelity"] == found.model_dump()


def test_a_candidate_told_from_some_items_is_exported_with_the_scores_that_all_items_give(
    finished: Run, tmp_path: Path
) -> None:
    partly = next(c for c in finished.results().candidates.values() if c.share < 1)
    folder = finished.export(str(partly.number), tmp_path / "merged")
    assert (folder / "model.safetensors").is_file()
    final = next((c for c in finished.results().candidates.values() if c.row is not None), None)
    if final is not None:
        finished.export(str(final.number), tmp_path / "final")  # its scores are those of the ledger, or it would raise


def test_workers_side_by_side_climb_too(tmp_path: Path) -> None:
    job = worlds.classification(tmp_path, evaluations=24, executor="ray", extra=HALVING)
    results = worlds.searched(job).results()
    assert len(results.candidates) == 24 and any(c.share < 1 for c in results.candidates.values())
    assert all(c.share == 1 for c in results.on_front)


def test_a_candidate_that_fails_on_its_way_has_failed_for_that_reason() -> None:
    ladder, inner = _ladder(), _Scripted({3: Failure("nonfinite", "nan")})
    rungs = Rungs(inner, ladder)
    for number in range(3):
        rungs.submit(Question(number, np.full(2, number), stage="anchor: a"))
    for answer in rungs.collect(0.1):
        ladder.learn(Question(answer.number, np.zeros(2), stage="anchor: a"), answer)
    assert not ladder.ready
    for number in range(10, 16):
        ladder.learn(Question(number, np.zeros(2)), _scored(number, 0.1 * number))
    rungs.submit(Question(3, np.zeros(2)))
    (failed,) = rungs.collect(0.1)
    assert failed.failure == Failure("nonfinite", "nan") and failed.whole and not failed.told


def test_what_a_block_says_nothing_of_is_scored_on_all_items() -> None:
    ladder, inner = _ladder(), _Scripted({}, silent=True)
    for number in range(10, 20):
        ladder.learn(Question(number, np.zeros(2), stage="anchor: a"), _scored(number, 0.5))
    rungs = Rungs(inner, ladder)
    rungs.submit(Question(0, np.zeros(2)))
    assert rungs.collect(0.1) == []
    (found,) = rungs.collect(0.1)
    assert found.whole and not found.told and found.measures["t.m"].count == 40


def test_models_as_they_are_alone_tell_of_no_candidate() -> None:
    ladder = _ladder()
    for place in range(9):
        question = reference(place, f"e{place}", "calibration")
        ladder.learn(question, replace(_scored(1, 0.5), number=question.number))
    assert not ladder.ready, "there is no front yet to promise anything to"


def test_in_a_drain_no_candidate_goes_on() -> None:
    ladder, inner = _ladder(), _Scripted({})
    for number in range(10, 20):
        ladder.learn(Question(number, np.zeros(2), stage="anchor: a"), _scored(number, 0.5 + 0.01 * number))
    rungs = Rungs(inner, ladder)
    rungs.submit(Question(0, np.zeros(2)))
    rungs.drain()
    assert rungs.collect(0.1) == [] and inner.asked == [0], "it promised most, and would have gone on"


def test_finalists_are_a_share_of_the_candidates_that_there_were_not_of_those_that_were_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sobol, "done", property(lambda driver: driver._number >= 30))  # and ten anchors
    found = worlds.searched(worlds.classification(tmp_path, evaluations=1000, extra=HALVING)).results()
    candidates = found.candidates.values()
    assert sum(c.share < 1 for c in candidates) > 10, "there were more to take"
    assert len(candidates) == 40 and sum(c.row is not None for c in candidates) == FINALISTS


@given(st.integers(1, 100), st.integers(1, 2000))
def test_a_share_in_percent_is_rounded_up_exactly(percent: int, count: int) -> None:
    assert part(percent / 100, count) == -(-percent * count // 100)


def test_of_a_hundred_candidates_seven_in_a_hundred_are_seven() -> None:
    assert 0.07 * 100 > 7, "as floats have it"
    promises = np.arange(101.0, 1.0, -1.0)
    for better, goes_on in ((6, True), (7, False)):
        assert among_the_best(np.append(np.delete(promises, better), promises[better]), 0.07) is goes_on


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=30),
    st.floats(0.05, 0.95),
)
def test_about_a_share_of_what_comes_goes_on(promises: list[float], keep: float) -> None:
    found = np.array(promises)
    on = among_the_best(found, keep)
    best = bool((found <= found[-1]).all())
    assert on or not best or found[-1] == 0
    if on:
        assert (found > found[-1]).sum() < np.ceil(keep * len(found))


def test_what_would_add_most_to_the_front_promises_most_and_doubt_is_worth_something() -> None:
    front = np.array([[0.2, 0.8], [0.5, 0.5], [0.8, 0.2]])
    losses = np.array([[0.9, 0.9], [0.52, 0.52], [0.45, 0.45], [0.3, 0.3]])
    exact = promise(losses, np.zeros((4, 2)), front)
    assert exact[0] == exact[1] == 0 < exact[2] < exact[3]
    doubtful = promise(losses, np.full((4, 2), 0.05), front)
    assert doubtful[0] < doubtful[1] < doubtful[2] < doubtful[3] and doubtful[1] > 0


@pytest.mark.parametrize("objectives", [1, 3, 7])
def test_racing_knows_a_worse_candidate_sooner_than_a_like_one(objectives: int) -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=200)
    rival = Known({f"t.m{j}": hard for j in range(objectives)}, np.zeros(objectives), False, True)
    signs = {f"t.m{j}": 1.0 for j in range(objectives)}

    def chance(worse: float, n: int) -> float:
        places = np.arange(n)
        seen = {name: (places, hard[:n] + worse + 0.2 * rng.normal(size=n)) for name in signs}
        return dominated(seen, [rival], signs)

    assert chance(0.5, 10) > 0.99 and chance(-0.5, 10) < 0.01
    assert chance(0.0, 10) < 0.95
    alike = {name: (np.arange(10), hard[:10]) for name in signs}
    assert dominated(alike, [rival], signs) == 0.5**objectives, "nothing tells them apart"


class _Scripted:
    """An executor that answers at once: what is scripted fails, all else scores."""

    slots, ready, busy = 2, 1, False

    def __init__(self, failures: dict[int, Failure], silent: bool = False) -> None:
        self.failures, self.silent, self.asked, self._answers = failures, silent, [], []  # type: ignore[var-annotated]

    def submit(self, question: Question) -> None:
        self.asked.append(question.number)
        failure = self.failures.get(question.number)
        count = len(question.items.places[0]) if question.items.places else 40
        items = {} if failure else {"t.m": np.full(count, 0.01, dtype=np.float32)}
        if self.silent and question.items.places:  # the metric says nothing of these items
            items = {"t.m": np.full(count, np.nan, dtype=np.float32)}
        measures = {} if failure else {"t.m": mean(items["t.m"])}
        self._answers.append(Answer(question.number, "calibration", measures, items, failure))

    def collect(self, timeout: float) -> list[Answer]:
        found, self._answers = self._answers, []
        return found

    def drain(self) -> None: ...


def _ladder() -> Ladder:
    return Ladder(plan_of(Fidelity(rungs=[10, 20])), [Objective("t.m", "min")], (), {"t": 40}, 0, lambda number: {})


def _scored(number: int, value: float) -> Answer:
    items = (value + 0.1 * np.random.default_rng(number).normal(size=40)).astype(np.float32)
    return Answer(number, "calibration", {"t.m": mean(items)}, {"t.m": items})


def test_what_violates_a_constraint_takes_no_place_from_what_meets_it(tmp_path: Path) -> None:
    rungs = "fidelity: {rungs: [8, 16], keep: 0.4}"
    text = f'{rungs}\nconstraints: ["spam.cross_entropy <= 0.68"]\n'
    found = worlds.searched(worlds.classification(tmp_path, evaluations=60, extra=text)).results()
    met = [c for c in found.scored if c.share == 1 and found.feasible.meets(c.measures)]
    assert met and {c.number for c in found.on_front} <= {c.number for c in met}
    for c in [c for c in found.scored if c.row is not None]:
        value, stderr = c.told[-1].measures["spam.cross_entropy"]
        assert value - 2 * stderr < 0.68, "a finalist may meet it"


def test_a_run_from_before_there_were_rungs_goes_on(tmp_path: Path) -> None:
    run = worlds.searched(worlds.classification(tmp_path))
    with closing(Ledger.open(run.folder / "ledger.db")) as ledger:
        assert "fidelity" not in ledger.meta("job"), "a job without rungs says of itself what it said before"
    assert Run(run.folder).search(evaluations=16).answered == 16


def test_a_finished_run_has_nothing_in_flight_and_its_finalists_go_by_their_own_numbers(
    finished: Run, caplog: pytest.LogCaptureFixture
) -> None:
    assert plain.status(finished.results())["in_flight"] == 0
    with caplog.at_level(logging.INFO, "optimizer.candidates"):
        logs.answered(Answer(WHOLE + 19, "heldout"))
    assert "candidate 19 on heldout" in caplog.text
