"""What does the user want? The job file, validated once at the door; unknown keys are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from io import StringIO
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML

from evaluators.options import expanded
from optimizer.conditions import Condition, consistent, normal
from optimizer.errors import JobError
from optimizer.jobs.job_means import Budget, ExecutorEntry
from optimizer.jobs.job_search import DriverEntry, Fidelity
from optimizer.jobs.job_space import Name, Space, Strict
from optimizer.jobs.plain_yaml import read_yaml
from optimizer.jobs.telling import explained, kind
from optimizer.wording import in_line, server_url

if TYPE_CHECKING:
    import torch


class Models(Strict):
    """The base, and the experts fine-tuned from it."""

    base: str
    """A folder in Hugging Face layout, or `org/name@revision` on the hub."""
    experts: dict[Name, str] = Field(min_length=1)
    """Name (not `base`): folder (or hub id with its revision); a folder may hold a LoRA: docs/adapters.md"""
    heads: list[str] = Field(default_factory=list)
    """Patterns of tensors that belong to one expert's task (`classifier.*`): kept for it, never merged."""
    exclude: list[str] = Field(default_factory=list)
    """Patterns of tensors taken from the base as they are."""
    vocabulary: Literal["base", "union"] | None = None
    """For experts with added tokens: `base` leaves them out, `union` keeps their rows: docs/architectures.md

    Default: refused.
    """
    sources: dict[str, str] = Field(default_factory=dict)
    """Token: the expert, or `base`, whose row it has whatever the coefficients."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Materialise, score and export in this dtype. Default: the base's."""

    @property
    def resident_dtype(self) -> torch.dtype | None:
        """What a worker's model is in; None for the checkpoint's own."""
        import torch

        found: torch.dtype | None = getattr(torch, self.dtype) if self.dtype else None
        return found


class EvaluatorEntry(BaseModel):
    """One evaluator. What is beside `kind` and `name` are its own options, checked by itself."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    kind: str
    """Which evaluator it is: `classification`, `language`, `harness`, `function`, or another package's."""
    name: Name
    """What it is called where its metrics are: `NAME.metric`."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Hashes(Strict):
    """Content hashes (sha256) of every model, data file and data set, recorded when a run is made."""

    models: dict[str, str]
    data: dict[str, str]


class Job(Strict):
    """One search. Relative paths start from the job file's folder, or from `root`."""

    name: Name = "run"
    """The run's folder under `runs/`; letters, digits, `.`, `_`, `-`"""
    models: Models
    """The base, and the experts fine-tuned from it."""
    space: Space = Field(default_factory=lambda: Space())
    """What is searched: the merge method or methods, their options, and the coefficients that share a group."""
    evaluators: list[EvaluatorEntry] = Field(min_length=1)
    """A list; `kind` and `name`, then the kind's own options: docs/job.md#items-of-every-evaluator"""
    objectives: list[str] = Field(min_length=1, max_length=31)
    """`NAME.metric`, one or several, at most 31; the metric knows whether more or less is better."""
    constraints: list[Annotated[str, AfterValidator(normal)]] = Field(default_factory=list)
    """Conditions that a candidate has to meet: `["safety.accuracy >= 0.95"]`; any metric of any evaluator:
    docs/job.md#constraints"""
    driver: DriverEntry = Field(default_factory=lambda: DriverEntry())
    """What proposes candidates, and its own options."""
    fidelity: Fidelity | None = None
    """How candidates are scored on few items before they are worth all: docs/fidelity.md"""
    budget: Budget = Field(default_factory=lambda: Budget())
    """How much may be spent: what is reached first ends the search."""
    executor: ExecutorEntry = Field(default_factory=lambda: ExecutorEntry())
    """Where candidates are scored."""
    ledger: Annotated[str, AfterValidator(server_url)] | None = None
    """`postgresql://USER@HOST/DATABASE`: the run's record lies on that server: docs/ledger.md Default: a file."""
    seed: int = Field(0, ge=0)
    """Of the driver, and of methods that draw."""
    root: str | None = None
    """Where relative paths start. Default: the job file's folder."""
    hashes: Hashes | None = None
    """Written by a run, not by you: what its inputs were when it was made."""

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
            raise JobError(
                f"{source}: {in_line(key)}: expected a finite number, got {value}; leave it out for no limit"
            )
        return made

    def path(self, text: str) -> Path:
        """A path of the job file, absolute."""
        return Path(self.root or ".") / expanded(text)

    def yaml(self, brief: bool = False) -> str:
        """The job as YAML, read back by `load` to an equal job.

        `brief`: only what is not as it would be anyway, as a person writes it; without the hashes of its files.
        """
        out = StringIO()
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.dump(json.loads(self.model_dump_json(exclude_defaults=brief, exclude={"hashes"} if brief else None)), out)
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
