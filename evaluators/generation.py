"""What does the model answer? Prompts in fixed batches through an engine, stopped by the harness's own rules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evaluators.engine import Decoding, Engine
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

    Prompts with the same arguments go through the engine in fixed batches of similar length; a subset runs the whole
    batches that hold one of its items. Sampling starts anew from `seed` in every batch. Raises `OptionError` where the
    engine has no equal of an argument.
    """

    def __init__(
        self, name: str, prompts: Sequence[Prompt], splits: Splits, lm: Any, engine: Engine, size: int, seed: int
    ) -> None:
        self._name, self._prompts, self._lm, self._engine = name, prompts, lm, engine
        self._size, self._seed = size, seed
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].tokens), i))
        rows = np.array([prompt.row for prompt in prompts], dtype=np.int64)
        self._decodings = {said: self._decoding(said) for said in dict.fromkeys(p.arguments for p in prompts)}
        for how in self._decodings.values():
            engine.check(how)
        self._batches: list[list[int]] = []
        for side in splits:
            mine = set(np.flatnonzero(np.isin(rows, side)).tolist())
            for arguments in self._decodings:
                same = [i for i in order if i in mine and prompts[i].arguments == arguments]
                self._batches += [same[start : start + size] for start in range(0, len(same), size)]

    def run(self, model: Any, rows: Indices) -> dict[int, list[str]]:
        """By number of the prompt, its answers (one, or as many as it is repeated), for all prompts of these rows.

        Raises `NonFinite` where logits are NaN or infinite.
        """
        asked = set(rows.tolist())
        found: dict[int, list[str]] = {}
        wanted = [batch for batch in self._batches if any(self._prompts[i].row in asked for i in batch)]
        if wanted:
            self._engine.load(model)
        for batch in wanted:
            found.update(self._generate(batch))
        return found

    def _decoding(self, arguments: str) -> Decoding:
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

        lm = self._lm
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(json.loads(arguments), lm.max_gen_toks))
        until = handle_stop_sequences(
            kwargs.pop("until", None), eos=lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
        )
        longest = int(kwargs.pop("max_gen_toks"))
        sampled = bool(kwargs.get("do_sample"))
        return Decoding(self._name, longest, tuple(until), sampled, self._seed, kwargs)

    def _generate(self, batch: Sequence[int]) -> dict[int, list[str]]:
        how = self._decodings[self._prompts[batch[0]].arguments]
        # the same prompt sampled again is another row; decoded greedily it would be the same text
        numbers = [i for i in batch for _ in range(self._prompts[i].repeats if how.sampled else 1)]
        most = self._lm.max_length - how.longest  # a longer prompt is cut from the left
        answers: list[list[int]] = []
        for at in range(0, len(numbers), self._size):  # repeats are rows too, and memory is for so many
            part = [self._prompts[i].tokens[-most:] for i in numbers[at : at + self._size]]
            answers += self._engine.generate(part, replace(how, seed=how.seed + at))
        texts: dict[int, list[str]] = {}
        for number, tokens in zip(numbers, answers, strict=True):
            texts.setdefault(number, []).append(self._text(tokens, how.until))
        return {i: said if how.sampled else said * self._prompts[i].repeats for i, said in texts.items()}

    def _text(self, tokens: list[int], until: Sequence[str]) -> str:
        from lm_eval.models.utils import postprocess_generated_text

        stop = list(until)
        return str(postprocess_generated_text(generation=self._lm.tok_decode(tokens), stop=stop, think_end_token=None))
