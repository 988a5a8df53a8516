"""Are log-likelihoods those of one sequence for each continuation, whatever the architecture's attention?"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from evaluators import likelihood
from evaluators.evaluator import Splits
from evaluators.likelihood import Likelihoods, Pair, reach

WINDOW = 16
SIZE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.5,
    "pad_token_id": 0,
}
HEADS = {**SIZE, "head_dim": 8}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}

WINDOWED: dict[str, Callable[[], Any]] = {
    "mistral": lambda: hf.MistralConfig(**SIZE, sliding_window=WINDOW),
    "phi3": lambda: hf.Phi3Config(**SIZE, sliding_window=WINDOW),
    "qwen2": lambda: hf.Qwen2Config(**SIZE, **LAYERS, use_sliding_window=True, sliding_window=WINDOW),
    "gemma2": lambda: hf.Gemma2Config(**HEADS, **LAYERS, sliding_window=WINDOW),
    "gemma3": lambda: hf.Gemma3TextConfig(**HEADS, **LAYERS, sliding_window=WINDOW),
    "cohere2": lambda: hf.Cohere2Config(**SIZE, **LAYERS, sliding_window=WINDOW),
    "gpt-oss": lambda: hf.GptOssConfig(**HEADS, **LAYERS, sliding_window=WINDOW, num_local_experts=4),
    "llama4": lambda: hf.Llama4TextConfig(
        **HEADS, attention_chunk_size=WINDOW, num_local_experts=2, intermediate_size_mlp=32
    ),
    "gpt-neo": lambda: hf.GPTNeoConfig(
        vocab_size=50, hidden_size=16, num_layers=2, num_heads=2, max_position_embeddings=256, window_size=WINDOW,
        attention_types=[[["local", "global"], 1]], initializer_range=0.5,
    ),
}  # fmt: skip
WHOLE: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**SIZE),
    "qwen2": lambda: hf.Qwen2Config(**SIZE, sliding_window=WINDOW),  # use_sliding_window is false
    "mistral": lambda: hf.MistralConfig(**SIZE, sliding_window=None),
    "gpt2": lambda: hf.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=256),
    "gemma": lambda: hf.GemmaConfig(**HEADS),
}
OTHER: dict[str, Callable[[], Any]] = {
    "mamba": lambda: hf.MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4),
    "bloom": lambda: hf.BloomConfig(vocab_size=50, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.5),
}
EVERY = {**{f"windowed {k}": v for k, v in WINDOWED.items()}, **WHOLE, **OTHER}

LENGTHS = (4, 6, 60, 60)
"""Tokens of the contexts: with their continuations shorter and longer than a window."""


def model_of(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(config, dtype=dtype)


def pairs_of(lengths: tuple[int, ...] = LENGTHS, continuations: tuple[int, ...] = (3, 4, 1, 2)) -> list[Pair]:
    draw = random.Random(0)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(draw.choices(range(2, 50), k=n))

    contexts = [tokens(n) for n in lengths]
    return [Pair(row, context, tokens(n)) for row, context in enumerate(contexts) for n in continuations]


def asked(model: Any, pairs: list[Pair], size: int = 4, max_length: int = 200) -> Likelihoods:
    rows = sorted({pair.row for pair in pairs})
    splits = Splits(np.array(rows[: len(rows) // 2]), np.array(rows[len(rows) // 2 :]))
    return Likelihoods(pairs, splits, model, torch.device("cpu"), max_length, size)


def run(made: Likelihoods, model: Any, pairs: list[Pair]) -> tuple[Any, Any]:
    return made.run(model, np.array(sorted({pair.row for pair in pairs})))


@torch.no_grad()
def wanted(model: Any, pairs: list[Pair]) -> tuple[list[float], list[bool]]:
    """One sequence for each pair, and no batch."""
    found, greedy = [], []
    for pair in pairs:
        whole = torch.tensor([[*pair.context, *pair.continuation]])
        logits = model(whole[:, :-1]).logits[0, len(pair.context) - 1 :].float()
        targets = whole[0, len(pair.context) :]
        found.append(float(torch.log_softmax(logits, dim=-1).gather(1, targets[:, None]).sum()))
        greedy.append(bool((logits.argmax(dim=-1) == targets).all()))
    return found, greedy


@pytest.mark.parametrize("kind", EVERY)
def test_every_architecture_gives_what_a_sequence_for_each_continuation_gives(kind: str) -> None:
    model, pairs = model_of(EVERY[kind]()), pairs_of()
    found, greedy = run(asked(model, pairs), model, pairs)
    likelihoods, best = wanted(model, pairs)
    np.testing.assert_allclose(found, likelihoods, atol=1e-3)
    assert greedy.tolist() == best


def trees(made: Likelihoods) -> list[int]:
    """Tokens of the longest sequence of each batch of trees."""
    return [inputs["input_ids"].shape[1] for inputs, _ in made.sequences() if "attention_mask" in inputs]


@pytest.mark.parametrize("kind", WINDOWED)
def test_a_tree_is_never_longer_than_a_window(kind: str) -> None:
    config = WINDOWED[kind]()
    assert reach(config) == WINDOW
    assert max(trees(asked(model_of(config), pairs_of())), default=0) <= WINDOW


@pytest.mark.parametrize("kind", WHOLE)
def test_where_every_token_sees_all_before_it_a_context_is_read_once(kind: str) -> None:
    model, pairs = model_of(WHOLE[kind]()), pairs_of()
    assert sum(x["input_ids"].numel() for x, _ in asked(model, pairs, size=1).sequences()) == sum(LENGTHS) + 4 * 6


def test_a_window_that_no_key_tells_of_is_found_out_by_the_longest_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "reach", lambda config: 2**31)
    model, pairs = model_of(WINDOWED["mistral"]()), pairs_of()
    found, _ = run(asked(model, pairs), model, pairs)
    np.testing.assert_allclose(found, wanted(model, pairs)[0], atol=1e-3)


@pytest.mark.parametrize("error", [IndexError, AttributeError, KeyError, AssertionError, RuntimeError])
def test_attention_that_takes_no_mask_of_its_own_is_asked_in_single_sequences(error: type[Exception]) -> None:
    model, pairs = model_of(WHOLE["llama"]()), pairs_of()

    def refuse(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if (mask := kwargs.get("attention_mask")) is not None and mask.ndim == 4:
            raise error("expected (b, t)")

    model.base_model.register_forward_pre_hook(refuse, with_kwargs=True)
    made = asked(model, pairs)
    assert not trees(made)
    np.testing.assert_allclose(run(made, model, pairs)[0], wanted(model, pairs)[0], atol=1e-4)


def test_a_fault_of_the_model_is_not_taken_for_its_attention_s() -> None:
    model = model_of(WHOLE["llama"]())
    model.base_model.layers[0].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(IndexError("broken")))
    with pytest.raises(IndexError, match="broken"):
        asked(model, pairs_of())


def test_trees_that_save_little_are_single_sequences() -> None:
    """A context of one token before long answers: a mask would cost more than that token."""
    model, pairs = model_of(WHOLE["llama"]()), pairs_of((1, 1, 1), (9, 9, 9))
    assert not trees(asked(model, pairs))
    assert len(trees(asked(model, pairs_of((9, 9, 9), (9, 9, 9))))) == 2


def test_the_masks_of_a_batch_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = model_of(WHOLE["llama"]()), pairs_of((60,) * 8)
    whole, _ = run(asked(model, pairs, size=8), model, pairs)
    monkeypatch.setattr(likelihood, "MASK", 3 * 66**2)
    made = asked(model, pairs, size=8)
    shapes = [inputs["attention_mask"].shape for inputs, _ in made.sequences()]
    assert [shape[0] for shape in shapes] == [3, 1, 3, 1] and {shape[2] for shape in shapes} == {66}
    np.testing.assert_allclose(run(made, model, pairs)[0], whole, atol=1e-4)


def test_half_precision_s_rounding_is_not_taken_for_another_attention() -> None:
    """Logits of the size of a trained model's, which bfloat16 keeps to 1/8."""
    model, pairs = model_of(hf.LlamaConfig(**{**SIZE, "num_hidden_layers": 8}), torch.bfloat16), pairs_of()
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
    assert float(model(torch.tensor([pairs[0].context])).logits.detach().abs().max()) > 16
    assert trees(asked(model, pairs))


@pytest.mark.parametrize("cap", [{"final_logit_softcapping": 30.0}, {"final_logit_softcapping": None}])
def test_a_soft_cap_that_the_base_s_small_logits_do_not_show_is_there_for_a_candidate(cap: dict[str, Any]) -> None:
    model, pairs = model_of(hf.Gemma2Config(**{**HEADS, "initializer_range": 0.02}, **cap)), pairs_of()
    made = asked(model, pairs)
    with torch.no_grad():
        model.model.norm.weight.add_(400)
    assert float(model(torch.tensor([pairs[0].context])).logits.detach().abs().max()) > 20
    np.testing.assert_allclose(run(made, model, pairs)[0], wanted(model, pairs)[0], rtol=1e-4)
