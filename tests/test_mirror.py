"""Is a run's copy in an Optuna study the run, with no more in it the second time, and nothing of anybody else's?"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import worlds
from ledgers import Made
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from program import mergeopt

from optimizer.commands import interop
from optimizer.errors import JobError
from optimizer.output.mirror import Mirror, distribution, value
from optimizer.record.results import Results
from searchspaces import CoefficientSpace


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    run = Made(tmp_path / "runs" / "first", evaluations=60)
    run.more(60)
    run.heldout([0, 1, 5])
    yield run
    run.close()


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/optuna.db"


def study(storage: str, name: str = "first") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=storage)


def test_each_candidate_is_a_trial_in_natural_units_and_what_is_there_is_not_added_again(
    made: Made, storage: str
) -> None:
    results = Results(made.folder)
    assert Mirror(results, storage).copy() == 60
    found, names = study(storage), results.domain.names
    assert [d.name for d in found.directions] == ["MAXIMIZE"] * 2 and found.metric_names == made.objectives
    for trial, c in zip(found.trials, results.scored, strict=True):
        np.testing.assert_array_equal([trial.params[n] for n in names], c.point)
        assert trial.user_attrs["recipe"] == c.recipe and trial.user_attrs["stage"] == c.stage
        assert trial.datetime_complete is not None and trial.datetime_start is not None
        assert (trial.datetime_complete - trial.datetime_start).total_seconds() == pytest.approx(c.seconds)
        if c.failure is not None:
            assert trial.state == TrialState.FAIL and trial.user_attrs["failure"] == "timeout: it took too long"
            continue
        assert trial.state == TrialState.COMPLETE and trial.values == [c.measures[o].value for o in made.objectives]
        assert trial.user_attrs["stderr"] == {o: c.measures[o].stderr for o in made.objectives}
        assert trial.user_attrs.get("heldout", {}).keys() == c.heldout.keys()
    assert (
        found.trials[5].user_attrs["heldout"]["t0.accuracy"]["value"]
        == results.candidates[5].heldout["t0.accuracy"].value
    )
    best = {t.user_attrs["recipe"] for t in found.best_trials}
    assert best == {c.recipe for c in results.on_front}

    assert Mirror(Results(made.folder), storage).copy() == 0
    made.more(7)
    made.heldout([9])
    again = Mirror(Results(made.folder), storage)
    assert again.copy() == 7 and again.copy() == 0 and len(study(storage).trials) == 67
    late = study(storage).user_attrs["heldout of 9"]["t1.accuracy"]
    assert late["value"] == Results(made.folder).candidates[9].heldout["t1.accuracy"].value and late["items"] == 40


@pytest.mark.parametrize("seconds", [1e300, -1e300, 1e15])
def test_a_candidate_whose_times_are_of_no_calendar_is_copied_without_them(
    made: Made, storage: str, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    answer = made._answer
    monkeypatch.setattr(made, "_answer", lambda *given: replace(answer(*given), seconds=seconds))
    made.more(1)
    assert Mirror(Results(made.folder), storage).copy() == 61
    last = study(storage).trials[-1]
    assert last.state == TrialState.COMPLETE and last.user_attrs["seconds"] == seconds
    assert last.datetime_start == last.datetime_complete


def test_two_mirrors_of_a_run_add_each_candidate_once(made: Made, storage: str) -> None:
    first, second = (Mirror(Results(made.folder), storage) for _ in range(2))
    with ThreadPoolExecutor() as both:
        assert sorted(both.map(lambda mirror: mirror.copy(), (first, second))) == [0, 60]
    assert len(study(storage).trials) == 60


def test_what_is_no_fault_of_the_storage_is_not_called_one(
    made: Made, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = Mirror(Results(made.folder), storage)
    monkeypatch.setattr(mirror._study, "add_trial", lambda trial: int("x"))
    with pytest.raises(ValueError, match="invalid literal") as raised:
        mirror.copy()
    assert not isinstance(raised.value, JobError)


def test_the_dashboard_sees_which_candidates_meet_the_constraints(made: Made, storage: str) -> None:
    made.ledger.set_meta("constraints", ["t0.accuracy >= 0.7", "t1.accuracy <= 0.9"])
    results = Results(made.folder)
    Mirror(results, storage).copy()
    for trial, c in zip(study(storage).trials, results.scored, strict=True):
        over = trial.system_attrs.get("constraints", [])
        assert (c.failure is None) == bool(over)
        if over:
            assert all(v <= 0 for v in over) == results.feasible.meets(c.measures)
            assert over == [0.7 - c.measures["t0.accuracy"].value, c.measures["t1.accuracy"].value - 0.9]
    met = {t.user_attrs["recipe"] for t in study(storage).best_trials}
    assert met == {c.recipe for c in results.on_front}


def test_estimates_are_no_values_until_they_are_scored_whole(tmp_path: Path, storage: str) -> None:
    run = worlds.searched(worlds.classification(tmp_path, 16, extra="fidelity: {rungs: [8], keep: 0.4}"))
    results = run.results()
    assert Mirror(results, storage, "other").copy() == len(results.scored)
    partly = [c for c in results.scored if c.share < 1]
    trials = {t.user_attrs["recipe"]: t for t in study(storage, "other").trials}
    assert partly
    for c in results.scored:
        trial = trials[c.recipe]
        assert (trial.state == TrialState.PRUNED) == (c.share < 1) == ("estimate" in trial.user_attrs)
        assert (trial.values is None) == (c.share < 1)
    for c in partly:
        said = trials[c.recipe].user_attrs["estimate"]["spam.accuracy"]
        assert said["value"] == c.measures["spam.accuracy"].value and said["items"] == c.measures["spam.accuracy"].count
    kept = study(storage, "other").user_attrs
    assert {f"reference {label}" for label in results.references} <= kept.keys()


def test_the_runs_folder_stays_as_it_is(made: Made, storage: str) -> None:
    made.close()

    def files() -> dict[str, bytes]:  # but what SQLite itself needs to read
        return {p.name: p.read_bytes() for p in made.folder.iterdir() if "ledger.db-" not in p.name}

    before = files()
    Mirror(Results(made.folder), storage).copy()
    assert files() == before
    for inside in (f"sqlite:///{made.folder}/optuna.db", f"sqlite+pysqlite:///{made.folder}/ledger.db"):
        with pytest.raises(JobError, match="lies in the run's folder"):
            Mirror(Results(made.folder), inside)
    with pytest.raises(JobError, match="called as a run's ledger is"):
        Mirror(Results(made.folder), "sqlite:///elsewhere/ledger.db")
    with pytest.raises(JobError, match="expected a URL"):
        Mirror(Results(made.folder), "sqlite:///a%00b")
    assert files() == before


def test_a_study_of_something_else_is_refused(made: Made, storage: str, tmp_path: Path) -> None:
    results = Results(made.folder)
    theirs = optuna.create_study(study_name="theirs", storage=storage, directions=["maximize"] * 2)
    theirs.add_trial(optuna.trial.create_trial(values=[1.0, 2.0]))
    optuna.create_study(study_name="empty", storage=storage, directions=["maximize"] * 2)
    optuna.create_study(study_name="downwards", storage=storage, directions=["minimize"] * 2)
    for name in ("theirs", "downwards"):
        with pytest.raises(JobError, match=f"study '{name}' holds something else; name another with --study"):
            Mirror(results, storage, name)
    assert len(study(storage, "theirs").trials) == 1 and not study(storage, "theirs").user_attrs
    assert Mirror(results, storage, "empty").copy() == 60  # as a mirror that was killed has left it
    other = Made(tmp_path / "runs" / "second")
    other.more(3)
    other.ledger.set_meta("id", "1" * 24)
    with pytest.raises(JobError, match="study 'empty' is of another run"):
        Mirror(Results(other.folder), storage, "empty")
    other.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("optuna.db", "expected a URL such as sqlite:///optuna.db, got 'optuna.db'"),
        ("sqlite:////no/such/folder/optuna.db", "--storage sqlite:////no/such/folder/optuna.db: .*unable to open"),
        ("nonsense://user:s3cret@host/x", r"--storage nonsense://user:\*\*\*@host/x: "),
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_error_without_its_password(made: Made, url: str, message: str) -> None:
    with pytest.raises(JobError, match=message) as raised:
        Mirror(Results(made.folder), url)
    assert "s3cret" not in str(raised.value) and "\n" not in str(raised.value)


def test_following_a_run_copies_what_comes_until_it_is_finished(
    made: Made, storage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = iter(
        [lambda: made.more(5), lambda: None, lambda: made.heldout([7]), lambda: made.ledger.set_meta("done", True)]
    )
    made.ledger.set_meta("evaluations", 100)
    monkeypatch.setattr(interop, "sleep", lambda seconds: next(turns)())
    runs = made.folder.parent
    assert mergeopt("mirror", "first", "--runs", runs, "--storage", storage, "--follow", "--study", "here") == 0
    assert "65 candidates added to the study here" in capsys.readouterr().out
    assert len(study(storage, "here").trials) == 65 and "heldout of 7" in study(storage, "here").user_attrs
    assert mergeopt("mirror", "none", "--runs", runs, "--storage", storage) == 2


def test_coordinates_of_every_kind_have_their_distribution() -> None:
    space = CoefficientSpace(
        ["h.0.w", "h.1.w"], ["a", "b"], ["consensus", "layer_swap", "ties"],
        {"least": {"low": 1, "high": 3}, "ties.density": {"values": [0.2, 0.5, 0.8]}, "ties.normalize": "search"},
    )  # fmt: skip
    domain = space.domain
    kinds = {n: distribution(domain, i) for i, n in enumerate(domain.names)}
    assert {type(d) for d in kinds.values()} == {FloatDistribution, IntDistribution, CategoricalDistribution}
    assert kinds["h.0|a"] == FloatDistribution(0, 1) and kinds["method"].choices == ("consensus", "layer_swap", "ties")
    assert kinds["h.1|pick"].choices == ("base", "a", "b")
    for point in (domain.start, domain.low, domain.high, domain.high + 1e-12 * (np.array(domain.kinds) == "real")):
        params = {n: value(domain, i, float(point[i])) for i, n in enumerate(domain.names)}
        trial = optuna.trial.create_trial(params=params, distributions=kinds, value=0.0)
        assert trial.params["method"] == space.decode(np.minimum(point, domain.high)).method
