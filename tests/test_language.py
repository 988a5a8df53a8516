"""Are loss and perplexity those that transformers computes, text by text, in little memory?"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from pico import base, config, tokenizer

from evaluators import language
from evaluators.errors import DataError, NonFinite, OptionError
from evaluators.evaluator import Setting
from evaluators.language import Language

TEXTS = ["good red", "bad", "a b c good blue d e f", "red blue bad a", "c", "bad bad d", "blue", "e f g h"]


def make(root: Path, texts: list[str] = TEXTS, **options: Any) -> Language:
    (root / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return Language("lm", {"data": "a.jsonl", **options}, root)


def gemma(folder: Path, larger: float = 20.0) -> Path:
    """An architecture that caps its logits: more than one linear layer at the end."""
    torch.manual_seed(0)
    llama = config("llama")
    made = hf.Gemma2ForCausalLM(
        hf.Gemma2Config(
            vocab_size=llama.vocab_size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=8,
            num_key_value_heads=1, intermediate_size=32, max_position_embeddings=64, final_logit_softcapping=1.0,
            pad_token_id=0,
        )
    )  # fmt: skip
    with torch.no_grad():
        made.model.norm.weight.add_(larger)  # logits large enough for the cap to matter
    made.save_pretrained(folder)
    tokenizer(folder)
    return folder


BASES = {"llama": lambda folder: base(folder, "llama"), "gemma2": gemma}


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("chunk", [1, 150, 2**24])
def test_loss_is_what_transformers_computes(
    kind: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language, "CHUNK", chunk)
    folder = BASES[kind](tmp_path / "base")
    model, words = hf.AutoModelForCausalLM.from_pretrained(folder), hf.AutoTokenizer.from_pretrained(folder)
    evaluator = make(tmp_path, batch_size=3)
    evaluator.prepare(Setting(model, folder, torch.device("cpu")))
    scores = evaluator.score(model, np.arange(8))
    losses, tokens = [], []
    for text in TEXTS:
        ids = words(text, return_tensors="pt").input_ids
        with torch.no_grad():
            losses.append(float(model(ids, labels=ids).loss))
        tokens.append(ids.shape[1] - 1)
    np.testing.assert_allclose(scores.per_item["loss"], losses, atol=1e-5)
    loss = np.average(losses, weights=tokens)
    assert scores.measures["loss"].value == pytest.approx(loss, abs=1e-6)
    assert scores.measures["perplexity"].value == pytest.approx(math.exp(loss), rel=1e-5)
    assert scores.measures["loss"].count == 8 and scores.measures["loss"].stderr > 0


def test_a_cap_that_the_base_s_small_logits_do_not_show_is_there_for_a_candidate(tmp_path: Path) -> None:
    folder = gemma(tmp_path / "base", larger=-0.99)
    model, words = hf.AutoModelForCausalLM.from_pretrained(folder), hf.AutoTokenizer.from_pretrained(folder)
    evaluator = make(tmp_path)
    evaluator.prepare(Setting(model, folder, torch.device("cpu")))
    with torch.no_grad():
        model.model.norm.weight.add_(200.0)
    scores = evaluator.score(model, np.arange(8))
    for text, found in zip(TEXTS, scores.per_item["loss"], strict=True):
        ids = words(text, return_tensors="pt").input_ids
        assert found == pytest.approx(float(model(ids, labels=ids).loss.detach()), rel=1e-5)


def test_no_keys_and_values_are_kept(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", "llama")
    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    kept: list[object] = []
    model.base_model.register_forward_hook(lambda module, args, output: kept.append(output.past_key_values))
    evaluator = make(tmp_path)
    evaluator.prepare(Setting(model, folder, torch.device("cpu")))
    evaluator.score(model, np.arange(8))
    assert kept and not any(kept)


def test_texts_are_cut(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", "llama")
    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    found = []
    for text in ("a b c d e f", "a b"):
        evaluator = make(tmp_path, [text, "red blue"], max_length=4)
        evaluator.prepare(Setting(model, folder, torch.device("cpu")))
        found.append(evaluator.score(model, np.array([0])).measures["loss"].value)
    whole = make(tmp_path, ["a b c d e f", "red blue"])
    whole.prepare(Setting(model, folder, torch.device("cpu")))
    assert found[0] != whole.score(model, np.array([0])).measures["loss"].value
    with pytest.raises(OptionError, match="max_length 65 is more than the model's 64"):
        make(tmp_path, max_length=65).prepare(Setting(model, folder, torch.device("cpu")))


def test_an_encoder_is_no_language_model(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", "bert")
    model = hf.AutoModel.from_pretrained(folder)
    with pytest.raises(OptionError, match="needs a causal language model, the base is a BertModel"):
        make(tmp_path).prepare(Setting(model, folder, torch.device("cpu")))


def test_a_text_of_one_token_is_named(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", "llama")
    words = hf.AutoTokenizer.from_pretrained(folder)
    words.backend_tokenizer.post_processor = None
    words.save_pretrained(folder)
    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(DataError, match=r"a\.jsonl: row 1, column 'text': expected at least 2 tokens, got 1"):
        make(tmp_path, ["a b", "a", "a b c"]).prepare(Setting(model, folder, torch.device("cpu")))


def test_a_loss_without_a_finite_perplexity_is_a_failure(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", "llama")
    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    evaluator = make(tmp_path)
    evaluator.prepare(Setting(model, folder, torch.device("cpu")))
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    with pytest.raises(NonFinite, match="no finite perplexity"):
        evaluator.score(model, evaluator.splits.calibration)
