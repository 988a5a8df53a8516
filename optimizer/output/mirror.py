"""How is a run copied to an Optuna study? Candidate by candidate, as trials; again adds what is new, and no more."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import OptunaError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from evaluators.evaluator import Measure
from optimizer.conditions import Condition
from optimizer.errors import JobError
from optimizer.record.candidate import Candidate
from optimizer.record.folders import LEDGER
from optimizer.record.ledger import Ledger
from optimizer.record.results import Results
from optimizer.wording import shown
from searchspaces.domain import Domain

MARK = "mergeopt"  # of a study, which run it is of; of a trial, which candidate
SQLITE = re.compile(r"sqlite(\+\w+)?:///")
LOCKED_SECONDS = 60
OPENING = (ImportError, RuntimeError, ValueError)  # of no driver, of tables of another Optuna, of no such storage


class Mirror:
    """A study that holds a run's candidates, made where there is none; the run's folder is read and never written.

    A trial's params are the point's coordinates, its values the objectives in natural units. A candidate that was told
    from some of the items is a pruned trial without values, and another one once it is scored on all. Raises JobError
    for a storage that cannot be opened, and a study that holds something else.
    """

    def __init__(self, results: Results, storage: str, name: str | None = None) -> None:
        self._results = results
        _check(storage, results.folder)
        self.name = name = name or results.name
        directions = ["maximize" if o.goal == "max" else "minimize" for o in results.objectives]
        with closing(Ledger.open(results.folder / LEDGER, readonly=True)) as ledger:
            own = str(ledger.meta("id", results.name))
        with _told(storage, *OPENING):
            self._study = optuna.create_study(
                storage=storage, study_name=name, directions=directions, load_if_exists=True
            )
        self._storage = storage
        self._space = {n: distribution(results.domain, i) for i, n in enumerate(results.domain.names)}
        with _locked(storage), _told(storage):
            self._own(own, directions)

    def _own(self, own: str, directions: Sequence[str]) -> None:
        """Have the study be the run's. Raises JobError for one that holds something else."""
        attributes, results = self._study.user_attrs, self._results
        said = attributes.get(MARK)
        is_of = said.get("run") if isinstance(said, dict) else None
        same = [d.name.lower() for d in self._study.directions] == directions
        if is_of != own and (is_of is not None or self._study.get_trials(deepcopy=False) or attributes or not same):
            what = "is of another run" if is_of is not None else "holds something else"
            raise JobError(f"study {shown(self.name, 100)!r} {what}; name another with --study")
        if is_of is None:
            self._study.set_user_attr(MARK, {"run": own, "name": results.name})  # first: whoever is killed goes on
            self._study.set_metric_names([o.name for o in results.objectives])
            if results.feasible.constraints:
                self._study.set_user_attr("constraints", list(map(str, results.feasible.constraints)))

    def copy(self) -> int:
        """Add the candidates that are not there; how many. Repetitions of a recipe are none.

        What is there is read each time, and kept as it is in between where the storage is a file: another mirror of
        the run may be at it.
        """
        times = dict(self._results.times)
        listed = {_key(c): c for c in self._results.scored}
        with _locked(self._storage), _told(self._storage):
            trials = {str(t.user_attrs.get(MARK)): t for t in self._study.get_trials(deepcopy=False)}
            new = {key: self._trial(c, key, times.get(c.number)) for key, c in listed.items() if key not in trials}
            for made in new.values():
                self._study.add_trial(made)
            said = self._study.user_attrs
            for key, c in listed.items():
                late = key in trials and "heldout" not in trials[key].user_attrs and f"heldout of {c.label}" not in said
                if c.heldout and late:  # scored since, and a trial that has ended stays as it is
                    self._study.set_user_attr(f"heldout of {c.label}", told(c.heldout))
            for label, c in self._results.references.items():
                if c.failure is None and f"reference {label}" not in said:
                    self._study.set_user_attr(f"reference {label}", told(c.measures))
        return len(new)

    def _trial(self, c: Candidate, key: str, at: float | None) -> FrozenTrial:
        results, domain = self._results, self._results.domain
        whole = c.failure is None and c.share == 1
        state = TrialState.COMPLETE if whole else TrialState.PRUNED if c.failure is None else TrialState.FAIL
        attributes: dict[str, Any] = {MARK: key, "candidate": c.label, "recipe": c.recipe, "stage": c.stage}
        attributes |= {"seconds": round(c.seconds, 3)}
        if c.failure is not None:
            attributes["failure"] = shown(str(c.failure))
        elif whole:
            attributes["stderr"] = errors(c.measures)
        else:
            attributes |= {"estimate": told(c.measures), "share": c.share}
        if c.heldout:
            attributes["heldout"] = told(c.heldout)
        over = [_over(k, c.measures[k.name]) for k in results.feasible.constraints] if whole else []
        made = optuna.trial.create_trial(
            state=state,
            params={n: value(domain, i, float(c.point[i])) for i, n in enumerate(domain.names)},
            distributions=self._space,
            values=[float(c.measures[o.name].value) for o in results.objectives] if whole else None,
            user_attrs=attributes,
            system_attrs={"constraints": over} if over else None,
        )
        if at is not None:
            with suppress(ValueError, OverflowError, OSError):  # of no calendar: the trial is worth more than its times
                times = [datetime.fromtimestamp(when) for when in (at - c.seconds, at)]
                made.datetime_start, made.datetime_complete = times
        return made


def _over(wanted: Condition, measure: Measure) -> float:
    """At most 0 where the constraint holds, as Optuna and its dashboard read it."""
    short = wanted.bound - float(measure.value)
    return short if wanted.at_least else -short


def _key(c: Candidate) -> str:
    """What a candidate's trial is known by; one that is scored on more items later is another trial."""
    return str(c.number) if c.share == 1 else f"{c.number} on {c.share:g} of the items"


def told(measures: Mapping[str, Measure]) -> dict[str, dict[str, float | int | None]]:
    """Values, standard errors (None where not known) and numbers of items, by metric."""
    return {n: {"value": float(m.value), "stderr": _finite(m.stderr), "items": m.count} for n, m in measures.items()}


def errors(measures: Mapping[str, Measure]) -> dict[str, float | None]:
    """Standard errors by metric."""
    return {n: _finite(m.stderr) for n, m in measures.items()}


def _finite(stderr: float | None) -> float | None:
    return float(stderr) if stderr is not None and math.isfinite(stderr) else None


def distribution(domain: Domain, i: int) -> BaseDistribution:
    """Where a coordinate may go, as Optuna says it; one whose codes mean something is among those meanings."""
    low, high = float(domain.low[i]), float(domain.high[i])
    if i in domain.labels:
        return CategoricalDistribution(domain.labels[i])
    if domain.kinds[i] == "real":
        return FloatDistribution(low, high)
    whole = range(math.ceil(low), math.floor(high) + 1)
    return CategoricalDistribution(whole) if domain.kinds[i] == "choice" else IntDistribution(whole[0], whole[-1])


def value(domain: Domain, i: int, at: float) -> float | int | str:
    """A coordinate's value in its distribution: rounding may have left it a little outside of its bounds."""
    if i in domain.labels:
        return domain.labels[i][int(at)]
    inside = min(max(at, float(domain.low[i])), float(domain.high[i]))
    return inside if domain.kinds[i] == "real" else round(inside)


def _check(storage: str, folder: Path) -> None:
    """Raises JobError for what is no URL, for a file in the run's own folder, and for the ledger of any run."""
    if "://" not in storage or len(storage) > 1000 or not storage.isprintable() or "%00" in storage:
        raise JobError(f"--storage: expected a URL such as sqlite:///optuna.db, got {shown(storage, 100)!r}")
    file = _file(storage)
    if file is not None and file.is_relative_to(folder.absolute().resolve()):
        raise JobError(f"--storage: {file} lies in the run's folder, which stays as it is; name a file elsewhere")
    if file is not None and file.name == LEDGER:
        raise JobError(f"--storage: {file} is called as a run's ledger is; name another file")


def _file(storage: str) -> Path | None:
    """The file of SQLite's that a URL names; None for a server, and for what is kept in memory."""
    said = SQLITE.match(storage)
    name = "" if said is None else unquote(storage[said.end() :].partition("?")[0])
    return Path(name).absolute().resolve() if name not in ("", ":memory:") else None


@contextmanager
def _locked(storage: str) -> Iterator[None]:
    """Alone among mirrors at a file of SQLite's, by a lock beside it; at once with others on a server.

    Raises JobError where another keeps it for `LOCKED_SECONDS`, and where the lock cannot be made.
    """
    file = _file(storage)
    if file is None:
        yield
        return
    lock = FileLock(f"{file}.lock", timeout=LOCKED_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise JobError(f"--storage: another mirror has kept {file} for {LOCKED_SECONDS} s; end it first") from error
    except OSError as error:
        raise JobError(f"--storage: {file}.lock cannot be made: {error.strerror}; name a file elsewhere") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _told(storage: str, *others: type[Exception]) -> Iterator[None]:
    """Optuna without its log; its errors, and `others`, are ours, in one line without a password. Raises JobError."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    except (OptunaError, SQLAlchemyError, *others) as error:
        raise JobError(f"--storage {shown(storage, 200)}: {shown(str(error).partition(chr(10))[0], 500)}") from error
    finally:
        optuna.logging.set_verbosity(verbosity)
