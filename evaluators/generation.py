"""What does the model answer? Batched generation with a KV cache, stopped by the harness's own rules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluators.errors import NonFinite
from evaluators.evaluator import Indices, Splits


@dataclass(frozen=True)
class Prompt:
    """Tokens of a prompt, asked for an item, and the arguments of generation as JSON."""

    row: int
    tokens: tuple[int, ...]
    arguments: str
    repeats: int = 1


class Generations:
    """Texts that the model as it is now continues prompts with.

    Prompts with the same arguments go through the model in fixed batches of similar length, padded on the left; a
    subset runs the whole batches that hold one of its items. Sampling starts anew from `seed` in every batch.
    """

    def __init__(self, prompts: Sequence[Prompt], splits: Splits, lm: Any, size: int, seed: int) -> None:
        self._prompts, self._lm, self._seed = prompts, lm, seed
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].tokens), i))
        rows = np.array([prompt.row for prompt in prompts], dtype=np.int64)
        self._batches: list[list[int]] = []
        for side in splits:
            mine = set(np.flatnonzero(np.isin(rows, side)).tolist())
            for arguments in dict.fromkeys(prompt.arguments for prompt in prompts):
                same = [i for i in order if i in mine and prompts[i].arguments == arguments]
                self._batches += [same[start : start + size] for start in range(0, len(same), size)]

    @torch.inference_mode()
    def run(self, name: str, model: Any, rows: Indices) -> dict[int, list[str]]:
        """By number of the prompt, its answers (one, or as many as it is repeated), for all prompts of these rows.

        Raises `NonFinite` where logits are NaN or infinite.
        """
        asked = set(rows.tolist())
        found: dict[int, list[str]] = {}
        for batch in self._batches:
            if any(self._prompts[i].row in asked for i in batch):
                found.update(self._generate(name, model, batch))
        return found

    def _generate(self, name: str, model: Any, batch: Sequence[int]) -> dict[int, list[str]]:
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

        lm = self._lm
        kwargs: dict[str, Any] = dict(
            normalize_gen_kwargs(json.loads(self._prompts[batch[0]].arguments), lm.max_gen_toks)
        )
        until = handle_stop_sequences(
            kwargs.pop("until", None), eos=lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
        )
        longest = int(kwargs.pop("max_gen_toks"))
        sampled = bool(kwargs.get("do_sample"))
        # the same prompt sampled again is another row; decoded greedily it would be the same text
        numbers = [i for i in batch for _ in range(self._prompts[i].repeats if sampled else 1)]
        ids, mask = self._pad(numbers, lm.max_length - longest)
        kwargs.setdefault("max_length", ids.shape[1] + longest)
        devices = [lm.device] if sampled and lm.device.type == "cuda" else []
        lm._model = model
        with torch.random.fork_rng(devices=devices, enabled=sampled):
            if sampled:
                torch.manual_seed(self._seed)
            out = lm._model_generate(
                context=ids, attention_mask=mask, stop=until, logits_processor=[Finite(name, len(batch))], **kwargs
            )
        texts: dict[int, list[str]] = {}
        for number, tokens in zip(numbers, out[:, ids.shape[1] :].tolist(), strict=True):
            texts.setdefault(number, []).append(self._text(tokens, until))
        return {i: said if sampled else said * self._prompts[i].repeats for i, said in texts.items()}

    def _text(self, tokens: list[int], until: list[str]) -> str:
        from lm_eval.models.utils import postprocess_generated_text

        return str(postprocess_generated_text(generation=self._lm.tok_decode(tokens), stop=until, think_end_token=None))

    def _pad(self, numbers: Sequence[int], most: int) -> tuple[Tensor, Tensor]:
        """Tokens and mask `(b, t)`, padded on the left; a prompt of more than `most` tokens is cut from the left."""
        kept = [self._prompts[i].tokens[-most:] for i in numbers]
        length = max(map(len, kept))
        ids = torch.full((len(kept), length), int(self._lm.tokenizer.pad_token_id), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(kept):
            ids[row, length - len(tokens) :] = torch.tensor(tokens)
            mask[row, length - len(tokens) :] = 1
        return ids.to(self._lm.device), mask.to(self._lm.device)


class Finite:
    """A logits processor that changes nothing, and raises `NonFinite` where a step's logits are no numbers."""

    def __init__(self, name: str, count: int) -> None:
        self._name, self._count = name, count

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # minus infinity is how a token is ruled out; a row of nothing else, NaN or plus infinity is none's intention
        bad = (scores.isnan() | (scores == torch.inf)).any(dim=-1) | (scores == -torch.inf).all(dim=-1)
        if bool(bad.any()):
            raise NonFinite(
                f"evaluator {self._name!r}: the logits of {int(bad.sum())} of {self._count} prompts are NaN or "
                "infinite; the candidate has failed"
            )
        return scores
