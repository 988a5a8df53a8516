"""Does each token keep its row? Added tokens, padding, sources and other tokenizers, against rows picked by hand."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import torch
import transformers as hf
from families import FAMILIES
from safetensors.torch import load_file, save_file
from test_families import exported, loss, outputs, recipe_of, same, space_of

from optimizer import Job, Run
from searchspaces import CoefficientSpace, Pool, Recipe, Resident, processed
from searchspaces.errors import Inexpressible, PoolError
from searchspaces.mergekit import to_mergekit
from searchspaces.models.loading import load_model
from searchspaces.weights.materialise import merged_tensors

TRAINED = ["<s>", "</s>", "<pad>", "<unk>", *"abcdefghijklmnopqrst"]  # 24
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mergeopt" / "vocabulary"


def tokenizer(folder: Path, added: Sequence[str] = (), trained: Sequence[str] = TRAINED) -> Path:
    """A tokenizer of words with tokens added, as transformers saves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(trained)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = hf.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>")
    made.add_tokens(list(added))
    made.save_pretrained(folder)
    return folder


def base(folder: Path, family: str = "llama", rows: int = 24, added: Sequence[str] = ()) -> Path:
    row = FAMILIES[family]
    kind = replace(row, config=lambda: sized(row.config(), rows))
    return tokenizer(kind.save(folder), added)


def sized(config: Any, rows: int) -> Any:
    config.vocab_size = rows
    return config


def expert(folder: Path, of: Path, seed: int, added: Sequence[str] = (), rows: int | None = None) -> Path:
    """A fine-tune of `of` whose embeddings were resized to `rows`, with a tokenizer of `added` tokens."""
    pico.expert(folder, of, seed)
    held = 24 + len(added) if rows is None else rows
    model = load_model(folder)
    torch.manual_seed(seed)
    model.resize_token_embeddings(held, mean_resizing=False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)[24:].normal_()
    model.save_pretrained(folder)
    return tokenizer(folder, added)


def stored(folder: Path, name: str = EMBEDDING) -> torch.Tensor:
    return load_file(folder / "model.safetensors")[name]


def at(pool: Pool, value: float | Sequence[float]) -> Recipe:
    """A recipe of one coefficient for each expert."""
    space = space_of(pool, "model")
    return space.decode(np.broadcast_to(value, space.domain.low.shape).astype(float))


def merged(pool: Pool, recipe: Recipe, name: str = EMBEDDING) -> torch.Tensor:
    return dict(merged_tensors(pool, recipe))[name]


@pytest.fixture
def three(tmp_path: Path) -> tuple[Path, dict[str, Path]]:
    """A base, and experts that added tokens: one of them both, at other ids."""
    first = base(tmp_path / "base")
    return first, {
        "math": expert(tmp_path / "math", first, 1, ["<think>", "<sum>"]),
        "chat": expert(tmp_path / "chat", first, 2, ["<user>", "<think>"]),
        "plain": expert(tmp_path / "plain", first, 3),
    }


def test_added_tokens_are_refused_with_the_option_named(three: tuple[Path, dict[str, Path]]) -> None:
    with pytest.raises(
        PoolError, match=r"expert 'math' has 2 tokens that the base lacks \('<think>', '<sum>'\); say models.vocabulary"
    ):
        Pool.open(*three)


def test_the_bases_vocabulary_leaves_added_tokens_out_and_copies_nothing(
    three: tuple[Path, dict[str, Path]], cache: Path
) -> None:
    pool = Pool.open(*three, vocabulary="base")
    assert not cache.exists() and pool.base.folder == three[0]
    recipe = at(pool, [0.5, 0.2, 0.1])
    own = stored(three[0]).double()
    expected = own + sum(
        c * (stored(f)[:24].double() - own) for c, f in zip((0.5, 0.2, 0.1), three[1].values(), strict=True)
    )
    torch.testing.assert_close(merged(pool, recipe).double(), expected, rtol=1e-6, atol=1e-6)
    plain = {"plain": three[1]["plain"]}
    assert pool.hashes()["base"] != Pool.open(three[0], plain).hashes()["base"]
    assert Pool.open(three[0], plain, vocabulary="base").hashes() == Pool.open(three[0], plain).hashes()


def test_a_union_has_every_token_once_under_its_text(three: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    pool = Pool.open(*three, vocabulary="union")
    math, chat, own = stored(three[1]["math"]), stored(three[1]["chat"]), stored(three[0])
    think, sum_, user = 24, 25, 26
    assert pool.layout()[0].shape == (27, 16) and pool.base.config["vocab_size"] == 27
    zero = merged(pool, at(pool, 0))
    assert torch.equal(zero[:24], own)
    # a token of one expert is that expert's, whatever the coefficients
    for recipe in (at(pool, 0), at(pool, 0.3), at(pool, 1)):
        assert torch.equal(merged(pool, recipe)[sum_], math[25]) and torch.equal(merged(pool, recipe)[user], chat[24])
    # a token of two is their mean, and moves to each by its coefficient
    mean = (math[24] + chat[25]) / 2
    torch.testing.assert_close(zero[think], mean)
    torch.testing.assert_close(merged(pool, at(pool, [1, 0, 0]))[think], math[24])
    torch.testing.assert_close(merged(pool, at(pool, [0, 1, 0]))[think], chat[25])
    torch.testing.assert_close(merged(pool, at(pool, [0, 0, 1]))[think], mean)
    # the tokenizer that goes with it knows them all, and the model's head has their rows too
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained(pool.base.folder)
    assert read("a <think> b <sum> <user>")["input_ids"] == [4, think, 5, sum_, user] and len(read) == 27
    assert merged(pool, at(pool, 0), "lm_head.weight").shape == (27, 16)
    assert (
        Pool.open(*three, vocabulary="union").hashes() == pool.hashes() != Pool.open(*three, vocabulary="base").hashes()
    )


@pytest.mark.parametrize("mode", ["base", "union"])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "mixtral", "gpt2", "t5", "bart", "bert", "roberta"])
def test_what_is_exported_with_a_vocabulary_answers_as_what_was_resident(tmp_path: Path, name: str, mode: Any) -> None:
    family = replace(FAMILIES[name], config=lambda: sized(FAMILIES[name].config(), 40))
    first = base(tmp_path / "base", name, 40)
    experts = {
        "one": expert(tmp_path / "one", first, 1, ["<x>", "<y>"], 43),
        "two": expert(tmp_path / "two", first, 2, [f"<{i}>" for i in range(19)]),
    }
    pool = Pool.open(first, experts, vocabulary=mode)
    rows = 45 if mode == "union" else 40
    space, resident = space_of(pool), Resident(pool)
    recipe = recipe_of(space)
    resident.write(recipe)
    written = outputs(resident.model, family)
    assert resident.model.get_input_embeddings().weight.shape[0] == rows
    reloaded = load_model(exported(tmp_path / "out", pool, recipe))
    assert same(outputs(reloaded, family), written)
    assert reloaded.config.vocab_size == rows
    resident.write_expert("two")
    resident.write(recipe)
    assert same(outputs(resident.model, family), written)
    with resident.tracking():
        loss(resident.model, family).backward()
        found = resident.gradient(recipe)
    # against a central difference along the embeddings' own coefficients, which rows of tokens are scaled by
    group = list(space.groups).index("embeddings")
    sides = []
    for sign in (1, -1):
        values = np.array(recipe.coefficients)
        values[group] += sign * 0.005
        resident.write(replace(recipe, coefficients=values))
        parts = outputs(resident.model, family)
        sides.append(sum(float((torch.tanh(p) * torch.linspace(-1, 1, p.numel()).view(p.shape)).sum()) for p in parts))
    assert sides[0] - sides[1] == pytest.approx(0.01 * found[group].sum(), rel=0.05, abs=1e-3)


def test_rows_beyond_the_tokenizer_are_not_compared(tmp_path: Path, cache: Path) -> None:
    first = base(tmp_path / "base", rows=32)
    tight, wide = expert(tmp_path / "tight", first, 1), expert(tmp_path / "wide", first, 2, rows=64)
    pool = Pool.open(first, {"tight": tight, "wide": wide})
    half = merged(pool, at(pool, [1, 0]))
    assert torch.allclose(half[:24], stored(tight), atol=1e-6) and torch.equal(half[24:], stored(first)[24:])
    assert torch.allclose(merged(pool, at(pool, [0, 1])), stored(wide)[:32], atol=1e-6)
    assert sorted(p.suffix for p in cache.iterdir()) == ["", ".lock"]
    # and are taken by tokens that are added
    more = expert(tmp_path / "more", first, 3, ["<x>"], rows=64)
    union = Pool.open(first, {"tight": tight, "more": more}, vocabulary="union")
    assert union.layout()[0].shape[0] == 32
    assert torch.equal(merged(union, at(union, 0.3))[24], stored(more)[24])
    # but not by those that are left out
    kept = Pool.open(first, {"tight": tight, "more": more}, vocabulary="base")
    assert torch.equal(merged(kept, at(kept, [0, 1]))[24], stored(first)[24])


def test_a_token_of_the_base_without_a_row_is_as_one_that_experts_added(tmp_path: Path) -> None:
    first = base(tmp_path / "base", rows=24, added=["<p>"])  # a pad token, say, and embeddings that were not resized
    more = expert(tmp_path / "more", first, 1, ["<p>", "<x>"])
    none = expert(tmp_path / "none", first, 2, ["<p>"], rows=24)
    for name, row in ((EMBEDDING, stored(more)), ("lm_head.weight", stored(more, "lm_head.weight"))):
        pool = Pool.open(first, {"more": more, "none": none}, vocabulary="union")
        for recipe in (at(pool, 0), at(pool, [0.3, 0.2]), at(pool, 1)):
            assert torch.equal(merged(pool, recipe, name)[24:], row[24:26])
    alone = Pool.open(first, {"more": expert(tmp_path / "alone", first, 1, ["<p>"])}, vocabulary="union")
    assert torch.equal(merged(alone, at(alone, 0.5))[24], stored(tmp_path / "alone")[24])
    assert alone.base.config["vocab_size"] == 25
    # without a row anywhere there is none
    assert Pool.open(first, {"none": none}, vocabulary="union").layout()[0].shape[0] == 24


def test_padding_of_an_expert_without_a_tokenizer_is_no_row_of_anothers_token(tmp_path: Path) -> None:
    first = base(tmp_path / "base", rows=32)
    more = expert(tmp_path / "more", first, 1, ["<x>"], rows=32)
    silent = expert(tmp_path / "silent", first, 2, rows=32)
    for file in silent.glob("*token*"):
        file.unlink()
    pool = Pool.open(first, {"more": more, "silent": silent}, vocabulary="union")
    for recipe in (at(pool, 0), at(pool, [0.3, 0.2]), at(pool, 1)):
        assert torch.equal(merged(pool, recipe)[24], stored(more)[24])
    assert torch.allclose(merged(pool, at(pool, [0, 1]))[:24], stored(silent)[:24], atol=1e-6)


def test_the_bases_added_tokens_are_matched_by_text(tmp_path: Path) -> None:
    first = base(tmp_path / "base", rows=26, added=["<x>", "<y>"])
    swapped = expert(tmp_path / "swapped", first, 1, ["<y>", "<x>"])
    lacking = expert(tmp_path / "lacking", first, 2)
    with pytest.raises(PoolError, match=r"'swapped' has token '<y>' at id 24 \(base: 25\); say models.vocabulary"):
        Pool.open(first, {"swapped": swapped})
    with pytest.raises(
        PoolError, match=r"'lacking' lacks 2 tokens of the base \('<x>', '<y>'\); say models.vocabulary"
    ):
        Pool.open(first, {"lacking": lacking})
    pool = Pool.open(first, {"swapped": swapped, "lacking": lacking}, vocabulary="base")
    found = merged(pool, at(pool, [1, 0]))
    assert torch.allclose(found[24], stored(swapped)[25], atol=1e-6)
    assert torch.allclose(found[25], stored(swapped)[24], atol=1e-6)
    assert torch.equal(merged(pool, at(pool, [0, 1]))[24:], stored(first)[24:])


def test_a_source_decides_a_tokens_row_whatever_the_coefficients(three: tuple[Path, dict[str, Path]]) -> None:
    sources = {"<think>": "chat", "a": "math", "b": "base"}
    pool = Pool.open(*three, vocabulary="union", sources=sources)
    for recipe in (at(pool, 0), at(pool, [0.7, 0.1, 0.4])):
        for name in (EMBEDDING, "lm_head.weight"):
            rows = merged(pool, recipe, name)
            assert torch.equal(rows[24], stored(three[1]["chat"], name)[25])
            assert torch.equal(rows[4], stored(three[1]["math"], name)[4])
            assert torch.equal(rows[5], stored(three[0], name)[5])
    assert not torch.equal(merged(pool, at(pool, 0.5))[6], stored(three[0])[6])
    resident = Resident(pool)
    resident.write(at(pool, 0.5))
    assert torch.equal(resident.model.get_input_embeddings().weight[4], stored(three[1]["math"])[4])
    assert pool.hashes() != Pool.open(*three, vocabulary="union").hashes()


@pytest.mark.parametrize(
    ("mode", "sources", "message"),
    [
        (None, {"a": "math"}, "say models.vocabulary"),
        ("union", {"a": "maths"}, "'maths'; there are: base, math, chat, plain"),
        ("union", {"<nothing>": "math"}, "'<nothing>' is no token of the merged vocabulary"),
        ("base", {"<think>": "math"}, "'<think>' is no token of the merged vocabulary"),
        ("union", {"<think>": "plain"}, "'plain' has no row for token '<think>'"),
        ("union", {"<think>": "base"}, "'base' has no row for token '<think>'"),
    ],
)
def test_a_source_that_cannot_be_is_refused(
    three: tuple[Path, dict[str, Path]], mode: Any, sources: dict[str, str], message: str
) -> None:
    with pytest.raises(PoolError, match=message):
        Pool.open(*three, vocabulary=mode, sources=sources)


@pytest.mark.parametrize("mode", [None, "base", "union"])
def test_a_tokenizer_trained_apart_is_refused_whatever_the_option(tmp_path: Path, mode: Any) -> None:
    first = base(tmp_path / "base")
    other = pico.expert(tmp_path / "other", first, 1)
    tokenizer(other, trained=[*TRAINED[:10], "zebra", *TRAINED[11:]])
    with pytest.raises(PoolError, match=r"'other' has another tokenizer than the base: id 10 is 'zebra' \(base: 'g'\)"):
        Pool.open(first, {"other": other}, vocabulary=mode)
    tokenizer(other)
    settings = json.loads((other / "tokenizer.json").read_text())
    for data, message in [
        ({**settings["model"], "type": "BPE", "merges": []}, "it is a BPE model"),
        ({"type": "Unigram"}, "it is a Unigram model"),
        (7, "no tokenizer that is known"),
    ]:
        (other / "tokenizer.json").write_text(json.dumps({**settings, "model": data}))
        with pytest.raises(PoolError, match=message):
            Pool.open(first, {"other": other}, vocabulary=mode)


def test_merge_rules_are_compared_in_either_spelling(tmp_path: Path) -> None:
    first = base(tmp_path / "base")
    other = pico.expert(tmp_path / "other", first, 1)
    settings = json.loads((first / "tokenizer.json").read_text())

    def write(folder: Path, merges: list[Any]) -> None:
        (folder / "tokenizer.json").write_text(
            json.dumps({**settings, "model": {"type": "BPE", "vocab": settings["model"]["vocab"], "merges": merges}})
        )

    write(first, [["a", "b"], ["c", "d"]])
    write(other, ["a b", "c d"])
    Pool.open(first, {"other": other})
    write(other, ["a b", "c e"])
    with pytest.raises(PoolError, match=r"merge rule 1 is 'c e' \(base: 'c d'\)"):
        Pool.open(first, {"other": other})
    write(other, ["a b"])
    with pytest.raises(PoolError, match=r"merge rule 1 is not there \(base: 'c d'\)"):
        Pool.open(first, {"other": other})


def test_cosmetics_of_a_tokenizer_and_its_absence_are_no_difference(tmp_path: Path, cache: Path) -> None:
    first = base(tmp_path / "base")
    other = tokenizer(pico.expert(tmp_path / "other", first, 1))
    plain = Pool.open(first, {"other": other}).hashes()
    settings = json.loads((other / "tokenizer.json").read_text())
    settings["truncation"] = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    (other / "tokenizer.json").write_text(json.dumps(settings))
    (other / "chat_template.jinja").write_text("{{ messages }}")
    assert Pool.open(first, {"other": other}).hashes() == plain
    (other / "tokenizer.json").unlink()
    assert Pool.open(first, {"other": other}).hashes() == plain
    assert not cache.exists()


def test_without_a_tokenizer_rows_are_matched_by_their_number_where_asked(tmp_path: Path) -> None:
    first = base(tmp_path / "base")
    more = expert(tmp_path / "more", first, 1, rows=30)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (more / name).unlink()
    with pytest.raises(PoolError, match=r"'more' has embeddings of 30 rows \(base: 24\).*say models.vocabulary: base"):
        Pool.open(first, {"more": more})
    with pytest.raises(PoolError, match=r"'more' has no tokenizer.json, and models.vocabulary: union matches tokens"):
        Pool.open(first, {"more": more}, vocabulary="union")
    pool = Pool.open(first, {"more": more}, vocabulary="base")
    assert torch.allclose(merged(pool, at(pool, 1)), stored(more)[:24], atol=1e-6)


def test_older_tokenizer_files_are_compared_byte_for_byte(tmp_path: Path) -> None:
    first = base(tmp_path / "base")
    other = pico.expert(tmp_path / "other", first, 1)
    (first / "tokenizer.json").unlink()
    for folder in (first, other):
        (folder / "vocab.txt").write_text("\n".join(TRAINED))
    Pool.open(first, {"other": other})
    (other / "added_tokens.json").write_text(json.dumps({"<x>": 24}))
    with pytest.raises(PoolError, match="'other' has 1 token that the base lacks"):
        Pool.open(first, {"other": other})
    (other / "vocab.txt").write_text("\n".join(reversed(TRAINED)))
    with pytest.raises(PoolError, match=r"another tokenizer than the base: vocab.txt is not the base's"):
        Pool.open(first, {"other": other})


def test_a_binary_tokenizer_that_both_have_is_enough(tmp_path: Path) -> None:
    first = base(tmp_path / "base", rows=26, added=["<x>"])
    other = pico.expert(tmp_path / "other", first, 1)
    for folder in (first, other):
        (folder / "tokenizer.model").write_bytes(b"pieces")
    (other / "added_tokens.json").write_text(json.dumps({"<x>": 24}))
    Pool.open(first, {"other": other})
    Pool.open(other, {"first": first})  # and the other way round
    settings = other / "tokenizer_config.json"
    told = json.loads(settings.read_text()) if settings.is_file() else {}
    repeated = {"0": {"content": "<s>"}, "24": {"content": "<x>"}}  # trained ones too, as transformers 4 writes it
    settings.write_text(json.dumps({**told, "added_tokens_decoder": repeated}))
    Pool.open(first, {"other": other})
    Pool.open(other, {"first": first})
    (other / "added_tokens.json").write_text(json.dumps({"<x>": 24, "<y>": 25}))
    with pytest.raises(PoolError, match=r"'other' has 1 token that the base lacks \('<y>'\)"):
        Pool.open(first, {"other": other})
    (other / "added_tokens.json").unlink()
    with pytest.raises(PoolError, match=r"'other' lacks 1 token of the base \('<x>'\)"):
        Pool.open(first, {"other": other})
    (other / "tokenizer.model").write_bytes(b"others")
    with pytest.raises(PoolError, match=r"tokenizer.model is not the base's"):
        Pool.open(first, {"other": other})


def test_files_that_cannot_be_compared_are_not_taken_for_equal(tmp_path: Path) -> None:
    first = base(tmp_path / "base")
    other = pico.expert(tmp_path / "other", first, 1)
    (other / "tokenizer.model").write_bytes(b"pieces")
    with pytest.raises(
        PoolError, match=r"in tokenizer.model, the base in tokenizer.json, which cannot be compared; load"
    ):
        Pool.open(first, {"other": other})
    (other / "tokenizer.model").unlink()
    Pool.open(first, {"other": other})


def test_older_vocabularies_that_are_text_are_compared_with_newer_ones(tmp_path: Path) -> None:
    first = base(tmp_path / "base")
    other = pico.expert(tmp_path / "other", first, 1)
    settings = json.loads((first / "tokenizer.json").read_text())
    bpe = {"type": "BPE", "vocab": settings["model"]["vocab"], "merges": [["a", "b"], ["c", "d"]]}
    (other / "tokenizer.json").write_text(json.dumps({**settings, "model": bpe}))
    (first / "tokenizer.json").unlink()
    (first / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(TRAINED)}))
    (first / "merges.txt").write_text("#version: 0.2\na b\nc d\n")
    Pool.open(first, {"other": other})
    (first / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"24": {"content": "<x>"}}}))
    with pytest.raises(PoolError, match=r"'other' lacks 1 token of the base \('<x>'\)"):
        Pool.open(first, {"other": other})
    (first / "tokenizer_config.json").unlink()
    (first / "merges.txt").write_text("a b\nc e\n")
    with pytest.raises(PoolError, match=r"merge rule 1 is 'c d' \(base: 'c e'\)"):
        Pool.open(first, {"other": other})
    (first / "merges.txt").unlink()
    (first / "vocab.json").unlink()
    (first / "vocab.txt").write_text("\n".join(["</s>", "<s>", *TRAINED[2:]]) + "\n")
    with pytest.raises(PoolError, match=r"id 0 is '<s>' \(base: '</s>'\)"):
        Pool.open(first, {"other": other})
    (first / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(PoolError, match=r"base: the tokenizer's files .* cannot be read \(UnicodeDecodeError"):
        Pool.open(first, {"other": other})


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
PREPEND = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (
            {"normalizer": {"type": "Lowercase"}},
            {},
            r"of 'Hello World' it makes \['hello world'\] \(base: \['Hello World",
        ),
        ({"normalizer": {"type": "NFC"}}, {}, r"of 'e.* it makes"),
        (
            {"pre_tokenizer": {"type": "Whitespace"}},
            {"pre_tokenizer": {"type": "WhitespaceSplit"}},
            r"makes \['don', \"'\", 't'",
        ),
        ({"normalizer": {"type": "Sequence", "normalizers": []}}, {}, None),
        ({"normalizer": {"type": "Sequence", "normalizers": PREPEND}}, {"pre_tokenizer": METASPACE}, None),
        ({"pre_tokenizer": {**BYTES, "add_prefix_space": True}}, {"pre_tokenizer": BYTES}, None),
        ({"normalizer": {"type": "Brilliant"}}, {}, r"'other': the normalizer or pre-tokenizer in its tokenizer.json"),
    ],
)
@pytest.mark.parametrize("mode", [None, "base"])
def test_how_text_is_normalised_and_split_is_compared_by_what_comes_of_it(
    tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any], message: str | None, mode: Any
) -> None:
    first = base(tmp_path / "base")
    other = pico.expert(tmp_path / "other", first, 1)
    settings = json.loads((first / "tokenizer.json").read_text())
    for folder, parts in ((other, ours), (first, theirs)):
        bare = {**settings, "normalizer": None, "pre_tokenizer": None}
        (folder / "tokenizer.json").write_text(json.dumps({**bare, **parts}))
    if message is None:
        Pool.open(first, {"other": other}, vocabulary=mode)
        return
    with pytest.raises(PoolError, match=message):
        Pool.open(first, {"other": other}, vocabulary=mode)


def test_a_unigram_models_scores_are_compared(tmp_path: Path) -> None:
    first = base(tmp_path / "base")
    other = pico.expert(tmp_path / "other", first, 1)
    settings = json.loads((first / "tokenizer.json").read_text())

    def write(folder: Path, score: float) -> None:
        vocabulary = [[word, score if word == "c" else -1.0] for word in TRAINED]
        model = {"type": "Unigram", "unk_id": 3, "vocab": vocabulary}
        (folder / "tokenizer.json").write_text(json.dumps({**settings, "model": model}))

    write(first, -2.5)
    write(other, -2.5 + 1e-7)
    Pool.open(first, {"other": other})
    write(other, -2.4)
    with pytest.raises(PoolError, match=r"the score of 'c' is -2.4 \(base: -2.5\)"):
        Pool.open(first, {"other": other})


TINY = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = hf.ChineseCLIPVisionConfig(**TINY, image_size=8, patch_size=4)
QUANTISED = hf.IBertConfig(**TINY, vocab_size=16, max_position_embeddings=16)


# patches of images, two towers, a convolution, whose weight is no table of tokens, and a model that may not be resized
@pytest.mark.parametrize("kind", ["vit", "clip", "chinese_clip_vision_model", "ibert"])
def test_a_model_without_tokens_or_that_cannot_be_resized_has_no_vocabulary(tmp_path: Path, kind: str) -> None:
    first = tmp_path / "base"
    if kind in FAMILIES:
        FAMILIES[kind].save(first)
    else:
        made = hf.IBertModel(QUANTISED) if kind == "ibert" else hf.ChineseCLIPVisionModel(VISION)
        made.save_pretrained(first)
    other = pico.expert(tmp_path / "other", first, 1)
    rows = load_file(other / "model.safetensors")
    odd = next(name for name in rows if name.endswith(".bias"))
    save_file({**rows, odd: torch.zeros(7)}, other / "model.safetensors")
    with pytest.raises(PoolError, match=rf"'{re.escape(odd)}' has shape"):
        Pool.open(first, {"other": other})
    with pytest.raises(PoolError, match=f"cannot resize the embeddings of a {kind} model"):
        Pool.open(first, {"other": other}, vocabulary="union")


def test_heads_and_excluded_embeddings_keep_their_own_rows(three: tuple[Path, dict[str, Path]]) -> None:
    pool = Pool.open(*three, heads=["lm_head.*"], vocabulary="union")
    assert torch.equal(pool.heads["math"]["lm_head.weight"], stored(three[1]["math"], "lm_head.weight"))
    assert merged(pool, at(pool, 1), "lm_head.weight").shape == (27, 16)  # the base's, and rows for every token
    held = Pool.open(*three, exclude=["*embed*"], vocabulary="union")
    assert EMBEDDING in {t.name for t in held.copied} and merged(held, at(held, 1)).shape == (27, 16)
    Resident(held).write(at(held, 0.5))


def test_aligned_rows_are_made_once(three: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool.open(*three, vocabulary="union")
    size = sum(f.stat().st_size for f in pool.base.folder.glob("*.safetensors"))
    assert size < 2.1 * (1 + 3) * 27 * 16 * 4 + 10_000  # tensors of tokens alone, of base and experts
    monkeypatch.setattr("searchspaces.models.shards.write", None)
    again = Pool.open(*three, vocabulary="union")
    assert again.base.folder == pool.base.folder
    assert torch.equal(merged(again, at(again, 0.3)), merged(pool, at(pool, 0.3)))
    with pytest.raises(Inexpressible, match="one vocabulary"):
        to_mergekit(at(pool, 0.3), pool)


def test_the_base_is_another_where_an_expert_gives_it_other_rows(three: tuple[Path, dict[str, Path]]) -> None:
    before = Pool.open(*three, vocabulary="union").hashes()
    weights = load_file(three[1]["math"] / "model.safetensors")
    save_file({n: t + 1 for n, t in weights.items()}, three[1]["math"] / "model.safetensors", {"format": "pt"})
    after = Pool.open(*three, vocabulary="union").hashes()
    # tables of another expert are named by it and the base: they are about these rows
    assert after["base"] != before["base"] and {n for n in after if after[n] != before[n]} == {"base", "math"}


def test_other_weights_make_other_rows(three: tuple[Path, dict[str, Path]]) -> None:
    before = Pool.open(*three, vocabulary="union")
    weights = load_file(three[1]["math"] / "model.safetensors")
    save_file({n: t + 1 for n, t in weights.items()}, three[1]["math"] / "model.safetensors", {"format": "pt"})
    pool = Pool.open(*three, vocabulary="union")
    assert pool.base.folder != before.base.folder
    assert torch.equal(merged(pool, at(pool, 0))[25], weights[EMBEDDING][25] + 1)


def test_other_weights_of_the_same_size_and_time_make_other_rows(three: tuple[Path, dict[str, Path]]) -> None:
    before = Pool.open(*three, vocabulary="union")
    file = three[1]["math"] / "model.safetensors"
    weights, stat = load_file(file), file.stat()
    time.sleep(0.02)  # two changes within one tick of the file system's clock cannot be told apart
    save_file({n: t + 1 for n, t in weights.items()}, file, {"format": "pt"})
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as rsync -a and cp -p do
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    pool = Pool.open(*three, vocabulary="union")
    assert torch.equal(merged(pool, at(pool, 0))[25], weights[EMBEDDING][25] + 1)
    assert pool.hashes()["math"] != before.hashes()["math"] or pool.base.folder != before.base.folder


def test_the_same_models_elsewhere_have_the_same_rows(
    three: tuple[Path, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Pool.open(*three, vocabulary="union")
    for name in ("base", *three[1]):
        shutil.copytree(tmp_path / name, tmp_path / "copy" / name)
    monkeypatch.setattr("searchspaces.models.shards.write", None)
    again = Pool.open(tmp_path / "copy/base", {n: tmp_path / "copy" / n for n in three[1]}, vocabulary="union")
    assert again.base.folder == first.base.folder


def test_a_token_that_has_no_row_anywhere_is_none(tmp_path: Path) -> None:
    first = base(tmp_path / "base")
    forgotten = tokenizer(pico.expert(tmp_path / "forgotten", first, 1), ["<x>"])  # its embeddings were not resized
    with pytest.raises(PoolError, match=r"'forgotten' has 1 token that the base lacks \('<x>'\)"):
        Pool.open(first, {"forgotten": forgotten})
    pool = Pool.open(first, {"forgotten": forgotten}, vocabulary="union")
    assert merged(pool, at(pool, 1)).shape == (24, 16) and pool.base.folder == first


def test_a_run_with_a_union_is_searched_exported_and_reloaded(
    three: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    texts = [f"a {w} <think> {v} <sum> {w} <user>" for w in TRAINED[4:] for v in TRAINED[4:9]]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tmp_path / "job.yaml").write_text("""
name: union
models: {base: base, experts: {math: math, chat: chat, plain: plain}, vocabulary: union, sources: {"<think>": chat}}
space: {granularity: layer}
evaluators: [{kind: language, name: text, data: text.jsonl, text: text}]
objectives: [text.loss]
driver: {name: sobol}
budget: {evaluations: 12}
executor: {kind: inline}
""")
    run = Run.create(Job.load(tmp_path / "job.yaml"), tmp_path / "runs")
    run.search()
    folder = run.export("best", tmp_path / "out")
    read = hf.AutoTokenizer.from_pretrained(folder)
    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size == len(read) == 27 == model.lm_head.weight.shape[0]
    assert read.convert_tokens_to_ids(["<think>", "<sum>", "<user>"]) == [24, 25, 26]
    assert torch.equal(model.get_input_embeddings().weight[24], stored(three[1]["chat"])[25])


def test_a_first_job_says_which_vocabulary(three: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    from optimizer.jobs.starter import write_job

    first, experts = three
    write_job(str(first), [f"{n}={f}" for n, f in experts.items()], [], tmp_path / "added.yaml")
    assert Job.load(tmp_path / "added.yaml").models.vocabulary == "base"
    write_job(str(first), [f"plain={experts['plain']}"], [], tmp_path / "plain.yaml")
    assert Job.load(tmp_path / "plain.yaml").models.vocabulary is None


def test_task_vectors_of_one_vocabulary_can_be_processed(three: tuple[Path, dict[str, Path]]) -> None:
    pool = Pool.open(*three, vocabulary="union")
    made = processed(pool, "ties_once")
    space = CoefficientSpace([t.name for t in made.merged], made.names, "ties_once", granularity="model")
    recipe = space.decode(space.domain.start)
    resident = Resident(made)
    resident.write(recipe)
    rows = merged(made, recipe)
    assert torch.equal(resident.model.get_input_embeddings().weight, rows)
    assert torch.equal(rows[25], stored(three[1]["math"])[25])
    resident.write_expert("chat")
    assert torch.equal(resident.model.get_input_embeddings().weight[24], stored(three[1]["chat"])[25])


def test_an_adapter_is_of_the_base_whatever_tokens_others_added(tmp_path: Path, cache: Path) -> None:
    first = base(tmp_path / "base")
    experts = {
        "chat": expert(tmp_path / "chat", first, 1, ["<user>"]),
        "lora": pico.adapter(tmp_path / "lora", first, 2, target_modules=["q_proj", "down_proj"]),
    }
    pool = Pool.open(first, experts, vocabulary="union")
    assert set(pool.adapters) == {"lora"} and pool.layout()[0].shape == (25, 16)
    recipe = recipe_of(space_of(pool))
    resident = Resident(pool)
    resident.write(recipe)
    reloaded = load_model(exported(tmp_path / "out", pool, recipe))
    inputs = {"input_ids": torch.arange(25)[None]}
    assert torch.equal(reloaded(**inputs).logits, resident.model(**inputs).logits)
    tokenizer(tmp_path / "lora", ["<tool>"])
    with pytest.raises(PoolError, match=r"'lora' has 1 token that the base lacks"):
        Pool.open(first, {"lora": tmp_path / "lora"})
    experts["lora"] = pico.adapter(tmp_path / "rows", first, 2, target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(PoolError, match=r"'lora' changes 'model.embed_tokens.weight', whose rows"):
        Pool.open(first, experts, vocabulary="union")
    Pool.open(first, experts, vocabulary="base")


def test_no_room_for_rows_is_one_clear_error(
    three: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    space = namedtuple("space", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: space(10**9, 10**9, 1000))
    with pytest.raises(PoolError, match=r"0\.0 MB free, embeddings of one vocabulary need .* XDG_CACHE_HOME"):
        Pool.open(*three, vocabulary="union")
