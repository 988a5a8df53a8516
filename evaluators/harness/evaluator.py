"""How well does a merged model do a task of lm-evaluation-harness? The harness's own numbers, at forward speed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch

from evaluators import texts
from evaluators.causal import check_causal
from evaluators.engine import Engine, TransformersEngine
from evaluators.errors import OptionError
from evaluators.evaluator import Indices, Scores, Setting
from evaluators.generation import Generations, Prompt
from evaluators.harness import documents, process, tasks
from evaluators.harness.documents import Wish
from evaluators.harness.guard import templates
from evaluators.harness.options import HarnessOptions
from evaluators.harness.own_documents import replacement
from evaluators.harness.requests import GENERATE, Prompting, Request, requests
from evaluators.harness.scores import Scoring, offered
from evaluators.likelihood import Likelihoods, Pair, finite
from evaluators.options import Files, parse
from evaluators.vllm_engine import engine as vllm_engine
from evaluators.vllm_host import VllmOptions, refuse

PROBE = 64
"""Tokens at most of a prompt on which vLLM is compared with transformers."""


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
        found = tasks.find(asked.task, root)
        overrides, tables = replacement(asked.data, root)
        self._seeds = (asked.seeds.random, asked.seeds.numpy, asked.seeds.torch)
        with process.quiet(), process.seeded(self._seeds):
            self._loaded = tasks.load(found, overrides, f"evaluator {name!r}")
            effective = self._configure()
            self._check_backend()
            wish = Wish(
                *(asked.calibration, asked.seed, asked.limit, asked.calibration_split, asked.heldout_split),
                *(asked.allow_test, asked.data is not None, isinstance(asked.data, Files)),
            )
            chosen = documents.choose(name, self._loaded, wish)
        self._items, self._parts, self.provenance = (
            chosen.items,
            chosen.parts,
            (*chosen.provenance, *effective),
        )
        self.splits = self._items.splits
        self.files = tuple(dict.fromkeys([*found.files, *(file for table in tables for file in table.files)]))
        named = offered(name, self._loaded)
        self.metrics = tuple(one.metric for one in named)
        self._scoring = Scoring(name, self._loaded, named, asked.bootstrap_iters)

    @cached_property
    def contents(self) -> Mapping[str, str]:
        """sha256 of each task's documents: a data set of the hub may change where no file of the user's does."""
        found = documents.contents(self._loaded, self._parts)
        return {f"documents of {task}": digest for task, digest in found.items()}

    @staticmethod
    def code(name: str, options: Mapping[str, Any], root: Path) -> tuple[str, ...]:
        """The Python that making an evaluator with these options runs, and that is not the harness's own."""
        asked = parse(HarnessOptions, name, options)
        return tasks.find(asked.task, root).code

    def _sandbox(self) -> AbstractContextManager[None]:
        """While this is open, templates of a file of the user's are rendered in a sandbox."""
        return templates(self._loaded.sandboxed)

    def _configure(self) -> list[str]:
        """What `simple_evaluate` changes in tasks before it runs them: arguments of generation, number of examples.

        Returns what of the options does not hold for which task; raises `OptionError` where it holds for none.
        """
        asked, tasks = self._options, self._loaded.tasks
        writing = [task for task in tasks.values() if task.get_config("output_type") == GENERATE]
        if asked.gen_kwargs and not writing:
            raise OptionError(f"evaluator {self.name!r}: {asked.task} generates no text; drop the option 'gen_kwargs'")
        for task in writing:
            if asked.gen_kwargs:
                task.set_config(key="generation_kwargs", value=dict(asked.gen_kwargs), update=True)
        fixed = [name for name, task in tasks.items() if task.get_config("num_fewshot") == 0]  # it wants none
        if asked.num_fewshot and len(fixed) == len(tasks):
            raise OptionError(
                f"evaluator {self.name!r}: option 'num_fewshot': {asked.task} says 0, and the harness keeps to that; "
                "drop the option"
            )
        for name, task in tasks.items():
            if name not in fixed and (asked.num_fewshot is not None or task.get_config("num_fewshot") is None):
                task.set_config(key="num_fewshot", value=asked.num_fewshot or 0)
        return [f"{name}: no examples, as the task says" for name in fixed] if asked.num_fewshot else []

    def _check_backend(self) -> None:
        """Raise `OptionError` where options of vLLM have nothing to say."""
        if self._options.backend != "vllm":
            if self._options.vllm is not None:
                raise OptionError(
                    f"evaluator {self.name!r}: `vllm` has options and backend is not vllm; add backend: vllm"
                )
        elif not any(task.get_config("output_type") == GENERATE for task in self._loaded.tasks.values()):
            raise OptionError(
                f"evaluator {self.name!r}: backend: vllm generates text, and task {self._options.task} asks for "
                "likelihoods alone, which transformers computes; leave `backend` out"
            )

    def prepare(self, setting: Setting) -> None:
        """Make prompts and tokens, or take them from the disk, and batches of them.

        Raises `OptionError` where model or tokenizer cannot do the task, `DataError` for a document that cannot be
        asked.
        """
        what = f"task {self._options.task}"
        check_causal(self.name, setting.model, what)
        if self._options.backend == "vllm":
            refuse(self.name, setting.model)  # before prompts are made, which may take minutes
        size = setting.size(self._options.batch_size)
        with process.quiet():
            lm = self._language_model(setting, size)
        asked = self._options
        how = Prompting(
            *(asked.system_instruction, asked.apply_chat_template, asked.fewshot_as_multiturn, asked.seeds.fewshot),
            *(self._seeds, asked.truncate),
        )
        with process.quiet(), process.seeded(self._seeds), self._sandbox():
            made = [requests(self.name, part, lm, setting.folder, how, self.files) for part in self._parts]
        self._number(made)
        self._likelihoods = None
        if self._pairs:
            dtype = torch.float32 if asked.softmax_dtype else None
            self._likelihoods = Likelihoods(
                self._pairs, self.splits, setting.model, setting.device, lm.max_length, size, dtype
            )
        engine, most = self._engine(setting, lm, size)
        self._generations = Generations(self.name, self._prompts, self.splits, lm, engine, most, asked.seeds.torch)

    def _engine(self, setting: Setting, lm: Any, size: int) -> tuple[Engine, int]:
        """What generates, and how many prompts it is given together."""
        if self._options.backend == "transformers":
            return TransformersEngine(lm), size
        options = self._options.vllm or VllmOptions()
        found = vllm_engine(self.name, setting, lm.max_length, options)
        found.verify(self.name, [prompt.tokens[-PROBE:] for prompt in self._prompts[:4]])
        return found, self._options.batch_size or options.max_num_seqs

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

    def sequences(self) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
        """What log-likelihoods cost: the model's arguments batch by batch, and the positions that its head reads."""
        return iter(()) if self._likelihoods is None else self._likelihoods.sequences()

    def answers(self, row: int) -> list[tuple[Request, list[Any]]]:
        """What the model is asked for a row of the splits, and what it said when it was last scored (nothing before):
        texts, log-likelihoods in nats, or these with whether greedy decoding would have given the same."""
        return [(request, list(instance.resps)) for instance, request, _ in self._asked[row]]

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
        with process.quiet(), self._sandbox():
            measures, per_item = self._scoring.measures(documents, items)
        return Scores(measures, per_item)

    def _answer(self, model: Any, rows: Indices) -> None:
        """Give every request of these rows the model's response, as the harness gives it."""
        likelihood, greedy = np.empty(0), np.empty(0, dtype=np.bool_)
        if self._likelihoods is not None:
            likelihood, greedy = self._likelihoods.run(model, rows)
            asked = np.isin(self._pair_rows, rows)
            finite(self.name, likelihood[asked], self._pair_rows[asked])
        texts_of = self._generations.run(model, rows)
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
