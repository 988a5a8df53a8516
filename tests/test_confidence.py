"""Is it as sure as it says? Simulated items, whose truth is known, then whole runs as users see them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from program import Program, program

from evaluators.evaluator import Measure
from evaluators.metrics import mean
from optimizer.answer import Answer
from optimizer.conditions import Condition
from optimizer.driver import Items, Question
from optimizer.errors import JobError, RunError
from optimizer.output import certain, plain
from optimizer.record.confidence import Gap
from optimizer.record.ledger import Ledger
from optimizer.record.naming import preferred
from optimizer.record.paired import Joint, Sample, difference, mean_stderr
from optimizer.record.results import Results

Array = NDArray[np.float64]
ORDER = "\x1b]0;pwn\x07"


def sample(items: Array) -> Sample:
    kept = items.astype(np.float32)
    m = mean(kept)
    return Sample.of(1.0, m.value, m.stderr, kept)


def bare(value: float, stderr: float | None) -> Sample:
    return Sample.of(1.0, value, stderr, None)


def simulated(draw: np.random.Generator, truth: Array, items: int, hard: float = 1.0, noise: float = 1.0) -> Array:
    """Items `(k, n)` of candidates with these true means `(k,)`: what is hard is hard for all of them."""
    return np.asarray(
        truth[:, None] + hard * draw.standard_normal(items) + noise * draw.standard_normal((len(truth), items))
    )


def test_the_paired_error_covers_the_true_difference_and_the_unpaired_one_is_too_large() -> None:
    draw, covered, wide = np.random.default_rng(0), 0, 0
    for _ in range(1500):
        a, b = simulated(draw, np.array([0.3, 0.0]), 120, hard=2.0)
        found = difference(sample(a), sample(b))
        assert found.paired
        covered += abs(found.value - 0.3) < 1.96 * found.stderr
        wide += abs(found.value - 0.3) < 1.96 * np.hypot(sample(a).stderr, sample(b).stderr)
    assert covered / 1500 == pytest.approx(0.95, abs=0.015)
    assert wide / 1500 > 0.99


def test_it_covers_shares_of_right_answers_too() -> None:
    draw, covered = np.random.default_rng(1), 0
    for _ in range(1500):
        a = draw.random(400) < draw.beta(2, 1, size=400)  # mean 2/3; b gets right what a does, and a third of the rest
        b = a | (draw.random(400) < 0.3)
        found = difference(sample(a.astype(float)), sample(b.astype(float)))
        covered += abs(found.value + 0.1) < 1.96 * found.stderr
        assert found.wins == int((a < b).sum()) and found.losses == 0 and found.ties == 400 - found.wins
    assert covered / 1500 == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("owners", [("a", "b"), ("a", "a")], ids=["items of their own", "the same items"])
def test_the_probability_to_dominate_is_how_often_it_is_so(owners: tuple[str, str]) -> None:
    draw, said, held = np.random.default_rng(2), [], []
    for _ in range(400):
        truth = draw.normal(0, 0.5, size=(2, 2))  # candidates, objectives; errors are 0.14
        first = simulated(draw, truth[:, 0], 100)
        other = (
            simulated(draw, truth[:, 1], 100)
            if owners[0] != owners[1]
            else first + (truth[:, 1] - truth[:, 0])[:, None]
        )
        rows = [[sample(first[k]), sample(other[k])] for k in range(2)]
        said.append(Joint(rows, owners).dominates(0, 1))
        held.append(bool((truth[0] <= truth[1]).all()))
    for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.01)):
        within = [(p, h) for p, h in zip(said, held, strict=True) if low <= p < high]
        assert len(within) > 20
        assert np.mean([h for _, h in within]) == pytest.approx(np.mean([p for p, _ in within]), abs=0.07)


def test_the_probability_to_be_on_the_front_is_how_often_it_is_so() -> None:
    draw, said, held = np.random.default_rng(4), [], []
    for _ in range(250):
        truth = draw.normal(0, 0.6, size=(6, 2))  # errors are 0.13
        items = [simulated(draw, truth[:, j], 60) for j in range(2)]
        rows = [[sample(items[j][k]) for j in range(2)] for k in range(6)]
        losses = np.array([[s.value for s in row] for row in rows])
        front = [k for k in range(6) if not beaten(losses, k)]
        said += Joint(rows, ("a", "b")).nondominated(front).tolist()
        held += [not beaten(truth, k) for k in front]
    for low, high in ((0.0, 0.7), (0.7, 0.9), (0.9, 1.01)):
        within = [(p, h) for p, h in zip(said, held, strict=True) if low <= p < high]
        assert len(within) > 40
        assert np.mean([h for _, h in within]) == pytest.approx(np.mean([p for p, _ in within]), abs=0.08)


@pytest.mark.parametrize("alike", [0.0, 0.9, 1.0])
def test_many_unlikely_rivals_count_however_alike_the_objectives_of_an_evaluator_are(alike: float) -> None:
    n, rivals, draw = 200, 40, np.random.default_rng(8)
    items = np.repeat(draw.standard_normal((2, 1, n)), rivals + 1, axis=1)  # objectives, candidates, items
    apart = draw.standard_normal((2, rivals, n))
    apart[1] = alike * apart[0] + np.sqrt(1 - alike**2) * apart[1]
    apart = (apart - apart.mean(axis=2, keepdims=True)) / apart.std(axis=2, ddof=1, keepdims=True)
    items[:, 1:] += apart + 2.4 / np.sqrt(n)  # each is worse by 2.4 errors of the difference, in both
    joint = Joint([[sample(items[0, k]), sample(items[1, k])] for k in range(rivals + 1)], ("a", "a"))

    luck = draw.standard_normal((4000, n)) / n  # of means over n items
    truths = luck @ apart.transpose(0, 2, 1) + 2.4 / np.sqrt(n)  # objectives, draws, rivals: how much worse
    in_truth = 1 - np.mean((truths <= 0).all(axis=0).any(axis=1))
    assert in_truth < 0.9 if alike else in_truth > 0.98
    assert joint.nondominated([0])[0] == pytest.approx(in_truth, abs=0.03)


@pytest.mark.parametrize("alike", [-1.0, -0.5, 0.0, 0.5, 0.9, 1.0])
def test_what_a_rival_is_filtered_by_is_no_less_than_how_often_it_dominates(alike: float) -> None:
    draw = np.random.default_rng(9)
    first, other = (simulated(draw, np.linspace(0, 0.3, 6), 80) for _ in range(2))
    second = alike * first + np.sqrt(1 - alike**2) * other
    of_one = Joint([[sample(x), sample(y)] for x, y in zip(first, second, strict=True)], ("a", "a"))
    of_two = Joint([[sample(x), sample(y)] for x, y in zip(first, other, strict=True)], ("a", "b"))
    apart = [Joint([[sample(x)] for x in rows], ("a",)).bound for rows in (first, other)]
    assert of_two.bound == pytest.approx(apart[0] * apart[1])
    for a in range(6):
        for b in range(6):
            if a != b:
                assert of_one.bound[a, b] >= of_one.dominates(a, b) - 0.03  # that is sampled


def beaten(losses: Array, k: int) -> bool:
    return bool(((losses <= losses[k]).all(axis=1) & (losses < losses[k]).any(axis=1)).any())


def test_of_two_candidates_the_sampled_probability_is_the_exact_one() -> None:
    a, b = simulated(np.random.default_rng(4), np.array([0.0, 0.1]), 100)
    joint = Joint([[sample(a)], [sample(b)]], ("a",))
    assert joint.nondominated([0, 1]) == pytest.approx(1 - joint.bound[[1, 0], [0, 1]], abs=0.03)
    assert joint.bound[0, 1] + joint.bound[1, 0] == pytest.approx(1.0)
    assert (joint.nondominated([0, 1]) == joint.nondominated([0, 1])).all()


def test_the_joint_errors_are_those_of_pairs() -> None:
    rows = [sample(x) for x in simulated(np.random.default_rng(5), np.arange(4) / 10, 50)]
    rows.append(bare(0.2, 0.1))
    d, error = Joint([[s] for s in rows], ("a",))._columns[0].differences()
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            if i != j:
                found = difference(a, b)
                assert (d[i, j], error[i, j]) == pytest.approx((found.value, found.stderr))


@pytest.mark.parametrize("items", [np.arange(12.0), None], ids=["with items", "without"])
def test_one_and_the_same_result_dominates_nobody(items: Array | None) -> None:
    same = sample(items) if items is not None else bare(0.5, 0.1)
    worse = sample(items + 5 + np.arange(12.0) / 50) if items is not None else bare(9.0, 0.1)
    joint = Joint([[same], [same], [worse]], ("a",))
    assert joint.bound[0, 1] == joint.bound[1, 0] == 0.0 and joint.bound[0, 2] == pytest.approx(1.0, abs=1e-3)
    assert joint.nondominated([0, 1]).tolist() == [1.0, 1.0]


def test_items_are_paired_only_where_they_are_the_same_and_the_metric_is_their_mean() -> None:
    x = np.arange(10.0)
    some = np.where(x == 3, np.nan, x)
    gapped = Sample.of(1.0, float(np.nanmean(some)), 0.9, some.astype(np.float32))
    ratio = Sample.of(1.0, 2.0, 0.5, x.astype(np.float32))  # the mean is 4.5
    assert gapped.mean and not ratio.mean
    assert difference(gapped, gapped).paired
    for other in (sample(x), sample(x[:4]), bare(1.0, 0.2)):
        found = difference(gapped, other)
        assert not found.paired and found.wins is None
        assert found.stderr == pytest.approx(np.hypot(0.9, other.stderr))
    found = difference(ratio, sample(x))
    assert not found.paired and found.stderr == pytest.approx(np.hypot(0.5, sample(x).stderr))
    assert (found.wins, found.losses, found.ties) == (0, 0, 10), "counted whatever the metric makes of them"
    assert not Joint([[bare(1.0, None)], [bare(2.0, 0.1)]], ("a",)).known


def test_the_error_of_a_mean_over_candidates_does_not_shrink_with_their_number() -> None:
    x = np.random.default_rng(6).normal(size=80)
    assert mean_stderr([sample(x)] * 9) == pytest.approx(sample(x).stderr)
    assert mean_stderr([bare(0.0, 0.1), bare(1.0, 0.3)]) == pytest.approx(0.2)


# name, calibration accuracy, held-out accuracy, calibration loss; of 40 items each
SCORES = [
    ("anchor: base", 0.5, 0.5, 1.0),
    ("anchor: expert: [red]math", 0.9, 0.85, 1.6),
    ("search", 0.8, 0.7, 1.05),
    ("search", 0.6, None, 1.5),
]


def folder_of(
    home: Path, names: Sequence[str] = ("math.accuracy", "chat.loss"), scores: Sequence[tuple] = SCORES, **meta: object
) -> Path:
    """A run whose candidates score this, with items: every accuracy is of 40 right or wrong answers."""
    home.mkdir(parents=True)
    (home / "job.yaml").write_text(
        "models: {base: b, experts: {a: a}}\nevaluators: [{kind: language, name: a}]\nobjectives: [a.loss]\n"
    )
    said = {"name": home.name, "evaluations": len(scores), "objectives": list(zip(names, ("max", "min"), strict=True))}
    more = {
        "metrics": dict(said["objectives"]),
        "space": {},
        "steps": 0,
        "done": True,
        "parent": None,
        "references": [],
    }
    kept = {"evaluators": [{"name": n.partition(".")[0]} for n in names]}
    with closing(Ledger.create(home / "ledger.db", {**said, **more, "job": kept, **meta})) as ledger:
        draw = np.random.default_rng(7)
        hard = draw.normal(size=40)

        def answer(number: int, split: str, accuracy: float, loss: float) -> Answer:
            right = (np.arange(40) < accuracy * 40).astype(np.float32)
            nats = (loss + hard - hard.mean() + 0.2 * np.sin(np.arange(40) * (number + 1))).astype(np.float32)
            items = dict(zip(names, (right, nats), strict=True))
            return Answer(number, split, {n: mean(v) for n, v in items.items()}, items)

        for split in ("calibration", "heldout"):
            rows = [(n, s, a if split == "calibration" else h, x) for n, (s, a, h, x) in enumerate(scores)]
            asked = [(n, s, a, x) for n, s, a, x in rows if a is not None]
            questions = [Question(n, np.array([0.1 * n]), items=Items(split), stage=s) for n, s, *_ in asked]  # type: ignore[arg-type]
            ledger.asked(len(asked), questions, [f"{n}" * 64 for n, *_ in asked])
            ledger.answered([answer(n, split, a, x + 0.3 * (split == "heldout")) for n, _, a, x in asked])
    return home


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def mergeopt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setenv("COLUMNS", "120")
    return program(capsys)


@pytest.mark.parametrize(
    ("value", "stderr", "better", "said"),
    [
        (0.05, 0.02, 0.05, "looked better"),
        (0.05, 0.02, -0.05, "looked worse"),
        (-0.005, 0.05, -0.005, "not told apart"),
        (0.005, None, 0.005, "looked better"),
    ],
)
def test_a_gap_is_called_one_where_it_is_beyond_its_error(
    value: float, stderr: float | None, better: float, said: str
) -> None:
    assert certain.looks(Gap("task.metric", value, stderr, better)) == f" ({said})"


def test_the_front_says_how_sure_it_is_and_what_luck_it_had(folder: Path, mergeopt: Program) -> None:
    rows = {r["candidate"]: r for r in json.loads(mergeopt("front", folder, "--json").out)}
    assert {n for n, r in rows.items() if r["front"]} == {0, 1, 2} and rows[2]["knee"] and not rows[0]["knee"]
    for row in rows.values():
        assert 0 < row["nondominated"]["calibration"] <= 1 and 0 < row["nondominated"]["heldout"] <= 1
    gaps = {g["objective"]: g for g in json.loads(mergeopt("status", folder, "--json").out)["curse"]}
    assert gaps["math.accuracy"]["value"] == pytest.approx((0.0 + 0.05 + 0.1) / 3)
    assert gaps["chat.loss"]["value"] == pytest.approx(-0.3, abs=1e-6) and gaps["chat.loss"]["stderr"] > 0.1
    said = " ".join(mergeopt("front", folder).out.split())
    assert "sure" in said and "Knee: candidate 2 (math.accuracy 0.800, chat.loss 1.0" in said
    assert "mean of 3 on the front): math.accuracy +0.050±" in said and "(not told apart), chat.loss -0.300±" in said
    order = [r["candidate"] for r in json.loads(mergeopt("front", folder, "--json", "--by-confidence").out)]
    sure = [rows[n]["nondominated"]["calibration"] for n in order]
    assert sure == sorted(sure, reverse=True) and "surest first" in mergeopt("front", folder, "--by-confidence").out


def test_a_candidate_that_nearly_dominates_makes_the_front_less_sure(tmp_path: Path) -> None:
    alone = Results(folder_of(tmp_path / "alone", scores=SCORES[:3])).confidence.seen[2]
    close = [*SCORES[:3], ("search", 0.8, None, 1.06)]  # dominated, and hardly worse
    assert Results(folder_of(tmp_path / "close", scores=close)).confidence.seen[2] < alone - 0.1


def test_two_candidates_are_compared_item_by_item(folder: Path, mergeopt: Program) -> None:
    found = json.loads(mergeopt("compare", folder, "knee", "base", "--json").out)
    accuracy = found["calibration"]["objectives"]["math.accuracy"]
    assert accuracy["value"] == pytest.approx(0.3) and accuracy["better"] == "a" and accuracy["paired"]
    assert (accuracy["wins"], accuracy["losses"], accuracy["ties"]) == (12, 0, 28)
    assert accuracy["stderr"] == pytest.approx(np.sqrt(0.3 * 0.7 / 39))
    loss = found["calibration"]["objectives"]["chat.loss"]
    assert loss["value"] == pytest.approx(0.05, abs=0.02) and loss["better"] == "b" and loss["stderr"] < 0.06
    assert found["heldout"]["objectives"]["math.accuracy"]["wins"] == 8
    backward = json.loads(mergeopt("compare", folder, "base", "2", "--json").out)["calibration"]
    assert backward["objectives"]["math.accuracy"]["value"] == pytest.approx(-0.3)
    assert backward["b_dominates_a"] == found["calibration"]["a_dominates_b"] > backward["a_dominates_b"]
    said = mergeopt("compare", folder, "2", "base").out
    assert "A: candidate 2   B: candidate 0 (base)" in said and "+0.300±.073" in said and "unpaired" not in said
    assert json.loads(mergeopt("compare", folder, "3", "base", "--json").out)["heldout"] is None
    same = mergeopt("compare", folder, "base", "base").out
    assert "+0.000±.000" in same and "dominates B with probability <.01, B A with <.01" in same


def test_what_is_preferred_is_found_and_shown_with_how_sure_it_holds(folder: Path, mergeopt: Program) -> None:
    asked = ("--where", "math.accuracy >= 0.6", "--where", "math.accuracy<=0.85")
    found = json.loads(mergeopt("front", folder, *asked, "--best", "chat.loss", "--json").out)
    assert found["candidate"] == 2 and [w["condition"] for w in found["where"]] == [
        "math.accuracy >= 0.6",
        "math.accuracy <= 0.85",
    ]
    assert found["where"][0]["calibration"]["holds"] > found["where"][0]["heldout"]["holds"] > 0.5
    said = mergeopt("front", folder, *asked, "--best", "chat.loss").out
    assert "candidate 2: best in chat.loss of those that have on calibration items what was asked for\n" in said
    assert "0.700±.073" in said and "On held-out items" not in said
    assert json.loads(mergeopt("front", folder, "--best", "math.accuracy", "--json").out)["candidate"] == 1
    only = mergeopt("front", folder, "--where", "math.accuracy <= 0.6", "--where", "math.accuracy >= 0.55").out
    assert (
        "candidate 3: of the best mean of those that" in only
        and "On held-out" not in only
        and "neither, or not yet" in only
    )


def test_a_choice_that_fails_on_held_out_items_is_told_with_the_surest(folder: Path, mergeopt: Program) -> None:
    said = " ".join(mergeopt("front", folder, "--where", "math.accuracy >= 0.75", "--best", "chat.loss").out.split())
    assert "candidate 2: best" in said  # 0.8, on held-out items 0.7
    assert "does not hold (the probability that it does: 0.25); candidate 1 (expert: [red]math) is surest to (" in said
    none = " ".join(mergeopt("front", folder, "--where", "math.accuracy >= 0.88").out.split())
    assert "does: 0.30); nor does any other that holds on calibration items: ask for less." in none


def test_the_anchors_own_hypervolume_is_told_beside_the_fronts(folder: Path, mergeopt: Program) -> None:
    found = json.loads(mergeopt("status", folder, "--json").out)
    assert found["hypervolume_anchors"] == 0.0 < found["hypervolume"]  # each is best in one objective, and worst
    said = f"{found['hypervolume']:.3f} (the anchors alone 0.000; 1: the anchors' best of each at once)"
    assert said in mergeopt("status", folder).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["front", "RUN", "--where", "math.accuracy >= 0.95"],
            "the nearest, candidate 1, has math.accuracy 0.9 ± 0.048",
        ),
        (
            ["front", "RUN", "--where", "math.accuracy >= 80"],
            "math.accuracy is a share from 0 to 1 in all of them; give a bound in there, such as 0.8 for 80 %",
        ),
        (["front", "RUN", "--where", "chat.loss <= 0.1"], "ask for less"),
        (["front", "RUN", "--where", "maths.accuracy >= 0.5"], "no metric 'maths.accuracy'"),
        (["front", "RUN", "--best", "math.acuracy"], "did you mean 'math.accuracy'? there are: chat.loss, math."),
        (["front", "RUN", "--best", "chat"], "did you mean 'chat.loss'? there are: chat.loss\n"),
        (["show", "RUN", "bst"], "did you mean 'best'? give a candidate's number"),
        (["show", "RUN", "bse"], "did you mean 'base'? give a candidate's number"),
        (
            ["front", "RUN", "--where", "math.accuracy >= 0.9", "--where", "math.accuracy <= 0.5"],
            "--where: 'math.accuracy >= 0.9' and 'math.accuracy <= 0.5' cannot both hold; raise the one to",
        ),
        (["front", "RUN", "--where", "math.accuracy > 0.5"], "write >= or <="),
        (["front", "RUN", "--where", "math.accuracy"], "expected a metric, >= or <=, and a number"),
        (["front", "RUN", "--where", "math.accuracy >= nan"], "expected a metric, >= or <=, and a number"),
        (["front", "RUN", "--where", f"{ORDER} >= 1"], "no metric '"),
        (["front", "RUN", "--best", "chat.loss", "--all"], "show different things"),
        (["front", "RUN", "--against", "nowhere"], "no run at"),
        (["compare", "RUN", "best", "nobody"], "no candidate 'nobody'"),
        (["compare", "RUN", "99", "best"], "no candidate '99'"),
    ],
)
def test_a_mistake_is_one_message_and_code_2(
    folder: Path, mergeopt: Program, arguments: list[str], message: str
) -> None:
    said = mergeopt(*(str(folder) if a == "RUN" else a for a in arguments))
    assert said.code == 2 and message in said.err and "Traceback" not in said.err and "\x1b]" not in said.err


def test_hostile_names_are_text(tmp_path: Path, mergeopt: Program) -> None:
    names = (f"[red]a.{ORDER}b", "<script>.[/bold]c")
    folder = folder_of(tmp_path / "run", names)
    asked = ["--where", f"{names[0]} >= 0.5", "--best", "<script>.[/bold]c"]
    for arguments in (["front"], ["compare", "expert: [red]math", "base"]):
        said = mergeopt(arguments[0], folder, *arguments[1:])
        assert said.code == 0 and "\x1b]" not in said.out and "[/bold]c" in said.out and "[red]" in said.out
    found = mergeopt("front", folder, *asked)
    assert found.code == 0 and "\x1b]" not in found.out and "best in <script>.[/bold]c" in found.out
    assert mergeopt("front", folder, "--where", "<script>.[/bold]c >= 0.5").code == 2, "no < or > in a condition's name"


def test_a_front_is_measured_by_another_runs(folder: Path, tmp_path: Path, mergeopt: Program) -> None:
    same = json.loads(mergeopt("front", folder, "--against", folder, "--json").out)
    assert same == {"against": "run", "candidates": 3, "igd_plus": 0.0, "epsilon": 0.0}
    better = folder_of(tmp_path / "better", scores=[*SCORES[:2], ("search", 0.84, 0.8, 1.05)])
    found = json.loads(mergeopt("front", folder, "--against", better, "--json").out)
    assert found["epsilon"] == pytest.approx(0.05 / 0.4, abs=1e-6)  # 0.025 of 40 items are one; the range is 0.4
    assert found["igd_plus"] == pytest.approx(0.05 / 0.4 / 3, abs=1e-6)
    assert "epsilon +0.1250" in mergeopt("front", folder, "--against", better).out
    other = folder_of(tmp_path / "other", ("math.accuracy", "chat.perplexity"))
    assert "name a run of the same ones" in mergeopt("front", folder, "--against", other).err


def test_where_nothing_is_known_of_errors_nothing_is_said_of_certainty(tmp_path: Path, mergeopt: Program) -> None:
    folder = folder_of(tmp_path / "run", scores=SCORES[:2])
    with closing(Ledger.open(folder / "ledger.db")) as ledger:
        ledger.asked(1, [Question(5, np.array([0.5]), stage="search")], ["5" * 64])
        values = {"math.accuracy": Measure(0.95, None, 1), "chat.loss": Measure(0.5, 0.1, 40)}
        ledger.answered([Answer(5, "calibration", values)])
    rows = {r["candidate"]: r for r in json.loads(mergeopt("front", folder, "--json").out)}
    assert rows[5]["front"] and rows[5]["nondominated"] == {"calibration": None, "heldout": None}
    assert " sure" not in mergeopt("front", folder).out
    assert "a standard error is not known" in mergeopt("show", folder, "surest").err
    assert "no knee" in mergeopt("compare", folder, "knee", "base").err
    said = mergeopt("compare", folder, "5", "base").out
    assert "*: unpaired" in said and "A dominates B with probability not known" in said


def test_items_that_are_none_are_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run")
    with closing(Ledger.open(folder / "ledger.db")) as ledger:
        ledger._write(lambda: ledger._db.execute("UPDATE item_values SET data = 'abc'", ()))
    with pytest.raises(RunError, match="none that a run has"):
        plain.front(Results(folder))


def test_of_equals_the_better_mean_is_preferred(tmp_path: Path) -> None:
    scores = [*SCORES[:2], ("search", 0.7, None, 1.4), ("search", 0.7, None, 1.3)]
    results = Results(folder_of(tmp_path / "run", scores=scores))
    where = [Condition.parse("chat.loss <= 1.5")]
    assert preferred(results, where, "math.accuracy").number == 3
    assert preferred(results, [], None).number == results.pick("best").number
    with pytest.raises(JobError, match="ask for less"):
        preferred(results, [Condition("math.accuracy", True, 0.8), Condition("chat.loss", False, 1.2)])
