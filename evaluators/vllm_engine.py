"""How does vLLM continue prompts? One engine in the worker's process, whose weights are replaced in place."""

from __future__ import annotations

import copy
import gc
import math
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evaluators.engine import Decoding, not_finite
from evaluators.errors import OptionError
from evaluators.evaluator import Setting
from evaluators.vllm_host import VllmOptions, refuse, settled

SHARED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Arguments of transformers' `generate` that mean the same in vLLM's `SamplingParams`."""

HARMLESS = {
    *("do_sample", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "max_length", "max_new_tokens"),
    *("transformers_version", "cache_implementation", "_from_model_config", "return_dict_in_generate"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
}
"""What a `generation_config.json` may say besides: it changes no token, or is asked for in another way here."""


class VllmEngine:
    """vLLM with the weights of the resident model, copied anew at every `load`.

    Memory: one more model on vLLM's device, its KV cache, and while weights are replaced one layer; experts stay in the
    pool. A process has one engine at a time, since vLLM's own state is the process's: see `engine`.
    """

    def __init__(self, name: str, setting: Setting, context: int, options: VllmOptions) -> None:
        """Start the engine; raises `OptionError` where vLLM is not installed, has no device, or cannot do the model."""
        refuse(name, setting.model)
        model: Any = setting.model
        self.model = model
        self.options, self._name = options, name
        self._folder, self.context = setting.folder, options.max_model_len or context
        self._generation = dict(model.generation_config.to_diff_dict())
        self._llm: Any = None
        self._start()

    def _start(self) -> None:
        with settled(), tempfile.TemporaryDirectory() as folder:
            from vllm import LLM

            config = copy.deepcopy(self.model.config)
            config.architectures = [type(self.model).__name__]
            config.save_pretrained(folder)
            memory = self.options.kv_cache_memory_bytes
            try:
                self._llm = LLM(
                    model=folder,
                    tokenizer=str(self._folder),
                    dtype=str(self.model.dtype).removeprefix("torch."),
                    load_format="dummy",  # weights come from the resident model, never from a disk
                    model_impl="vllm",
                    generation_config="vllm",
                    distributed_executor_backend="uni",
                    gpu_memory_utilization=self.options.gpu_memory_utilization,
                    max_model_len=self.context,
                    max_num_seqs=self.options.max_num_seqs,
                    enforce_eager=self.options.enforce_eager,
                    **({} if memory is None else {"kv_cache_memory_bytes": memory}),
                )
            except Exception as error:  # vLLM, and what it compiles with, raise whatever they like while they start
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise OptionError(
                    f"evaluator {self._name!r}: vLLM does not start: {reason}; change the options under `vllm`, or "
                    "leave `backend` out and transformers generates"
                ) from error

    def close(self) -> None:
        """Give the engine's memory back. The next `load` starts it again."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def check(self, how: Decoding) -> None:
        """Raise `OptionError` for an argument of the task, or of the base's generation config, that vLLM has not."""
        said = [(key, "gen_kwargs or the task's generation_kwargs") for key in how.arguments if key != "do_sample"]
        said += [(key, "the base's generation_config.json") for key in self._generation if key not in HARMLESS]
        for key, where in said:
            if key not in SHARED:
                raise OptionError(
                    f"evaluator {how.asker!r}: {where} says {key!r}, for which vLLM has no equal here (it takes "
                    f"{', '.join(SHARED)}); drop it, or leave `backend` out and transformers generates"
                )

    @torch.inference_mode(False)  # what vLLM keeps of this must be ordinary tensors, whoever asks
    @torch.no_grad()
    def load(self, model: Any) -> None:
        """Copy all weights of `model` into the engine, and forget keys and values of the weights before.

        Raises `OptionError` where the engine does not take a tensor, or is left with one that it was not given.
        """
        _alone(self)
        if self._llm is None:
            self._start()
        try:
            with settled():
                missing = self._llm.collective_rpc(_replace, args=(stored(model),))[0]
                self._forget()
            if missing:
                raise ValueError(f"it was given no values for {missing[0]!r} ({len(missing)} tensors in all)")
        except (ValueError, KeyError, RuntimeError, AssertionError) as error:
            self.close()  # half of it is of this model, half of another
            raise OptionError(
                f"vLLM does not take the weights of a {type(model).__name__}: {str(error)[:200]}; leave `backend` "
                "out and transformers generates"
            ) from error

    def _forget(self) -> None:
        """Empty the prefix cache."""
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM keeps keys and values of other weights; it has requests that never ended")

    def generate(self, prompts: Sequence[Sequence[int]], how: Decoding) -> list[list[int]]:
        """All prompts are handed over together; vLLM itself says which are continued side by side."""
        asked = [{"prompt_token_ids": list(tokens)} for tokens in prompts]
        with settled():
            self._forget()  # answers depend on the batch alone, and not on the batches before it
            found = self._llm.generate(asked, [self._params(how, i) for i in range(len(prompts))], use_tqdm=False)
        answers = [one.outputs[0] for one in found]
        # a NaN or plus infinity among logits makes every log-probability of the step NaN
        bad = sum(not math.isfinite(answer.cumulative_logprob) for answer in answers)
        if bad:
            raise not_finite(how.asker, bad, len(prompts))
        return [list(answer.token_ids) for answer in answers]

    def _params(self, how: Decoding, number: int) -> Any:
        from vllm import SamplingParams

        said = {**self._generation, **how.arguments}
        shared = {key: said[key] for key in SHARED if said.get(key) is not None}
        if how.sampled:
            shared.setdefault("top_k", 50)  # transformers' default
            shared["seed"] = how.seed + number
        else:
            shared = {key: value for key, value in shared.items() if key == "repetition_penalty"} | {"temperature": 0.0}
        ends = self._generation.get("eos_token_id")
        return SamplingParams(
            max_tokens=how.longest,
            stop=[text for text in how.until if text],
            stop_token_ids=[ends] if isinstance(ends, int) else list(ends or ()),
            skip_special_tokens=False,  # a stop may be one
            logprobs=0,  # those of the answer's own tokens
            **shared,
        )

    @torch.no_grad()
    def verify(self, name: str, prompts: Sequence[Sequence[int]]) -> None:
        """Raise `OptionError` where the engine's log-probabilities of a first token are not those of the model itself.

        That is asked of the weights as they are now, after the engine was started with others: a mapping that leads
        astray, a head that is scaled otherwise or a graph that keeps old weights is seen before the search.
        """
        self.load(self.model)
        how = Decoding(name, 1, (), False, 0, {})
        tolerance = 1e-2 if torch.finfo(self.model.dtype).eps < 1e-5 else 0.25
        for prompt in prompts:
            with settled():
                found = self._llm.generate([{"prompt_token_ids": list(prompt)}], self._params(how, 0), use_tqdm=False)
            (token,), theirs = found[0].outputs[0].token_ids, found[0].outputs[0].cumulative_logprob
            ids = torch.tensor([list(prompt)], device=self.model.device)
            ours = float(self.model(input_ids=ids).logits[0, -1].float().log_softmax(dim=-1)[token])
            if not abs(ours - theirs) <= tolerance:
                raise OptionError(
                    f"evaluator {name!r}: vLLM computes other numbers than transformers for a "
                    f"{type(self.model).__name__} (log-probability {theirs:.4f} of a token that has {ours:.4f}); leave "
                    "`backend` out and transformers generates"
                )


_live: VllmEngine | None = None
"""The one engine of this process."""


def engine(name: str, setting: Setting, context: int, options: VllmOptions) -> VllmEngine:
    """The engine for the resident model, started where there is none yet: all evaluators of a worker share it.

    `context` is what evaluator `name` needs, in tokens. Raises `OptionError` as `VllmEngine`, and where another
    evaluator of the worker has other options or a shorter context.
    """
    found = _live
    if found is None or found.model is not setting.model:
        _alone(None)
        found = VllmEngine(name, setting, context, options)
        _alone(found)
    if found.options != options:
        raise OptionError(
            f"evaluator {name!r}: a worker has one vLLM engine, and another evaluator's options under `vllm` are "
            f"{found.options.model_dump(exclude_defaults=True)}, these {options.model_dump(exclude_defaults=True)}; "
            "say the same in both"
        )
    if found.context < context:
        raise OptionError(
            f"evaluator {name!r}: it needs a context of {context} tokens, the engine's is {found.context}; say "
            f"max_model_len: {context} under `vllm`, or lower the evaluator's max_length"
        )
    return found


def _alone(mine: VllmEngine | None) -> None:
    """Make an engine the one of this process, and close the one before."""
    global _live
    if _live is not None and _live is not mine:
        _live.close()
    _live = mine


def stored(model: Any) -> dict[str, Tensor]:
    """The model's tensors by the names under which transformers saves them, which are those that vLLM reads.

    Views where that is possible. Tied tensors come under all their names: vLLM may keep a copy for its output layer.
    """
    from transformers.core_model_loading import revert_weight_conversion

    found: Mapping[str, Tensor] = revert_weight_conversion(model, model.state_dict())
    return dict(found)


def _replace(worker: Any, weights: Mapping[str, Tensor]) -> list[str]:
    """In vLLM's worker: put weights in place, layer by layer; returns the parameters that got none.

    The layer-wise path also redoes what vLLM does to weights after loading, and keeps their addresses, which compiled
    graphs hold on to.
    """
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    model = worker.get_model()
    wanted = {name for name, _ in model.named_parameters()}
    with set_current_vllm_config(worker.vllm_config):
        initialize_layerwise_reload(model)
        loaded = model.load_weights(iter(weights.items()))
        finalize_layerwise_reload(model, worker.model_runner.model_config)
    return sorted(wanted - loaded)
