"""Which machine a worker lands on decides nothing: what cannot start is tried elsewhere, and nothing is waited for in
vain. Ray is a stand-in here, which answers at once; `test_cluster.py` has the real one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from optimizer.answer import Answer, Failure
from optimizer.driver import Items, Question
from optimizer.errors import WorkerError
from optimizer.executors import cluster, fleet, ray_session
from optimizer.executors.cluster import RayExecutor
from optimizer.executors.parts import Parts

BAD = RayTaskError("ready", "traceback", ValueError("this machine does not see the models"))
DIED = ActorDiedError()


class Ray:
    """Machines of one CPU each, and actors on them: one has a place while it is the only one of its machine.

    `starts` says of a machine what its workers' construction ends as: nothing, an error, or "never"; `answers` what
    becomes of questions, in their order: "never", an error, else an answer. `asked` are those that a worker was given.
    """

    def __init__(self, starts: dict[str, object]) -> None:
        self.starts, self.answers = dict(starts), list[object]()
        self.asked: list[tuple[Question, bool]] = []
        self.clock, self.actors = 0.0, list[Any]()
        self.told: dict[Any, str] = {}

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": name, "Alive": True, "Resources": {"CPU": 1.0}} for name in self.starts]

    def remote(self, kind: type) -> Any:
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=lambda *_: self._actor(options)))

    def _actor(self, options: dict[str, Any]) -> Any:
        barred = options.get("label_selector", {}).get("ray.io/node-id", "!in()")[4:-1].split(",")
        actor = SimpleNamespace(barred=barred, place=None)
        for method in ("node", "ready", "answer"):
            setattr(actor, method, SimpleNamespace(remote=partial(self._call, actor, method)))
        self.actors.append(actor)
        return actor

    def _call(self, actor: Any, method: str, *arguments: Any) -> tuple[Any, ...]:
        if method == "answer":
            self.asked.append(arguments)
        return (id(actor), method, len(self.asked) if method == "answer" else 0)

    def _result(self, ref: tuple[Any, ...]) -> object:
        """What it comes to; "never" where that is not there."""
        self._place()
        if ref in self.told:  # what came before an actor's end stays
            return self.told[ref]
        actor = next((a for a in self.actors if id(a) == ref[0]), None)
        if actor is None or actor.place is None:
            return "never"
        if ref[1] == "answer":
            question = self.asked[ref[2] - 1][0]
            said = self.answers[ref[2] - 1] if ref[2] <= len(self.answers) else None
            return said or Answer(question.number, question.items.split, part=question.part)
        if ref[1] == "node":
            self.told[ref] = actor.place
            return str(actor.place)
        return self.starts.get(actor.place)

    def _place(self) -> None:
        for actor in (a for a in self.actors if a.place is None):
            taken = {a.place for a in self.actors}
            actor.place = next((n for n in self.starts if n not in taken and n not in actor.barred), None)

    def wait(self, refs: Sequence[Any], num_returns: int = 1, timeout: float = 0.0) -> tuple[list[Any], list[Any]]:
        found = [ref for ref in refs if self._result(ref) != "never"][:num_returns]
        self.clock += 0.0 if found else timeout
        return found, [ref for ref in refs if ref not in found]

    def get(self, ref: Any) -> object:
        found = self._result(ref)
        if isinstance(found, ActorDiedError):
            self._result((ref[0], "node", 0))
            self.actors = [a for a in self.actors if id(a) != ref[0]]
        if isinstance(found, Exception):
            raise found
        return found

    def kill(self, actor: Any) -> None:
        self.actors = [a for a in self.actors if a is not actor]

    def shutdown(self) -> None:
        self.actors.clear()


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Ray, RayExecutor]]:
    """An executor over machines that end a worker's construction so."""

    def made(starts: dict[str, object], workers: int = 1, **options: Any) -> tuple[Ray, RayExecutor]:
        ray = Ray(starts)

        def sleep(seconds: float) -> None:
            ray.clock += seconds

        for module in (fleet, cluster):
            monkeypatch.setattr(module, "ray", ray)
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: ray.clock, sleep=sleep))
        return ray, RayExecutor("t", "{}", workers=workers, address="auto", **options)

    return made


On = Callable[..., tuple[Ray, RayExecutor]]


def ask(number: int, part: tuple[int, int] = (0, 1)) -> Question:
    return Question(number, np.zeros(2), "gradient" if part[1] > 1 else "scores", Items("train"), part=part)


def collected(running: Any, seconds: float, ray: Ray) -> list[Answer]:
    end, found = ray.clock + seconds, list[Answer]()
    while ray.clock < end:
        before = ray.clock
        found += running.collect(0.5)
        ray.clock += 0.1 if ray.clock == before else 0.0
    return found


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_one_bad_machine_ends_no_run_whichever_is_tried_first(
    on: On, order: str, caplog: pytest.LogCaptureFixture
) -> None:
    ray, running = on({name: BAD if name == "a" else None for name in order}, workers=2)
    running.start()
    collected(running, 1, ray)
    assert running.ready == 1 and [a.place for a in running._fleet._actors.values() if a.place] == ["b"]
    assert "this machine does not see the models" in caplog.text
    for name in "cd":  # a machine joins: it is given the other, and another no more
        ray.starts[name] = None
    collected(running, 15, ray)
    assert running.ready == 2


def test_what_fails_on_every_machine_ends_the_start_in_its_own_words(on: On) -> None:
    _, running = on({"a": BAD, "b": BAD}, workers=5)
    with pytest.raises(WorkerError, match=r"workers cannot start: ValueError: this machine does not see the models"):
        running.start()


def test_a_replacement_that_lands_on_a_bad_machine_goes_to_a_good_one(on: On) -> None:
    ray, running = on({"b": None, "a": BAD})
    running.start()
    ray.starts = {"a": BAD, "b": None}
    ray.answers = [DIED]
    running.submit(ask(0))
    assert [a.number for a in collected(running, 2, ray)] == [0] and running.ready == 1


def test_deaths_on_one_machine_end_no_start_on_another_and_are_made_up_for_when_one_joins(
    on: On, caplog: pytest.LogCaptureFixture
) -> None:
    ray, running = on({"slow": "never", "deadly": DIED}, workers=2)
    asleep = ray.wait

    def wait(*arguments: Any, **options: Any) -> tuple[list[Any], list[Any]]:
        if ray.clock > 20:
            ray.starts["slow"] = None
        return asleep(*arguments, **options)

    ray.wait = wait  # type: ignore[method-assign]
    running.start()
    assert running.ready == 1 and "left out until a machine joins" in caplog.text
    del ray.starts["deadly"]
    ray.starts["new"] = None
    collected(running, 15, ray)
    assert running.ready == 2


def test_why_no_worker_is_ready_is_said_once_and_again_where_it_changed_or_after_long(
    on: On, caplog: pytest.LogCaptureFixture
) -> None:
    ray, running = on({"slow": "never"}, workers=2)
    asleep = ray.wait

    def wait(*arguments: Any, **options: Any) -> tuple[list[Any], list[Any]]:
        if ray.clock > 300:
            ray.starts.setdefault("other", "never")
        if ray.clock > 1000:
            ray.starts["slow"] = None
        return asleep(*arguments, **options)

    ray.wait = wait  # type: ignore[method-assign]
    running.start()
    said = [r.getMessage() for r in caplog.records if "no worker is ready" in r.getMessage()]
    assert len(said) == 3 and "1 is waiting for room" in said[0] and "2 are starting" in said[1] and said[2] == said[1]


def test_where_all_machines_have_gone_the_run_waits_for_its_patience_and_no_longer(
    on: On, caplog: pytest.LogCaptureFixture
) -> None:
    ray, running = on({"a": None, "head": "never"}, patience=60)
    running.start()
    assert running.ready == 1
    ray.nodes = lambda: [{"NodeID": "head", "Alive": True, "Resources": {"CPU": 0.0}}]  # type: ignore[method-assign]
    del ray.starts["a"]
    ray.starts["head"] = "never"
    ray.answers = [DIED]
    running.submit(ask(0))
    collected(running, 50, ray)
    assert running.ready == 0 and running.slots == 1 and "can hold 0" in caplog.text
    with pytest.raises(WorkerError, match=r"none joined within 60 s \(executor.patience\)"):
        collected(running, 30, ray)


def test_a_run_whose_last_machine_is_a_bad_one_ends_with_what_is_wrong_there(on: On) -> None:
    ray, running = on({"a": None}, patience=60)
    running.start()
    ray.starts, ray.answers = {"a": BAD}, [DIED]
    running.submit(ask(0))
    collected(running, 50, ray)
    with pytest.raises(WorkerError, match="does not see the models"):
        collected(running, 30, ray)


def test_who_waits_for_room_is_not_said_to_start(on: On, caplog: pytest.LogCaptureFixture) -> None:
    ray, running = on({"a": "never"}, workers=3)
    ray.actors.append(SimpleNamespace(place=None, barred=[]))  # somebody else's
    ray.starts["b"] = "never"
    running._fleet._make()
    running._fleet._make()
    collected(running, 11, ray)
    assert "1 is starting" in caplog.text and "1 is waiting for room" in caplog.text


def test_the_last_try_after_workers_died_on_a_machine_that_lives_has_half_the_batch(on: On) -> None:
    ray, running = on({"a": None})
    running.start()
    ray.answers = [DIED, DIED]
    running.submit(ask(0))
    (answer,) = collected(running, 2, ray)
    assert [halved for _, halved in ray.asked] == [False, False, True] and answer.attempts == 3
    assert "the system took its memory" in answer.tries[0].reason


def test_a_gradients_other_parts_are_not_computed_once_one_has_failed(on: On) -> None:
    ray, running = on({"a": None})
    whole = Parts(running, 8)
    whole.start()
    ray.answers = [Answer(3, "train", failure=Failure("nonfinite", "loss is nan"), part=(0, 8))]
    whole.submit(Question(3, np.zeros(2), "gradient", Items("train")))
    whole.submit(ask(4))
    found = collected(whole, 2, ray)
    assert [a.number for a in found] == [3, 4] and found[0].failure is not None
    assert [q.number for q, _ in ray.asked] == [3, 3, 4]  # the worker had been given the next one in that moment


def test_in_a_drain_nothing_that_is_queued_or_failed_is_given_to_a_worker(on: On) -> None:
    ray, running = on({"a": None})
    running.start()
    ray.answers = [DIED]
    running.submit(ask(0))
    running.submit(ask(1))
    running.drain()
    assert collected(running, 2, ray) == [] and len(ray.asked) == 1 and not running.busy


@pytest.mark.parametrize("address", ["local", "ray-head:6379"])
def test_a_ray_that_does_not_start_is_told_as_such(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    def init(**options: object) -> None:
        raise Exception("The current node timed out during startup.\nmore")

    monkeypatch.setattr(ray_session.ray, "init", init)
    monkeypatch.setattr(ray_session, "_look", lambda address: None)  # something listens there
    said = (
        "cannot start, as Ray did not: The current node timed out" if address == "local" else "no Ray cluster answers"
    )
    with pytest.raises(WorkerError, match=f"{said}.*mergeopt doctor"):
        ray_session.connect(address)


def test_a_stop_that_ray_is_told_of_as_it_starts_is_no_failure_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ray_session.ray, "init", init)
    with pytest.raises(KeyboardInterrupt):
        ray_session.connect("local")
