"""Is a LoRA expert what PEFT says it is, to the digit, without ever being a whole model? And is all else refused?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import torch
from safetensors.torch import load_file, save_file

from searchspaces import CoefficientSpace, Pool, Recipe, Resident, processed
from searchspaces.adapters.adapter import Adapter
from searchspaces.adapters.lowrank import LowRank
from searchspaces.errors import Inexpressible, PoolError
from searchspaces.mergekit import to_mergekit
from searchspaces.weights.materialise import merged_tensors

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def recipe_of(pool: Pool, granularity: str = "tensor", value: float | None = None, **options: Any) -> Recipe:
    names = [t.name for t in pool.merged]
    space = CoefficientSpace(names, pool.names, granularity=granularity, bounds=(-2.0, 2.0), **options)
    count = len(space.domain.names)
    return space.decode(np.full(count, value) if value is not None else np.random.default_rng(count).random(count))


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "bert": ("bert", {"lora_alpha": 3}),
    "roots and patterns": (
        "llama",
        {
            "use_rslora": True,
            "rank_pattern": {r"layers\.1\.mlp\..*": 2, "q_proj": 3},
            "alpha_pattern": {"^model.layers.0.self_attn.k_proj": 5.5, "down_proj": 1},
        },
    ),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "conv1d and linear": ("gpt2 untied", {"target_modules": ["c_attn", "c_proj", "lm_head"]}),
    "embeddings": ("bert", {"target_modules": ["word_embeddings", "position_embeddings", "query"]}),
    "untied embeddings": ("llama untied", {"target_modules": ["embed_tokens", "lm_head", "o_proj"]}),
    "whole tensors": ("llama", {"modules_to_save": ["norm"], "target_modules": ["v_proj"]}),
    "biases": ("bert", {"bias": "all", "target_modules": ["query", "dense"]}),
    "biases of adapted layers": ("gpt2", {"bias": "lora_only", "target_modules": ["c_attn"]}),
    "renamed": ("vit", {"bias": "lora_only"}),
    "convolution": ("vit", {"target_modules": ["projection", "fc1"]}),
}


def world(folder: Path, case: str, dtype: torch.dtype = F32) -> tuple[Path, Path]:
    kind, options = KINDS[case]
    kind, _, untied = kind.partition(" ")
    changes = {"tie_word_embeddings": False} if untied else {}
    base = pico.base(folder / "base", kind, dtype=dtype, **changes)
    return base, pico.adapter(folder / "lora", base, 1, **options)


@pytest.mark.parametrize("case", KINDS)
def test_with_coefficient_1_it_is_what_peft_merges(tmp_path: Path, case: str) -> None:
    base, lora = world(tmp_path, case)
    twin = load_file(pico.densified(tmp_path / "twin", base, lora) / "model.safetensors")
    pool = Pool.open(base, {"lora": lora})
    found = dict(merged_tensors(pool, recipe_of(pool, "model", 1.0)))
    assert found.keys() == twin.keys()
    changed = [n for n, t in twin.items() if not torch.equal(t, pool.base.tensor(n))]
    adapter = pool.adapters["lora"]
    assert set(changed) == adapter.low.keys() | adapter.full.keys()
    for name, tensor in twin.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(adapter.tensor(name), tensor, rtol=1e-6, atol=1e-6)


def test_a_classifiers_adapter_brings_its_head_and_has_its_trunk_under_another_prefix(tmp_path: Path) -> None:
    base = pico.base(tmp_path / "base", "bert")
    lora = pico.adapter(tmp_path / "lora", base, 1, "BertForSequenceClassification", task_type="SEQ_CLS", r=2)
    twin = load_file(
        pico.densified(tmp_path / "twin", base, lora, "BertForSequenceClassification") / "model.safetensors"
    )
    with pytest.raises(
        PoolError, match=r"'classifier\.bias'.*that the base lacks; add 'classifier\.\*' to models\.heads"
    ):
        Pool.open(base, {"lora": lora})
    pool = Pool.open(base, {"lora": lora}, heads=["classifier.*"])
    for name, tensor in merged_tensors(pool, recipe_of(pool, "model", 1.0)):
        torch.testing.assert_close(tensor, twin[f"bert.{name}"], rtol=1e-6, atol=1e-6)
    assert torch.equal(pool.heads["lora"]["classifier.weight"], twin["classifier.weight"])


def mixed(folder: Path, kind: str = "llama", dtype: torch.dtype = F32) -> Pool:
    """A full expert, and adapters of other ranks, places and dtypes before and behind it."""
    base = pico.base(folder / "base", kind, dtype=dtype)
    wide = pico.adapter(folder / "wide", base, 2, r=9)
    tensors = load_file(wide / WEIGHTS)
    save_file({n: t.to(BF16) for n, t in tensors.items()}, wide / WEIGHTS)
    half = pico.adapter(folder / "half", base, 3, r=1)
    tensors = load_file(half / WEIGHTS)
    save_file({n: t.to(F16) for n, t in tensors.items()}, half / WEIGHTS)
    few = pico.adapter(folder / "few", base, 4, target_modules=r".*\.1\..*(q_proj|up_proj|query|fc1)")
    experts = {"wide": wide, "full": pico.expert(folder / "full", base, 1), "few": few, "half": half}
    return Pool.open(base, experts)


@pytest.mark.parametrize("kind", ["llama", "vit"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_full_experts_and_adapters_of_several_ranks_add_up(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    pool = mixed(tmp_path, kind, dtype)
    recipe = recipe_of(pool)
    found = dict(merged_tensors(pool, recipe))
    tight = {F32: (1e-5, 1e-6), BF16: (8e-3, 1e-4), F16: (1e-3, 1e-5)}[dtype]
    for group, row in zip(recipe.groups, recipe.coefficients, strict=True):
        first = pool.base.tensor(group).double()
        wanted = first + sum(
            c * (e.tensor(group).double() - first) for c, e in zip(row, pool.experts.values(), strict=True)
        )
        torch.testing.assert_close(found[group].double(), wanted, rtol=tight[0], atol=tight[1])


@pytest.mark.parametrize("kind", ["llama", "vit"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_the_resident_model_has_an_exports_bits_with_any_number_of_threads(
    tmp_path: Path, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = mixed(tmp_path, kind, dtype)
    recipe = recipe_of(pool)
    merged = dict(merged_tensors(pool, recipe))
    for threads, slice_ in ((1, 1 << 21), (3, 100)):
        monkeypatch.setattr("searchspaces.weights.merger.SLICE", slice_)  # that cuts rows in pieces
        resident = Resident(pool, threads=threads)
        resident.write(recipe_of(pool, "model", 0.9))  # whatever was there before
        resident.write(recipe)
        for tensor in pool.merged:
            assert torch.equal(resident._rooms[tensor.name], merged[tensor.name].view(-1)), tensor.name


def test_an_expert_with_coefficient_0_and_one_that_leaves_a_tensor_alone_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = mixed(tmp_path)
    read: list[str] = []
    original = LowRank.__init__

    def noted(self: LowRank, *args: Any) -> None:
        original(self, *args)
        read.append("low")

    monkeypatch.setattr(LowRank, "__init__", noted)
    few = pool.adapters["few"]
    assert [n for n in few.tensors if few.source(n) is not None] == sorted(few.low, key=list(few.tensors).index)
    assert len(read) == len(few.low) and len(few.low) == 2
    space = CoefficientSpace([t.name for t in pool.merged], pool.names, granularity="model")
    for name, tensor in merged_tensors(pool, space.decode(np.zeros(4))):
        assert torch.equal(tensor, pool.base.tensor(name))


def test_the_resident_model_becomes_the_adapted_model(tmp_path: Path) -> None:
    pool = mixed(tmp_path)
    resident = Resident(pool)
    for name in ("wide", "few", "full"):
        k = pool.names.index(name)
        space = CoefficientSpace([t.name for t in pool.merged], pool.names, granularity="model", bounds=(0.0, 1.0))
        resident.write(space.decode(np.eye(4)[k]))
        merged = {n: t.clone() for n, t in resident.model.state_dict().items()}
        resident.write_expert(name)
        for tensor, found in resident.model.state_dict().items():
            torch.testing.assert_close(found, merged[tensor], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_processing_densifies_one_tensor_at_a_time(tmp_path: Path, scope: str) -> None:
    base, lora = world(tmp_path, "llama")
    full = pico.expert(tmp_path / "full", base, 5)
    twin = pico.densified(tmp_path / "twin", base, lora)
    options = {"scope": scope, "density": 0.4}
    one = processed(Pool.open(base, {"lora": lora, "full": full}), "ties_once", options)
    other = processed(Pool.open(base, {"lora": twin, "full": full}), "ties_once", options)
    recipe = recipe_of(one, "layer", method="ties_once", options=options)
    there = dict(merged_tensors(other, recipe))
    for name, tensor in merged_tensors(one, recipe):
        torch.testing.assert_close(tensor, there[name], rtol=1e-5, atol=1e-6)
    assert one.original.adapters.keys() == {"lora"}


def test_a_pool_says_which_experts_are_adapters(tmp_path: Path) -> None:
    pool = mixed(tmp_path)
    assert list(pool.adapters) == ["wide", "few", "half"] and pool.adapters["wide"].ranks == (9,)
    assert "adapter few: rank 4, 2 tensors of low rank, 0.0 MB" in pool.describe()
    assert pool.adapters["half"].bytes < pool.base.bytes / 2


def test_the_content_hash_covers_config_and_weights(tmp_path: Path) -> None:
    base, lora = world(tmp_path, "llama")
    before = Pool.open(base, {"lora": lora}).hashes()
    edit(lora, lambda config: config.update(lora_alpha=9))
    other = Pool.open(base, {"lora": lora}).hashes()
    assert other["lora"] != before["lora"] and other["base"] == before["base"]
    tensors = load_file(lora / WEIGHTS)
    first = next(iter(tensors))
    save_file({**tensors, first: tensors[first] + 1}, lora / WEIGHTS)
    assert Pool.open(base, {"lora": lora}).hashes()["lora"] not in (before["lora"], other["lora"])
    save_file({**tensors, first: tensors[first] * float("nan")}, lora / WEIGHTS)
    with pytest.raises(PoolError, match=r"expert 'lora': tensor '.*lora_A\.weight' has NaN or infinity"):
        Pool.open(base, {"lora": lora}).hashes()


def test_mergekit_is_told_that_it_cannot(tmp_path: Path) -> None:
    base, lora = world(tmp_path, "llama")
    pool = Pool.open(base, {"lora": lora})
    with pytest.raises(Inexpressible, match=r"expert 'lora' is an adapter.*merge_and_unload"):
        to_mergekit(recipe_of(pool), pool)


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, r"adapter of the type 'LOHA', expected LORA"),
        ({"peft_type": None}, r"adapter of the type None, expected LORA"),
        ({"use_dora": True}, r"use_dora is set, and DoRA scales every row"),
        ({"alora_invocation_tokens": [1]}, r"acts on some tokens only"),
        ({"layer_replication": [[0, 2]]}, r"makes layers that the base does not have"),
        ({"trainable_token_indices": [3]}, r"single rows of the embeddings"),
        ({"init_lora_weights": "pissa_niter_4"}, r"begins by changing the base's weights"),
        ({"use_brilliance": {"much": True}}, r"'use_brilliance' is not known here"),
        ({"r": 0}, r"r must be a whole number of at least 1, got 0"),
        ({"r": True}, r"r must be a whole number of at least 1, got True"),
        ({"lora_alpha": "8"}, r"lora_alpha must be a finite number, got '8'"),
        ({"lora_alpha": None}, r"lora_alpha must be a finite number"),
        ({"use_rslora": "yes"}, r"use_rslora must be true or false"),
        ({"rank_pattern": ["q_proj"]}, r"rank_pattern must map patterns to numbers"),
        ({"rank_pattern": {"q_proj": 2.5}}, r"rank_pattern must be a whole number"),
        ({"rank_pattern": {"q_proj": 3}}, r"q_proj' has factors \(4, 16\) and \(16, 4\), expected rank 3"),
        ({"alpha_pattern": {"(": 1}}, r"is no regular expression"),
        ({"alpha_pattern": {"(a+)+b": 1}}, r"is too complex"),
        ({"alpha_pattern": {".*.*.*.*.*x": 1}}, r"is too complex"),
        ({"alpha_pattern": {".?" * 24 + "x": 1}}, r"is too complex"),
        ({"r": 8}, r"factors .* expected rank 8 as its config says"),
    ],
)
def test_what_is_no_low_rank_task_vector_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    base, lora = world(tmp_path, "llama")
    edit(lora, lambda config: config.update(changes))
    with pytest.raises(PoolError, match=rf"(?s)expert 'lora'.*{message}"):
        Pool.open(base, {"lora": lora})


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{Q}.lora_B.weight"), r"q_proj' does not have two factors"),
        (lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(16)}), r"DoRA scales every row"),
        (lambda t: t.update({f"{Q}.lora_C.weight": torch.ones(2, 2)}), r"neither a factor nor a tensor of the model"),
        (lambda t: t.update({f"{Q}.lora_B.bias": torch.ones(16)}), r"neither a factor nor a tensor of the model"),
        (lambda t: t.update({f"{Q}.weight": torch.ones(16, 16)}), r"is stored whole beside its factors"),
        (lambda t: t.update({f"{Q}.base_layer.weight": torch.ones(16, 16)}), r"is not the base's"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 17)}), r"do not make the base's tensor .* \(16, 16\)"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 16).int()}), r"int32, which cannot be merged"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4)}), r"factors \(4,\)"),
        (lambda t: t.update({Q[17:] + ".lora_A.weight": torch.ones(4, 16)}), r"are the same tensor"),
        (
            lambda t: t.update(
                {"model.x.lora_A.weight": torch.ones(4, 16), "model.x.lora_B.weight": torch.ones(16, 4)}
            ),
            r"adapts 'model\.x', but the base has no tensor 'model\.x\.weight'",
        ),
        (lambda t: t.update({"model.norm.weight": torch.ones(3)}), r"'model\.norm\.weight' has shape \(3,\)"),
        (lambda t: t.update({"model.odd.weight": torch.ones(3)}), r"tensor 'model\.odd\.weight' .* the base lacks"),
        (lambda t: t.clear(), r"holds no tensors"),
    ],
)
def test_tensors_that_make_no_sense_are_refused(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    base, lora = world(tmp_path, "llama")
    tensors = load_file(lora / WEIGHTS)
    change(tensors)
    save_file(tensors, lora / WEIGHTS)
    with pytest.raises(PoolError, match=rf"(?s)expert 'lora'.*{message}"):
        Pool.open(base, {"lora": lora})


def test_two_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    base, lora = world(tmp_path, "renamed")
    tensors = load_file(lora / WEIGHTS)
    new, old = "base_model.model.layers.0.attention.q_proj", "encoder.layer.0.attention.attention.query"
    for factor in ("lora_A.weight", "lora_B.weight"):
        tensors[f"{old}.{factor}"] = tensors[f"{new}.{factor}"].clone()
    save_file(tensors, lora / WEIGHTS)
    with pytest.raises(PoolError, match=rf"two modules share the base's tensor '{old}\.weight'"):
        Pool.open(base, {"lora": lora})
    tensors = {n: t for n, t in tensors.items() if not n.startswith(old)}
    tensors[f"{old}.bias"] = tensors[f"{new}.base_layer.bias"].clone()
    save_file(tensors, lora / WEIGHTS)
    with pytest.raises(PoolError, match=r"two of its whole tensors are the same tensor of the base"):
        Pool.open(base, {"lora": lora})


def test_an_adapter_of_another_base_a_pickle_and_a_truncated_file_are_refused(tmp_path: Path) -> None:
    base, lora = world(tmp_path, "llama")
    other = pico.base(tmp_path / "other", "llama", hidden_size=32)
    with pytest.raises(PoolError, match=r"expert 'lora': module .* do not make the base's tensor"):
        Pool.open(other, {"lora": lora})
    with pytest.raises(PoolError, match=r"an adapter can be an expert, not a base"):
        Pool.open(lora, {"lora": lora})
    data = (lora / WEIGHTS).read_bytes()
    (lora / WEIGHTS).write_bytes(data[:-1])
    with pytest.raises(PoolError, match=r"expert 'lora': .* is truncated"):
        Pool.open(base, {"lora": lora})
    (lora / WEIGHTS).rename(lora / "adapter_model.bin")
    with pytest.raises(PoolError, match=r"has no adapter_model\.safetensors; only safetensors are read"):
        Pool.open(base, {"lora": lora})
    (lora / CONFIG).write_text("[")
    with pytest.raises(PoolError, match=r"cannot be read as JSON"):
        Pool.open(base, {"lora": lora})


@pytest.mark.parametrize("targets", [["lm_head", "q_proj"], ["embed_tokens", "q_proj"]])
def test_of_tied_weights_an_adapter_cannot_change_one(tmp_path: Path, targets: list[str]) -> None:
    base = pico.base(tmp_path / "base", "llama", tie_word_embeddings=True)
    lora = pico.adapter(tmp_path / "lora", base, 1, target_modules=targets)
    with pytest.raises(PoolError, match=r"tied to"):
        Pool.open(base, {"lora": lora})


def test_tied_weights_that_are_stored_whole_are_merged_where_both_are_the_same(tmp_path: Path) -> None:
    base = pico.base(tmp_path / "base", "llama", tie_word_embeddings=True)
    lora = pico.adapter(tmp_path / "lora", base, 1, target_modules=["q_proj"])
    tensors, embedding = load_file(lora / WEIGHTS), "base_model.model.model.embed_tokens.weight"
    own = torch.randn_like(load_file(base / "model.safetensors")["model.embed_tokens.weight"])
    save_file({**tensors, embedding: own}, lora / WEIGHTS)
    with pytest.raises(PoolError, match=r"tied to the output layer, and the adapter changes only one of the two"):
        Pool.open(base, {"lora": lora})
    save_file({**tensors, embedding: own, "base_model.model.lm_head.weight": own.clone()}, lora / WEIGHTS)
    pool = Pool.open(base, {"lora": lora})
    found = dict(merged_tensors(pool, recipe_of(pool, "model", 1.0)))
    torch.testing.assert_close(found["model.embed_tokens.weight"], own, rtol=1e-6, atol=1e-6)


def test_a_square_layer_is_turned_as_its_module_is_whatever_the_config_says(tmp_path: Path) -> None:
    base, lora = world(tmp_path, "conv1d")
    twin = load_file(pico.densified(tmp_path / "twin", base, lora) / "model.safetensors")
    edit(lora, lambda config: config.update(fan_in_fan_out=False))
    pool = Pool.open(base, {"lora": lora})
    name = "transformer.h.0.attn.c_proj.weight"
    torch.testing.assert_close(pool.adapters["lora"].tensor(name), twin[name], rtol=1e-6, atol=1e-6)


def test_names_need_no_prefix(tmp_path: Path) -> None:
    base, lora = world(tmp_path, "llama")
    before = Pool.open(base, {"lora": lora}).adapters["lora"]
    tensors = load_file(lora / WEIGHTS)
    save_file({n.removeprefix("base_model.model."): t for n, t in tensors.items()}, lora / WEIGHTS)
    after = Pool.open(base, {"lora": lora}).adapters["lora"]
    assert isinstance(after, Adapter) and after.low.keys() == before.low.keys()
