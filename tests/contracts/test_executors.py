"""What every executor owes: each question answered once, faults as answers, refusals in the worker's own words."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from simulated import Bowl

from optimizer.answer import Answer
from optimizer.driver import Items, Question, Wants
from optimizer.errors import RunError, WorkerError
from optimizer.executors.cluster import RayExecutor
from optimizer.executors.executor import Executor, Inline
from optimizer.executors.parts import Parts
from optimizer.executors.ray_session import LOCAL, connect

Make = Callable[..., Executor]


def inline(spec: dict[str, object], **options: object) -> Executor:
    return Inline(Bowl.TARGET, json.dumps(spec))


def on_ray(spec: dict[str, object], **options: object) -> Executor:
    return RayExecutor(Bowl.TARGET, json.dumps(spec), workers=2, cpus=0.5, **options)


@pytest.fixture(scope="module")
def ray_once() -> Iterator[None]:
    import ray

    connect(LOCAL, cpus=2)
    yield
    ray.shutdown()


@pytest.fixture(params=[inline, on_ray], ids=["inline", "ray"])
def make(request: pytest.FixtureRequest, ray_once: None) -> Make:
    return request.param


def answers(executor: Executor, questions: list[Question], seconds: float = 60) -> dict[int, Answer]:
    executor.start()
    for question in questions:
        executor.submit(question)
    found: dict[int, Answer] = {}
    end = time.monotonic() + seconds
    while len(found) < len(questions) and time.monotonic() < end:
        for answer in executor.collect(timeout=0.5):
            assert answer.number not in found, "answered twice"
            found[answer.number] = answer
    executor.close()
    return found


def ask(*firsts: float) -> list[Question]:
    return [Question(i, np.array([x, 0.5])) for i, x in enumerate(firsts)]


def test_every_question_is_answered_once_with_its_own_scores(make: Make) -> None:
    found = answers(make({"targets": [0.0]}), ask(*np.linspace(0, 1, 12)))
    for i, x in enumerate(np.linspace(0, 1, 12)):
        assert found[i].measures["task0.accuracy"].value == pytest.approx(1 - (x**2 + 0.25) / 2)
        assert found[i].per_item["task0.accuracy"].dtype == np.float32


def test_the_split_asked_for_is_the_split_answered(make: Make) -> None:
    found = answers(make({}), [Question(3, np.zeros(2), items=Items("heldout"))])
    assert found[3].split == "heldout"


def test_a_candidates_failure_is_an_answer_and_disturbs_no_other(make: Make) -> None:
    found = answers(make({"bad": 0.5}), ask(0.1, 0.9, 0.2))
    assert [found[i].failure is not None for i in range(3)] == [False, True, False]


def test_a_worker_that_cannot_start_says_why(make: Make) -> None:
    executor = make({"broken": "no such model"})
    with pytest.raises(ValueError, match="no such model"):
        executor.start()
    executor.close()


def test_collect_returns_when_there_is_nothing(make: Make) -> None:
    executor = make({})
    executor.start()
    assert executor.collect(timeout=0.05) == []
    executor.close()


def test_a_question_that_kills_its_worker_fails_alone_after_three_attempts(ray_once: None) -> None:
    found = answers(on_ray({"fatal": 0.8}), ask(0.1, 0.9, 0.2, 0.3, 0.4))
    assert found[1].failure is not None and found[1].failure.kind == "infrastructure"
    assert found[1].attempts == 3 and found[1].worker not in {t.worker for t in found[1].tries}
    assert [t.kind for t in found[1].tries] == ["infrastructure"] * 2 and "died" in found[1].tries[0].reason
    assert all(found[i].failure is None for i in (0, 2, 3, 4))


def test_an_end_of_one_kind_uses_up_no_retry_of_another(ray_once: None, tmp_path: Path) -> None:
    troubles = [str(tmp_path / "log"), ["kill", "hang", "hang"]]
    found = answers(on_ray({"troubles": troubles}, timeout=1.0), ask(0.1))
    assert found[0].failure is not None and found[0].failure.kind == "timeout" and found[0].attempts == 3
    assert [t.kind for t in found[0].tries] == ["infrastructure", "timeout"]


def test_nothing_of_a_local_ray_listens_to_other_hosts(ray_once: None) -> None:
    """Whoever reaches Ray's ports runs commands as its user."""
    executor = on_ray({})
    executor.start()  # workers listen too
    here = psutil.Process()
    found = {
        (process.name(), at.laddr.ip)
        for process in (here, *here.children(recursive=True))
        for at in process.net_connections("inet")
        if at.status == psutil.CONN_LISTEN
    }
    executor.close()
    assert {"gcs_server", "raylet"} <= {name for name, _ in found}
    assert {ip for _, ip in found} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, found


def test_a_question_that_hangs_in_a_c_call_is_stopped_at_its_deadline(ray_once: None) -> None:
    found = answers(on_ray({"hang": 0.8, "busy": True}, timeout=1.0), ask(0.1, 0.9, 0.2))
    assert found[1].failure is not None and found[1].failure.kind == "timeout"
    assert found[1].attempts == 2
    assert all(found[i].failure is None for i in (0, 2))


def test_a_replacement_that_starts_slowly_costs_no_other_question_its_deadline(ray_once: None) -> None:
    found = answers(on_ray({"hang": 0.8, "start_seconds": 2.5}, timeout=1.5), ask(0.1, 0.9, 0.2, 0.3, 0.4))
    assert [i for i, a in found.items() if a.failure is not None] == [1]
    assert all(found[i].attempts == 1 for i in (0, 2, 3, 4))


def test_workers_that_die_as_they_start_are_made_again_and_then_given_up(
    ray_once: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = answers(on_ray({"deaths": [str(tmp_path / "a"), 2]}), ask(0.1, 0.2))
    assert len(found) == 2 and all(a.failure is None and a.attempts == 1 for a in found.values())
    assert "died as it started" in caplog.text
    executor = on_ray({"deaths": [str(tmp_path / "b"), 1000]})
    with pytest.raises(WorkerError, match=r"[34] workers in a row died as they started.*mergeopt doctor"):
        executor.start()
    executor.close()


def test_inputs_that_a_worker_finds_changed_end_the_run_and_fail_no_candidate(make: Make) -> None:
    with pytest.raises(RunError, match="model 'spam' has changed"):
        answers(make({"changed": 0.8}), ask(0.1, 0.9, 0.2))


def test_workers_that_no_cluster_could_hold_are_refused_with_the_numbers(ray_once: None) -> None:
    executor = RayExecutor(Bowl.TARGET, "{}", workers=2, cpus=0.5, gpus=8)
    with pytest.raises(WorkerError, match=r"2 workers of 0.5 CPU, 8 GPU each are wanted, and the machine"):
        executor.start()


def test_both_workers_take_part(ray_once: None) -> None:
    executor = on_ray({"seconds": 0.1})
    executor.start()  # one is ready, the other joins when it is
    end = time.monotonic() + 60
    while executor.slots < 2 and time.monotonic() < end:
        executor.collect(timeout=0.5)
    assert executor.slots == 2
    for question in ask(*np.linspace(0, 1, 8)):
        executor.submit(question)
    found: list[Answer] = []
    while len(found) < 8 and time.monotonic() < end:
        found += executor.collect(timeout=0.5)
    executor.close()
    assert len({a.worker for a in found}) == 2


def differentiate(*firsts: float, wants: Wants = "gradient") -> list[Question]:
    return [Question(i, np.array([x, 0.5]), wants, Items("train", batch=8, draw=i)) for i, x in enumerate(firsts)]


@pytest.mark.parametrize("wants", ["gradient", "gradients"])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_gradient_in_parts_is_the_same_to_the_bit_wherever_it_is_computed(
    make: Make, wants: Wants, count: int
) -> None:
    spec = {"targets": [0.1, 0.4, 0.9]}
    here = answers(Parts(inline(spec), count), differentiate(0.1, 0.7, wants=wants))
    there = answers(Parts(make(spec), count), differentiate(0.1, 0.7, wants=wants))
    for number, answer in here.items():
        assert answer.agrees(there[number]) and there[number].part == (0, 1)
        assert answer.gradient is not None and answer.gradient.shape == (1 if wants == "gradient" else 3, 2)
        shares = max(1, -(-count // 3))  # of a task's minibatch; errors are not known, in parts or whole
        assert [(m.count, m.stderr) for m in answer.measures.values()] == [(shares, None)] * 3
    if count <= 3:  # no minibatch is cut: the parts' sum is the whole
        whole = answers(make(spec), differentiate(0.1, 0.7, wants=wants))
        for number, answer in whole.items():
            assert here[number].gradient == pytest.approx(answer.gradient, rel=1e-12)
            assert dict(here[number].measures) == dict(answer.measures)


def test_grams_are_summed_over_parts_to_the_same_bits_wherever_they_are_computed(make: Make) -> None:
    for count in (1, 3, 8):  # of 5 tensors
        (here,), (there,) = (
            answers(Parts(kind({}), count), differentiate(0.1, wants="grams")).values() for kind in (inline, make)
        )
        assert here.agrees(there) and there.part == (0, 1) and not there.measures
        assert there.gradient == pytest.approx(np.full((4, 2), np.sin(np.arange(5)).sum()), rel=1e-12)


def test_a_gradient_of_which_one_part_fails_has_failed_once(make: Make) -> None:
    found = answers(Parts(make({"bad": 0.8}), 4), differentiate(0.1, 0.9, 0.2))
    assert found[1].failure is not None and found[1].gradient is None and found[1].part == (0, 1)
    assert found[0].failure is None and found[2].failure is None


class Backwards(Inline):
    """Runs what was submitted last first."""

    def submit(self, question: Question) -> None:
        self._queue.appendleft(question)


def test_parts_are_added_in_their_order_whichever_is_in_first() -> None:
    spec = json.dumps({"targets": [0.1, 0.4, 0.9]})
    here, there = (
        answers(Parts(kind(Bowl.TARGET, spec), 7), differentiate(0.1, 0.7, 0.9)) for kind in (Inline, Backwards)
    )
    assert all(answer.agrees(there[number]) for number, answer in here.items()) and len(here) == 3
