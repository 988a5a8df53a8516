"""What does the user want? The job file, validated once at the door; unknown keys are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from io import StringIO
from math import ceil, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML

from optimizer.conditions import Condition, consistent, normal
from optimizer.errors import JobError
from optimizer.jobs.job_space import Name, Space, Strict
from optimizer.jobs.plain_yaml import read_yaml
from optimizer.jobs.telling import explained, kind
from optimizer.wording import server_url

if TYPE_CHECKING:
    import torch


class Models(Strict):
    """The base, and the experts fine-tuned from it: folders in Hugging Face layout, or `org/name@revision`.

    `vocabulary` and `sources` are for experts with tokens of their own.
    """

    base: str
    experts: dict[Name, str] = Field(min_length=1)
    heads: list[str] = Field(default_factory=list)
    exclude: list[str] = Field(default_factory=list)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    vocabulary: Literal["base", "union"] | None = None
    sources: dict[str, str] = Field(default_factory=dict)

    @property
    def resident_dtype(self) -> torch.dtype | None:
        """What a worker's model is in; None for the checkpoint's own."""
        import torch

        found: torch.dtype | None = getattr(torch, self.dtype) if self.dtype else None
        return found


class EvaluatorEntry(BaseModel):
    """One evaluator. What is beside `kind` and `name` are its own options, checked by itself."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str
    name: Name

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Gradients(Strict):
    """What gradients are taken of, and on which items.

    `loss`: one kind, or weights by kind; by default the driver's. `temperature` is that of the kind `kl`. `tasks`: the
    evaluators that take part; by default all. `train`: the share of the calibration items that gradients see;
    candidates are scored on the rest. `parts`: in how many parts a gradient is computed, side by side where there are
    workers; another number rounds differently, so it is the run's and not the cluster's.
    """

    loss: str | dict[str, float] | None = None
    temperature: float | None = Field(None, ge=1e-3, le=1e3)
    tasks: list[str] | None = Field(None, min_length=1)
    train: float = Field(0.75, gt=0, lt=1)
    parts: int | None = Field(None, ge=1, le=1024)


class DriverEntry(BaseModel):
    """The search driver. What is beside the named keys are its own options, checked by itself.

    `gradients` is for drivers that ask for them (`auto` does where it is there, `{}` included), `preferences` and
    `scalarisation` for those of one objective.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "auto"
    anchors: bool = True
    preferences: list[list[float]] | None = None
    scalarisation: Literal["sum", "tchebycheff"] = "sum"
    gradients: Gradients | None = None

    @property
    def parts(self) -> int | None:
        """In how many parts a gradient is computed, where the job says so."""
        return self.gradients.parts if self.gradients is not None else None

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Fidelity(Strict):
    """How candidates are scored on few items before they are worth all.

    `rungs`: numbers of items of each task, growing; all calibration items are the last rung. At each, by the `rule`
    `halving`, the best `keep` of all candidates so far go on; by `racing` all but those that are worse than one of the
    front with probability `sure`. In the end a share `final` of the candidates, those that were told from some items
    and promise most, are scored on all. What a candidate would score on all items is told by `estimate`; `choose`
    says which items come first.
    """

    rungs: list[Annotated[int, Field(ge=1, strict=True)]] = Field(min_length=1, max_length=20)
    rule: Literal["halving", "racing"] = "halving"
    keep: float = Field(0.1, gt=0, lt=1)
    final: float = Field(0.1, ge=0, le=1)
    sure: float = Field(0.95, ge=0.5, lt=1)
    estimate: str = "paired"
    choose: str = "turns"

    @model_validator(mode="after")
    def _rungs_grow(self) -> Fidelity:
        if any(b <= a for a, b in zip(self.rungs, self.rungs[1:], strict=False)):
            raise ValueError(f"rungs: expected numbers of items that grow, got {self.rungs}; sort them, each once")
        return self

    def usual_share(self, items: int) -> float:
        """What share of a task's items a candidate is scored on, on average; at most that where the rule is `racing`.

        Of `halving` a share `keep` of those that come to a rung goes on.
        """
        keep = self.keep if self.rule == "halving" else 1.0
        ends = [*self.rungs, items]
        blocks = [b - a for a, b in zip([0, *ends], ends, strict=False)]
        return sum(keep**rung * block for rung, block in enumerate(blocks)) / items


class Budget(Strict):
    """How much may be spent: the first that is reached ends the search.

    `hours` are those in which the run is driven; `gpu_hours` count every GPU that workers are given, busy or not;
    `price_per_hour` is that of everything together, in the currency of `money`.
    """

    evaluations: int = Field(200, ge=1, le=1_000_000)
    hours: float | None = Field(None, gt=0, le=100_000)
    gpu_hours: float | None = Field(None, gt=0, le=100_000_000)
    money: float | None = Field(None, gt=0, le=1e9)
    price_per_hour: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _money_has_a_price(self) -> Budget:
        if self.money is not None and self.price_per_hour is None:
            raise ValueError("money needs to know what an hour costs; add budget.price_per_hour")
        return self


class ExecutorEntry(Strict):
    """Where candidates are scored. `threads` is each worker's; `timeout` is for one candidate, in seconds.

    `cpus`, `gpus` and `memory` (GB) are set aside for each worker, all on one machine; `patience`, in seconds, is how
    long to wait for a machine that can hold one, on a cluster that grows.

    `device` is one device, `auto`, or module -> device for a model that lies on several; `pool` says whether base and
    experts are copied to an accelerator or streamed there, auto by the memory that is free.
    """

    kind: Literal["inline", "ray"] = "ray"
    workers: int = Field(2, ge=1, le=4096)
    cpus: float = Field(1.0, gt=0, le=4096)
    gpus: float = Field(0.0, ge=0, le=1024)
    memory: float = Field(0.0, ge=0, le=1e6)
    threads: int = Field(1, ge=1, le=4096)
    device: str | Annotated[dict[str, int | str], Field(min_length=1)] = "cpu"
    pool: Literal["auto", "device", "stream"] = "auto"
    timeout: float | None = Field(None, gt=0)
    patience: float = Field(600.0, gt=0)
    address: str = "local"

    @property
    def accelerators(self) -> set[str]:
        """The accelerators that `device` names; those of `auto` are known where it runs."""
        named = self.device.values() if isinstance(self.device, dict) else [self.device]
        return {f"cuda:{d}" if isinstance(d, int) else d for d in named} - {"cpu", "auto"}

    @model_validator(mode="after")
    def _devices_are_set_aside(self) -> ExecutorEntry:
        if isinstance(self.device, dict):
            for module, device in self.device.items():
                if not re.fullmatch(r"\d+|cpu|(?!cpu|disk|meta)[a-z]+(:\d+)?", str(device)):
                    raise ValueError(
                        f"device: {module!r} is to be on {device!r}; merged weights are rewritten in place: name a "
                        "device such as 0, cuda:0 or cpu"
                    )
            if "cpu" in self.device.values() and self.accelerators:
                raise ValueError(
                    "device: beside accelerators, accelerate keeps what is on the cpu to be fetched at each forward "
                    "pass, where no merge reaches it; put all modules on accelerators, or all on the cpu"
                )
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(
                f"gpus: a worker has a share of one accelerator, or whole ones, and {self.gpus:g} is neither; "
                f"set gpus: {ceil(self.gpus)}"
            )
        many = len(self.accelerators)
        if self.kind == "ray" and many > 1 and self.gpus < many:
            raise ValueError(
                f"device names {many} accelerators, and gpus sets {self.gpus:g} aside for each worker; set gpus: {many}"
            )
        for name in sorted(self.accelerators) if self.kind == "ray" and self.gpus > 0 else ():
            if int(name.partition(":")[2] or 0) >= max(self.gpus, 1):
                raise ValueError(
                    f"device: a worker sees the accelerators that Ray gives it, numbered from 0, and with gpus: "
                    f"{self.gpus:g} none is {name}; count from 0, or raise gpus"
                )
        return self


class Hashes(Strict):
    """Content hashes (sha256) of every model, data file and data set, recorded when a run is made."""

    models: dict[str, str]
    data: dict[str, str]


class Job(Strict):
    """One search. Relative paths start from `root`, which is the job file's own folder unless it says otherwise.

    `constraints`: conditions on calibration scores that a candidate has to meet, such as `safety.accuracy >= 0.95`.
    `ledger`: the URL of a PostgreSQL database that keeps the run's record; by default it is a file in the run's folder.
    """

    name: Name = "run"
    models: Models
    space: Space = Field(default_factory=lambda: Space())
    evaluators: list[EvaluatorEntry] = Field(min_length=1)
    objectives: list[str] = Field(min_length=1)
    constraints: list[Annotated[str, AfterValidator(normal)]] = Field(default_factory=list)
    driver: DriverEntry = Field(default_factory=lambda: DriverEntry())
    fidelity: Fidelity | None = None
    budget: Budget = Field(default_factory=lambda: Budget())
    executor: ExecutorEntry = Field(default_factory=lambda: ExecutorEntry())
    ledger: Annotated[str, AfterValidator(server_url)] | None = None
    seed: int = Field(0, ge=0)
    root: str | None = None
    hashes: Hashes | None = None

    @property
    def gpus(self) -> float:
        """GPUs that each worker is given."""
        return self.executor.gpus if self.executor.kind == "ray" else float(len(self.executor.accelerators))

    @model_validator(mode="after")
    def _gpus_can_be_counted(self) -> Job:
        if self.budget.gpu_hours is not None and not self.gpus:
            raise ValueError(
                "budget.gpu_hours: no GPU is set aside for the workers, so none can be counted; set executor.gpus, or "
                "use budget.hours"
            )
        return self

    @model_validator(mode="after")
    def _constraints_can_hold(self) -> Job:
        try:
            consistent([Condition.parse(text) for text in self.constraints])
        except ValueError as error:
            raise ValueError(f"constraints: {error}") from None
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> Job:
        names = [e.name for e in self.evaluators]
        if repeated := {n for n in names if names.count(n) > 1}:
            raise ValueError(f"evaluators: the name {min(repeated)!r} is used twice; each evaluator needs its own")
        return self

    @classmethod
    def load(cls, path: str | Path) -> Job:
        """A job from a YAML file. Raises JobError naming the key, what was expected and what arrived."""
        path = Path(path)
        if not path.is_file():
            raise JobError(f"no job file at {path}; 'mergeopt init' writes one")
        return cls.parse(read_yaml(path), path.parent.absolute(), str(path))

    @classmethod
    def parse(cls, data: Any, root: Path, source: str = "job") -> Job:
        """A job from plain values; `root` is where relative paths start unless the job itself says."""
        if not isinstance(data, dict):
            raise JobError(
                f"{source}: expected a mapping of keys such as models, space and evaluators, got {kind(data)}"
            )
        start = data.get("root", ".")
        if not isinstance(start, str):
            raise JobError(f"{source}: root: expected the folder where relative paths start, got {kind(start)}")
        try:
            made = cls.model_validate({**data, "root": str(root / start)})
        except ValidationError as error:
            raise JobError(explained(cls, source, error)) from error
        for key, value in _not_finite(data):  # among the options of evaluators and drivers, which are any values
            raise JobError(f"{source}: {key}: expected a finite number, got {value}; leave it out for no limit")
        return made

    def path(self, text: str) -> Path:
        """A path of the job file, absolute."""
        return Path(self.root or ".") / Path(text).expanduser()

    def yaml(self) -> str:
        """The job as YAML, read back by `load` to an equal job."""
        out = StringIO()
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.dump(json.loads(self.model_dump_json()), out)
        return out.getvalue()


def _not_finite(data: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Infinite and NaN values by key: JSON, which ledgers, workers and clusters are told a job in, has none."""
    inner: list[tuple[str, Any]] = [("", data)]
    while inner:
        key, value = inner.pop()
        if isinstance(value, float) and not isfinite(value):
            yield key[1:], value
        elif isinstance(value, Mapping):
            inner += [(f"{key}.{name}", one) for name, one in value.items()]
        elif isinstance(value, list | tuple | set | frozenset):
            inner += [(f"{key}.{i}", one) for i, one in enumerate(value)]
