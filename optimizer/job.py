"""What does the user want? The job file, validated once at the door; unknown keys are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent

from optimizer.errors import JobError
from optimizer.job_space import Name, Space, Strict

MAX_BYTES = 1_000_000


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

    `gradients` is for drivers that ask for them.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "cma"
    anchors: bool = True
    preferences: list[list[float]] | None = None
    gradients: Gradients = Field(default_factory=lambda: Gradients())

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Budget(Strict):
    """How much may be spent."""

    evaluations: int = Field(200, ge=1, le=1_000_000)


class ExecutorEntry(Strict):
    """Where candidates are scored. `threads` is each worker's; `timeout` is for one candidate, in seconds.

    `device` is one device, `auto`, or module -> device for a model that lies on several; `pool` says whether base and
    experts are copied to an accelerator or streamed there, auto by the memory that is free.
    """

    kind: Literal["inline", "ray"] = "ray"
    workers: int = Field(2, ge=1, le=4096)
    cpus: float = Field(1.0, gt=0)
    gpus: float = Field(0.0, ge=0)
    threads: int = Field(1, ge=1)
    device: str | Annotated[dict[str, int | str], Field(min_length=1)] = "cpu"
    pool: Literal["auto", "device", "stream"] = "auto"
    timeout: float | None = Field(None, gt=0)
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
    """One search. Relative paths start from `root`, which is the job file's own folder unless it says otherwise."""

    name: Name = "run"
    models: Models
    space: Space = Field(default_factory=lambda: Space())
    evaluators: list[EvaluatorEntry] = Field(min_length=1)
    objectives: list[str] = Field(min_length=1)
    driver: DriverEntry = Field(default_factory=lambda: DriverEntry())
    budget: Budget = Field(default_factory=lambda: Budget())
    executor: ExecutorEntry = Field(default_factory=lambda: ExecutorEntry())
    seed: int = Field(0, ge=0)
    root: str | None = None
    hashes: Hashes | None = None

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
                f"{source}: expected a mapping of keys such as models, space and evaluators, got {_kind(data)}"
            )
        try:
            return cls.model_validate({**data, "root": str(root / str(data.get("root", ".")))})
        except ValidationError as error:
            raise JobError(_explain(source, error)) from error

    def path(self, text: str) -> Path:
        """A path of the job file, absolute."""
        return Path(self.root or ".") / Path(text).expanduser()

    def yaml(self) -> str:
        """The job as YAML, read back by `load` to an equal job."""
        from io import StringIO

        out = StringIO()
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.dump(json.loads(self.model_dump_json()), out)
        return out.getvalue()


def read_yaml(path: Path) -> Any:
    """YAML 1.2 values (`1e-3` is a number, `no` a string). Aliases, duplicate keys and files over 1 MB are refused."""
    try:
        text = path.read_bytes()
        if len(text) > MAX_BYTES:
            raise JobError(f"{path}: {len(text)} bytes; a job file has at most {MAX_BYTES}")
        decoded = text.decode()
        for event in YAML(typ="safe", pure=True).parse(decoded):
            if isinstance(event, AliasEvent):
                raise JobError(f"{path}: YAML aliases (*{event.anchor}) are refused; write the values out")
        return YAML(typ="safe", pure=True).load(decoded)
    except YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise JobError(f"{path}{line}: not valid YAML: {problem}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: cannot be read: {error}") from error


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"[:80]


def _explain(source: str, error: ValidationError) -> str:
    """Pydantic's findings, one a line: key, rule, what arrived."""
    lines = []
    for e in error.errors(include_url=False):
        # the names of an option's forms are pydantic's way, and no keys of the job
        where = ".".join(str(p) for p in e["loc"] if str(p)[:1] != "(") or "job"
        if e["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown key; remove it, or see docs/job.md for the keys there are")
        elif e["type"] == "missing":
            lines.append(f"{where}: required, and missing")
        elif e["type"] == "string_pattern_mismatch":
            lines.append(f"{where}: expected letters, digits, '.', '_' or '-' (at most 64), got {_kind(e['input'])}")
        else:
            lines.append(f"{where}: {e['msg'].removeprefix('Value error, ')}, got {_kind(e['input'])}")
    return f"{source}:\n  " + "\n  ".join(lines) if len(lines) > 1 else f"{source}: {lines[0]}"
