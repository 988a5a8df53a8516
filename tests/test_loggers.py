"""Do the loggers hold what a search told them, and can none of them harm it, whatever becomes of it?"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import worlds
from program import mergeopt

from optimizer.errors import JobError
from optimizer.output import loggers
from optimizer.output.loggers import watching
from optimizer.output.loggers.logger import Begun, Ended, Row, Step, columns, flat
from optimizer.record.results import Results

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),  # MLflow's store
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),  # wandb's temporary folder
]

NAMES = ["spam.accuracy", "x,y<b>|`"]
GOALS: dict[str, Any] = {NAMES[0]: "max", NAMES[1]: "min"}
STEPS = [
    Step(1, 0, "anchor: base", {NAMES[0]: 0.5, NAMES[1]: 2.0}, {NAMES[0]: 0.1}, {NAMES[0]: 0.5}, 0.0, 1.5),
    Step(2, 1, "sobol", {}, {}, {NAMES[0]: 0.5}, 0.25, 0.5, failure="oom: no room"),
    Step(3, 2, "sobol", {NAMES[0]: 0.75, NAMES[1]: 1.0}, {}, {NAMES[0]: 0.75}, 0.5, 0.5, estimated=True),
]
LATER = Step(4, 3, "sobol", {NAMES[0]: 1.0, NAMES[1]: 0.5}, {}, {NAMES[0]: 1.0}, 0.75, 0.5)
FRONT = [Row("3", "abc", LATER.values, {}, {NAMES[0]: 0.9}), Row("base", "def", STEPS[0].values, STEPS[0].stderr)]
Scalars = dict[tuple[str, int], float]
CANARY = "canary" + "0123456789" * 3  # a secret of the environment, looked for in all that a logger writes


def tensorboard(folder: Path) -> tuple[Scalars, str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "run" / "tensorboard"))
    found.Reload()
    scalars = {(tag, e.step): e.value for tag in found.Tags()["scalars"] for e in found.Scalars(tag)}
    texts = [found.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]]
    return scalars, "\n".join(texts)


def mlflow(folder: Path) -> tuple[Scalars, str]:
    import mlflow

    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("mergeopt").experiment_id])
    names = run.data.metrics
    scalars = {(n, m.step): m.value for n in names for m in client.get_metric_history(run.info.run_id, n)}
    front = Path(mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/front.json")).read_text()
    assert run.info.status == "FINISHED"
    return scalars, front + str(run.data.params)


def wandb(folder: Path) -> tuple[Scalars, str]:
    import wandb

    wandb.teardown()  # its process writes after it has said that a run is finished
    scalars: Scalars = {}
    text = ""
    for file in sorted(folder.glob("run/wandb/*/*.wandb")):
        for record in records(file.read_bytes()):
            items = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            scalars |= {(n, items["_step"]): v for n, v in items.items() if isinstance(v, int | float) and n[:1] != "_"}
            text += str(record.run.config) + str(record.summary)
    return scalars, text + "".join(p.read_text() for p in sorted(folder.glob("run/wandb/*/files/media/table/*.json")))


def records(data: bytes) -> Iterator[Any]:
    """The records of an offline run: LevelDB's log, parted into blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, whole = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole of a record, or its end
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


READERS: dict[str, Callable[[Path], tuple[Scalars, str]]] = {
    "tensorboard": tensorboard,
    "mlflow": mlflow,
    "wandb": wandb,
}
LIBRARIES = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow", "wandb": "wandb"}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where loggers write: nowhere but in this folder, and to no server."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "HF_TOKEN": CANARY,
        "WANDB_MODE": "offline",
        "WANDB_CACHE_DIR": str(tmp_path / "cache"),
        "WANDB_CONFIG_DIR": str(tmp_path / "config"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def begun(folder: Path) -> Begun:
    (folder / "run").mkdir(exist_ok=True)
    return Begun("0a1b", "first <run>", folder / "run", {"models.base": "<b>|x", "seed": 3, "simplex": False}, GOALS)


@pytest.mark.parametrize("name", sorted(loggers.LOGGERS))
def test_what_a_logger_is_told_is_there_and_a_resume_goes_on_in_the_same_place(name: str, elsewhere: Path) -> None:
    pytest.importorskip(LIBRARIES[name], reason=f"--log-to {name} needs the extra '{name}'")
    for steps in (STEPS, [LATER]):
        ((_, logger),) = loggers.find([name, name])
        logger.start(begun(elsewhere))
        for step in steps:
            logger.step(step)
        if steps != STEPS:
            logger.end(Ended(FRONT, 0.75, finished=True))
        logger.close()
    assert not [p for p in elsewhere.rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()]
    scalars, text = READERS[name](elsewhere)
    plain = {
        kind: next(n for n, _ in scalars if n.startswith(f"{kind}/x")) for kind in ("candidate", "estimated")
    }  # a name that not each of them can say
    told: Scalars = {
        ("candidate/spam.accuracy", 1): 0.5, ("stderr/spam.accuracy", 1): 0.1, ("seconds", 1): 1.5,
        ("failed", 2): 1.0, ("hypervolume", 2): 0.25, ("best/spam.accuracy", 3): 0.75,
        ("estimated/spam.accuracy", 3): 0.75, ("candidate/spam.accuracy", 4): 1.0, ("hypervolume", 4): 0.75,
        (plain["candidate"], 1): 2.0, (plain["estimated"], 3): 1.0,
    }  # fmt: skip
    for key, value in told.items():
        assert scalars[key] == pytest.approx(value), key
    assert not {("candidate/spam.accuracy", 2), ("candidate/spam.accuracy", 3)} & scalars.keys()
    for part in ("abc", "def", "0.9", "spam.accuracy heldout", "models.base"):
        assert part in text, part


@pytest.mark.parametrize("name", sorted(loggers.LOGGERS))
def test_a_logger_that_never_began_closes(name: str, elsewhere: Path) -> None:
    pytest.importorskip(LIBRARIES[name], reason=f"--log-to {name} needs the extra '{name}'")
    loggers.find([name])[0][1].close()
    assert not [p for p in elsewhere.rglob("*") if p.is_file()]


class Broken:
    """A logger that cannot be made."""

    def __init__(self) -> None:
        raise RuntimeError("boom")


class Fake:
    """Keeps what it is told."""

    told: list[object]  # of the class: what came last was made last

    def __init__(self) -> None:
        type(self).told = []

    def start(self, run: Begun) -> None:
        self.told.append(run)

    def step(self, step: Step) -> None:
        self.told.append(step)

    def end(self, run: Ended) -> None:
        self.told.append(run)

    def close(self) -> None:
        self.told.append("closed")


def broken(at: str, error: BaseException) -> type[Fake]:
    class Broken(Fake):
        pass

    def fails(self: Fake, *said: object) -> None:
        self.told.append(at)
        raise error

    setattr(Broken, at, fails)
    return Broken


class Hanging(Fake):
    """Never comes back from its second step."""

    def step(self, step: Step) -> None:
        super().step(step)
        if step.at > 1:
            threading.Event().wait()


FAKES: dict[str, type[Fake]] = {
    "fine": Fake,
    "at-start": broken("start", OSError(28, "No space left on device")),
    "at-step": broken("step", ConnectionError("https://user:s3cret@host is away\x1b[2J")),
    "at-end": broken("end", ValueError("no")),
    "at-close": broken("close", RuntimeError()),
    "quitter": broken("step", SystemExit(1)),
    "hanging": Hanging,
}
CLASSES = {name: f"kind_{name.replace('-', '_')}" for name in FAKES}  # by which the table finds them
globals().update({CLASSES[name]: kind for name, kind in FAKES.items()})


def test_a_logger_that_fails_or_hangs_is_off_and_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in FAKES:
        monkeypatch.setitem(loggers.LOGGERS, name, f"test_loggers:{CLASSES[name]}")
    monkeypatch.setattr(watching, "CLOSE_SECONDS", 0.5)
    worlds.classification(tmp_path, evaluations=8)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert mergeopt("run", "job.yaml", *(f"--log-to={name}" for name in FAKES)) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("logging to")]
    assert len(said) == len(FAKES) - 1 and "s3cret" not in str(said) and "\x1b" not in str(said)
    for name, why in {
        "at-start": "OSError: [Errno 28]", "at-step": "is away", "at-end": "ValueError: no", "at-close": "RuntimeError",
        "quitter": "SystemExit", "hanging": "not taken all in 0.5 s after the end",
    }.items():  # fmt: skip
        assert any(
            line.startswith(f"logging to {name} is off, which harms no search: ") and why in line for line in said
        )
    results = Results(tmp_path / "runs" / "pico")
    assert results.finished and len(results.scored) == 8
    first, *steps, ended, closed = Fake.told
    assert isinstance(first, Begun) and first.parameters["driver.name"] == "sobol" and first.name == "pico"
    assert (
        first.objectives == {"spam.accuracy": "max", "mood.cross_entropy": "min"} and "hashes" not in first.parameters
    )
    assert [s.number for s in steps if isinstance(s, Step)] == list(results.candidates) and closed == "closed"
    for step, candidate in zip(steps, results.candidates.values(), strict=True):
        assert isinstance(step, Step) and step.stage == candidate.stage
        assert step.values == {o.name: candidate.measures[o.name].value for o in results.objectives}
    assert [s.at for s in steps if isinstance(s, Step)] == [*range(1, len(steps) + 1)]
    assert isinstance(ended, Ended) and ended.finished and [r.recipe for r in ended.front] == [
        c.recipe for c in results.on_front
    ]  # fmt: skip
    assert ended.front[0].heldout["spam.accuracy"] == results.on_front[0].heldout["spam.accuracy"].value
    assert FAKES["at-start"].told == ["start", "closed"] and FAKES["quitter"].told[1:] == ["step", "closed"]

    assert mergeopt("resume", "pico", "--evaluations", "9", "--log-to", "fine") == 0
    again = [s for s in Fake.told if isinstance(s, Step)]
    assert [s.at for s in again] == [len(steps) + 1] and isinstance(Fake.told[0], Begun) and Fake.told[0].id == first.id


def test_loggers_close_side_by_side_and_those_that_hang_have_one_limit_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_run: Any = None  # of which a logger is told as a search starts
    both = threading.Barrier(2)

    class Meets(Fake):
        def close(self) -> None:
            both.wait()  # for ever, if one is closed after the other

    class Hangs(Fake):
        def close(self) -> None:
            threading.Event().wait()

        def abandon(self) -> None:
            self.told.append("abandoned")
            raise RuntimeError("nor can it leave")

    with watching.watched(no_run, [("one", Meets()), ("other", Meets())]):
        assert not both.n_waiting
    assert capsys.readouterr().err == ""

    waits: list[float] = []
    join = threading.Thread.join

    def waited(thread: threading.Thread, seconds: float) -> None:
        waits.append(seconds)
        join(thread, seconds)

    monkeypatch.setattr(threading.Thread, "join", waited)
    monkeypatch.setattr(watching, "CLOSE_SECONDS", 0.2)
    with watching.watched(no_run, [(name, Hangs()) for name in ("one", "other", "third")]):
        pass
    assert len(waits) == 3 and sum(waits) <= 0.2
    assert Hangs.told == ["abandoned"] * 3 and "abandoned" not in Meets.told
    assert (
        capsys.readouterr().err.count("is off, which harms no search: it has not taken all in 0.2 s after the end") == 3
    )


@pytest.mark.parametrize("name", sorted(loggers.LOGGERS))
def test_a_missing_library_is_said_before_anything_is_spent(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    worlds.classification(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, LIBRARIES[name], None)
    capsys.readouterr()
    assert mergeopt("run", "job.yaml", "--log-to", name) == 2
    assert f"pip install 'mergeopt[{name}]'" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_who_is_logged_in_is_asked_before_anything_is_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="--log-to wandb needs the extra 'wandb'")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(JobError, match="nobody is logged in; 'wandb login' once, or set WANDB_MODE=offline"):
        loggers.find(["wandb"])


def test_loggers_of_other_packages_are_in_the_table_and_names_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    def offered(group: str) -> list[EntryPoint]:
        return [EntryPoint("theirs", "test_loggers:Fake", group), EntryPoint(taken, "x:Y", group)][: 1 + bool(taken)]

    monkeypatch.setattr(loggers.metadata, "entry_points", offered)
    taken = ""
    assert isinstance(loggers.find(["theirs"])[0][1], Fake)
    with pytest.raises(JobError, match=r"no logger 'tensorbord'; did you mean 'tensorboard'[?] there are: .*theirs"):
        loggers.find(["tensorbord"])
    for there, why in (("Gone", "AttributeError"), ("Broken", "RuntimeError: boom")):
        monkeypatch.setitem(loggers.LOGGERS, "gone", f"test_loggers:{there}")
        with pytest.raises(JobError, match=f"--log-to gone: test_loggers:{there} cannot be loaded: {why}"):
            loggers.find(["gone"])
    taken = "wandb"
    with pytest.raises(JobError, match="offers a logger 'wandb', which there is already"):
        loggers.find([])


def test_a_search_that_is_not_logged_imports_no_loggers_library() -> None:
    code = (
        "import sys; from optimizer.commands import driving, searches; from optimizer.output import loggers;"
        "loggers.find([]); import optimizer.output.loggers.watching;"
        "print(sorted(set(sys.modules) & {'mlflow', 'wandb', 'tensorboard', 'torch'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_job_is_flat_and_its_secrets_are_hidden() -> None:
    said = flat({"a": {"b": 1, "c": [1, 2], "d": None, "e": []}, "url": "https://u:s3cret@h/", "t": True})
    assert said == {"a.b": 1, "a.c": "[1, 2]", "url": "https://u:***@h/", "t": True}
    assert columns([], ["a"])["a heldout"] == []
    listed = flat({"e": [{"name": "spam", "data": "a"}, {"name": "x", "n": 1}], "same": [{"name": "a"}, {"name": "a"}]})
    assert listed == {"e.spam.data": "a", "e.x.n": 1, "same": '[{"name": "a"}, {"name": "a"}]'}


def test_a_candidate_that_is_answered_twice_has_two_steps_and_a_resume_counts_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loggers.LOGGERS, "fine", f"test_loggers:{CLASSES['fine']}")
    worlds.classification(tmp_path, 16, extra="fidelity: {rungs: [8], keep: 0.2}")
    monkeypatch.chdir(tmp_path)
    at: list[int] = []
    for command in (("run", "job.yaml"), ("resume", "pico", "--evaluations", "20")):
        assert mergeopt(*command, "--log-to=fine") == 0
        steps = [s for s in Fake.told if isinstance(s, Step)]
        at += [s.at for s in steps]
        numbers = [s.number for s in steps]
        assert len(set(numbers)) < len(numbers) or command[0] == "resume"  # a finalist, scored on all items
    assert at == [*range(1, len(at) + 1)]


class Slow(Fake):
    """Fails at once, and takes its time to close."""

    def start(self, run: Begun) -> None:
        raise OSError("away")

    def close(self) -> None:
        time.sleep(0.3)
        super().close()


def test_a_logger_that_is_off_is_waited_for_until_it_is_closed(tmp_path: Path) -> None:
    watched = watching.Watched("slow", Slow(), None)  # type: ignore[arg-type]
    watched._tell(lambda: watched._logger.start(begun(tmp_path)))
    while not watched._off.is_set():
        time.sleep(0.01)
    watched.finish()
    watched.closed(time.monotonic() + 60)
    assert Slow.told == ["closed"]


def test_a_process_ends_whose_wandb_does_not(tmp_path: Path) -> None:
    (tmp_path / "wandb-core").symlink_to(Path(str(shutil.which("sleep"))).resolve())
    script = (
        "import atexit, subprocess, sys\n"
        "from optimizer.output.loggers.wandb import WandB\n"
        "core = subprocess.Popen([sys.argv[1], '600'])\n"
        "atexit.register(lambda: print(core.wait()))\n"  # as wandb's own hook does
        "object.__new__(WandB).abandon()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "wandb-core")]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout == "-9\n"


@pytest.mark.parametrize(("finished", "code"), [(True, 0), (False, 255), (None, 1)])
def test_wandb_is_told_whether_a_search_finished_was_stopped_or_broke_off(finished: bool | None, code: int) -> None:
    from unittest.mock import MagicMock

    from optimizer.output.loggers.wandb import WandB

    logger = object.__new__(WandB)
    run = MagicMock()
    logger._wandb, logger._run, logger._objectives, logger._exit = MagicMock(), run, NAMES, 1
    logger.step(STEPS[0])
    if finished is not None:
        logger.end(Ended(FRONT, 0.75, finished))
    logger.close()
    run.finish.assert_called_once_with(exit_code=code)
    assert not run.define_metric.called  # of best/* the last value is the best candidate's, whatever is better
