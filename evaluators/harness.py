"""How well does a merged model do a task of lm-evaluation-harness? The harness's own numbers, at forward speed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from evaluators import harness_items, harness_tasks, texts
from evaluators.causal import check_causal
from evaluators.errors import OptionError
from evaluators.evaluator import Indices, Scores, Setting
from evaluators.generation import Generations, Prompt
from evaluators.harness_guard import templates
from evaluators.harness_items import SplitName, Wish
from evaluators.harness_requests import GENERATE, Prompting, Request, requests
from evaluators.harness_scores import Scoring, offered
from evaluators.items import Table, read
from evaluators.likelihood import Likelihoods, Pair, finite
from evaluators.options import Count, Files, Share, parse


class Seeds(BaseModel):
    """The seeds of the harness, with its defaults."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    random: int = 0
    numpy: int = 1234
    torch: int = 1234
    fewshot: int = 1234


class HarnessOptions(BaseModel):
    """Options of kind `harness`. Those that `simple_evaluate` has too mean what they mean there."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    task: Annotated[str, Field(min_length=1)]
    """A task, group or tag of the harness by name; or `path/to/task.yaml`, a folder with one task, or `folder/NAME`."""
    data: str | Files | None = None
    """Documents of the user's own for the task's prompts, instead of its data set: a file, or one per split."""
    calibration: Share | Count | None = None
    """Calibration's share or count of the documents, drawn by content hash. Default: half of a split that is shared,
    all of one that is not."""
    seed: int = 0
    """Which documents those are."""
    limit: Share | Count | None = None
    """At most so many documents of each split of each task (below 1: a share), the first, as in the harness."""
    calibration_split: SplitName | None = None
    """Default: validation, else train, where the harness does not report on it; the user's own files are one split."""
    heldout_split: SplitName | None = None
    """Default: what the harness reports on."""
    allow_test: bool = False
    """Let the search see documents that the harness reports on."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = True
    gen_kwargs: dict[str, Any] = {}
    seeds: Seeds = Seeds()
    bootstrap_iters: Annotated[int, Field(ge=0)] = 100_000
    """Resamples of standard errors that have no formula; 0: none, and no standard error of any metric."""
    truncate: bool = False
    """Cut prompts that are longer than the model's context from the left, as the harness does, and not refuse them."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    add_bos_token: bool | None = None
    softmax_dtype: Literal["float32"] | None = None
    """Log-probabilities in float32 where the model's are bfloat16 or float16."""
    batch_size: Count | None = None
    """Contexts that go through the model together. Default: the worker's."""


class Harness:
    """A task or group of lm-evaluation-harness, for the resident causal language model.

    Prompts and tokens are made once; a candidate costs batched forwards, and the task's own filters, `process_results`
    and aggregation. Metrics are the task's, with the harness's standard errors where it has them.
    """

    runs_code: ClassVar[bool] = False  # a task file that does is told by `code`
    Options: ClassVar[type[HarnessOptions]] = HarnessOptions
    losses: ClassVar[Mapping[str, str]] = {}

    def __init__(self, name: str, options: HarnessOptions | Mapping[str, Any], root: Path) -> None:
        self.name = name
        self._options = asked = parse(HarnessOptions, name, options)
        found = harness_tasks.find(asked.task, root)
        overrides, tables = _own(asked, root)
        self._seeds = (asked.seeds.random, asked.seeds.numpy, asked.seeds.torch)
        with harness_tasks.quiet(), harness_tasks.seeded(self._seeds):
            self._loaded = harness_tasks.load(found, overrides, f"evaluator {name!r}")
            self._configure()
            wish = Wish(
                *(asked.calibration, asked.seed, asked.limit, asked.calibration_split, asked.heldout_split),
                *(asked.allow_test, asked.data is not None, isinstance(asked.data, Files)),
            )
            documents = harness_items.choose(name, self._loaded, wish)
        self._items, self._parts, self.provenance = documents.items, documents.parts, documents.provenance
        self.splits = self._items.splits
        self.files = tuple(dict.fromkeys([*found.files, *(file for table in tables for file in table.files)]))
        named = offered(name, self._loaded)
        self.metrics = tuple(one.metric for one in named)
        self._scoring = Scoring(name, self._loaded, named, asked.bootstrap_iters)

    @cached_property
    def contents(self) -> Mapping[str, str]:
        """sha256 of each task's documents: a data set of the hub may change where no file of the user's does."""
        found = harness_items.contents(self._loaded, self._parts)
        return {f"documents of {task}": digest for task, digest in found.items()}

    @staticmethod
    def code(options: Mapping[str, Any], root: Path) -> tuple[str, ...]:
        """The Python that making an evaluator with these options runs, and that is not the harness's own."""
        asked = parse(HarnessOptions, "harness", options)
        return harness_tasks.find(asked.task, root).code

    def _sandbox(self) -> AbstractContextManager[None]:
        """While this is open, templates of a file of the user's are rendered in a sandbox."""
        return templates(self._loaded.sandboxed)

    def _configure(self) -> None:
        """What `simple_evaluate` changes in tasks before it runs them: arguments of generation, number of examples."""
        for task in self._loaded.tasks.values():
            if task.get_config("output_type") == GENERATE and self._options.gen_kwargs:
                task.set_config(key="generation_kwargs", value=dict(self._options.gen_kwargs), update=True)
            usual = task.get_config("num_fewshot")
            if self._options.num_fewshot is not None and usual != 0:  # a task that says 0 wants none, as in the harness
                task.set_config(key="num_fewshot", value=self._options.num_fewshot)
            elif usual is None:
                task.set_config(key="num_fewshot", value=0)

    def prepare(self, setting: Setting) -> None:
        """Make prompts and tokens, or take them from the disk, and batches of them.

        Raises `OptionError` where model or tokenizer cannot do the task, `DataError` for a document that cannot be
        asked.
        """
        what = f"task {self._options.task}"
        check_causal(self.name, setting.model, what)
        size = self._options.batch_size or setting.batch_size
        with harness_tasks.quiet():
            lm = self._language_model(setting, size)
        asked = self._options
        how = Prompting(
            *(asked.system_instruction, asked.apply_chat_template, asked.fewshot_as_multiturn, asked.seeds.fewshot),
            asked.truncate,
        )
        with harness_tasks.quiet(), harness_tasks.seeded(self._seeds), self._sandbox():
            made = [requests(self.name, part, lm, setting.folder, how) for part in self._parts]
        self._number(made)
        self._likelihoods = None
        if self._pairs:
            dtype = torch.float32 if asked.softmax_dtype else None
            self._likelihoods = Likelihoods(
                self._pairs, self.splits, setting.model, setting.device, lm.max_length, size, dtype
            )
        self._generations = Generations(self._prompts, self.splits, lm, size, asked.seeds.torch)

    def _language_model(self, setting: Setting, size: int) -> Any:
        """The harness's own model class over the base's tokenizer: it makes tokens and decides on stops.

        It gets no model before there is something to generate: it would tie the resident model's weights anew.
        """
        from lm_eval.models.huggingface import HFLM

        tokenizer = texts.load_tokenizer(setting.folder)
        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise OptionError(
                f"evaluator {self.name!r}: the harness needs a tokenizer with a beginning- or end-of-sequence token, "
                f"that in {setting.folder} has neither; set eos_token in its tokenizer_config.json"
            )
        if self._options.apply_chat_template and not getattr(tokenizer, "chat_template", None):
            raise OptionError(
                f"evaluator {self.name!r}: apply_chat_template: the tokenizer in {setting.folder} has no chat "
                "template; drop the option, or save one with the base"
            )
        bare = SimpleNamespace(config=setting.model.config, device=setting.device)
        return HFLM(
            pretrained=bare,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=size,
            max_length=self._options.max_length,
            add_bos_token=self._options.add_bos_token,
        )

    def _number(self, made: list[list[Request]]) -> None:
        """Number what the model is asked: `_asked` has each row's requests, as numbers of pairs or of a prompt."""
        from lm_eval.api.instance import Instance

        self._pairs: list[Pair] = []
        self._prompts: list[Prompt] = []
        self._asked: dict[int, list[tuple[Any, Request, range]]] = {}
        for part, found in zip(self._parts, made, strict=True):
            for request in found:
                row = part.start + request.row
                if request.kind == GENERATE:
                    numbers = range(len(self._prompts), len(self._prompts) + 1)
                    self._prompts.append(Prompt(row, request.pairs[0][0], request.arguments, request.repeats))
                else:
                    numbers = range(len(self._pairs), len(self._pairs) + len(request.pairs))
                    self._pairs += [Pair(row, *pair) for pair in request.pairs]
                instance = Instance(
                    request_type=request.kind,
                    doc=part.docs[request.row],
                    arguments=(),
                    idx=request.place,
                    metadata=(part.task, request.row, request.repeats),
                )
                self._asked.setdefault(row, []).append((instance, request, numbers))
        self._pair_rows = np.array([pair.row for pair in self._pairs], dtype=np.int64)

    @torch.inference_mode()
    def score(self, model: Any, items: Indices) -> Scores:
        """The task's metrics on these rows; raises `NonFinite` where a logit or a metric is not finite."""
        self._items.check(self.name, items)
        model.eval()
        rows = np.unique(items)
        self._answer(model, rows)
        documents: dict[str, list[tuple[int, Any, Any, list[Any]]]] = {name: [] for name in self._loaded.tasks}
        for part in self._parts:
            for row in rows[(rows >= part.start) & (rows < part.start + len(part.docs))].tolist():
                instances = [instance for instance, *_ in self._asked[row]]
                documents[part.task].append((row, part.view, part.docs[row - part.start], instances))
        absent = [name for name, answered in documents.items() if not answered]
        if absent:
            raise OptionError(
                f"evaluator {self.name!r}: asked for no document of task {absent[0]!r}; ask for one of each at least"
            )
        with harness_tasks.quiet(), self._sandbox():
            measures, per_item = self._scoring.measures(documents, items)
        return Scores(measures, per_item)

    def _answer(self, model: Any, rows: Indices) -> None:
        """Give every request of these rows the model's response, as the harness gives it."""
        likelihood, greedy = np.empty(0), np.empty(0, dtype=np.bool_)
        if self._likelihoods is not None:
            likelihood, greedy = self._likelihoods.run(model, rows)
            asked = np.isin(self._pair_rows, rows)
            finite(self.name, likelihood[asked], self._pair_rows[asked])
        texts_of = self._generations.run(self.name, model, rows)
        for row in rows.tolist():
            for instance, request, numbers in self._asked[row]:
                if request.kind == GENERATE:
                    instance.resps = list(texts_of[numbers.start])
                elif request.kind == "loglikelihood":
                    one = (float(likelihood[numbers.start]), bool(greedy[numbers.start]))
                    instance.resps = [one] * request.repeats
                else:
                    instance.resps = [sum(likelihood[list(numbers)].tolist())] * request.repeats
                instance.filtered_resps = {}


def _own(options: HarnessOptions, root: Path) -> tuple[dict[str, Any], list[Table]]:
    """What replaces a task's data set by the user's documents, and these."""
    if options.data is None:
        return {}, []
    import datasets

    if isinstance(options.data, Files):
        sides = {"validation": read(options.data.calibration, root), "test": read(options.data.heldout, root)}
    else:
        sides = {"test": read(options.data, root)}
    made = {name: datasets.Dataset.from_list(table.rows) for name, table in sides.items()}
    overrides: dict[str, Any] = {
        "custom_dataset": lambda **_: made,
        "dataset_kwargs": None,
        "training_split": None,
        "validation_split": "validation" if "validation" in made else None,
        "test_split": "test",
        "fewshot_split": "validation" if "validation" in made else "test",
    }
    return overrides, list(sides.values())
