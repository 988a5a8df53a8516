"""Who continues prompts? An engine takes a model's weights as they are now; transformers' is the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from evaluators.errors import NonFinite


@dataclass(frozen=True)
class Decoding:
    """How prompts that go together are continued."""

    asker: str  # the evaluator, for errors
    longest: int  # tokens of an answer, at most
    until: tuple[str, ...]  # an answer ends once it has one of these; an empty one is none
    sampled: bool
    seed: int  # of sampling
    arguments: Mapping[str, Any]  # what else the task says, as `generate` of transformers takes it


class Engine(Protocol):
    """Continues prompts with one model, whose weights change in place between candidates.

    The same weights and the same call give the same tokens. Greedy answers of two engines are the same wherever no two
    tokens are as likely to within rounding.
    """

    def check(self, how: Decoding) -> None:
        """Raise `OptionError` where the engine has no equal of an argument. Once, before anything is generated."""
        ...

    def load(self, model: Any) -> None:
        """Continue with the weights of `model` as they are now: the resident model, or another of its architecture."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], how: Decoding) -> list[list[int]]:
        """The tokens that follow each prompt (at least one token each), at most `how.longest`.

        What follows a stop, if anything, is for the caller to cut. Sampled, the same prompt twice is answered twice.
        Raises `NonFinite` where logits are NaN or infinite.
        """
        ...


class TransformersEngine:
    """`generate` of transformers as the harness calls it, on the resident model itself: nothing is copied."""

    def __init__(self, lm: Any) -> None:
        self._lm = lm

    def check(self, how: Decoding) -> None:
        """Arguments are transformers' own, which says so itself where one is none of its."""

    def load(self, model: Any) -> None:
        self._lm._model = model

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], how: Decoding) -> list[list[int]]:
        """Padded on the left, in one batch."""
        ids, mask = self._pad(prompts)
        kwargs = {"max_length": ids.shape[1] + how.longest, **how.arguments}
        devices = [self._lm.device] if how.sampled and self._lm.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=how.sampled):
            if how.sampled:
                torch.manual_seed(how.seed)
            out = self._lm._model_generate(
                context=ids,
                attention_mask=mask,
                stop=list(how.until),
                logits_processor=[Finite(how.asker, len(prompts))],
                **kwargs,
            )
        found: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return found

    def _pad(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Tokens and mask `(b, t)`, padded on the left."""
        length = max(map(len, prompts))
        ids = torch.full((len(prompts), length), int(self._lm.tokenizer.pad_token_id), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(prompts):
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
            raise not_finite(self._name, int(bad.sum()), self._count)
        return scores


def not_finite(name: str, bad: int, count: int) -> NonFinite:
    """The failure of a candidate that answers `bad` of `count` prompts from logits that are no numbers."""
    return NonFinite(
        f"evaluator {name!r}: the logits of {bad} of {count} prompts are NaN or infinite; the candidate has failed"
    )
