"""Is a LoRA of an encoder-decoder or a mixture of experts what PEFT makes of it? Against its densified twin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import torch
from families import FAMILIES, Family
from safetensors.torch import load_file, save_file
from test_families import exported, loss, outputs, recipe_of, same, space_of

from optimizer import Job, Run
from searchspaces import Pool, Resident
from searchspaces.adapters.concatenate import write_adapter
from searchspaces.errors import Inexpressible, PoolError
from searchspaces.models.loading import load_model
from searchspaces.weights.materialise import merged_tensors

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", {"target_modules": ["q", "v", "wi", "wo"]}),
    "t5, all": ("t5", {}),
    "bart": ("bart", {"target_modules": ["q_proj", "fc1"]}),
    "mixtral": ("mixtral", {"target_modules": ["q_proj", "o_proj"]}),
    "mixtral, experts": ("mixtral", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "mixtral, half of the experts": ("mixtral", {"target_modules": [], "target_parameters": EXPERTS[1:]}),
    "qwen2_moe": ("qwen2_moe", {"target_modules": ["q_proj", "shared_expert.up_proj"]}),
    "qwen2_moe, experts": ("qwen2_moe", {"target_modules": ["v_proj"], "target_parameters": EXPERTS}),
    "olmoe, ranks": (
        "olmoe",
        {
            "target_modules": ["q_proj"],
            "target_parameters": EXPERTS,
            "rank_pattern": {"experts.down_proj": 3, "0.mlp.experts.gate_up_proj": 2},
            "alpha_pattern": {"gate_up_proj": 5},
            "use_rslora": False,
        },
    ),
    "deepseek_v3, experts": ("deepseek_v3", {"target_modules": ["o_proj"], "target_parameters": EXPERTS}),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def world(folder: Path, case: str) -> tuple[Family, Pool, Pool]:
    """Two adapters of other ranks, and the same as whole models."""
    name, options = CASES[case]
    base = FAMILIES[name].save(folder / "base")
    loras, twins = {}, {}
    for seed, rank in ((1, 2), (2, 4)):
        key = f"e{seed}"
        loras[key] = pico.adapter(folder / key, base, seed, **{"r": rank, **options})
        twins[key] = pico.densified(folder / f"twin{seed}", base, loras[key])
    return FAMILIES[name], Pool.open(base, loras), Pool.open(base, twins)


@pytest.mark.parametrize("case", CASES)
def test_merge_answers_and_gradient_are_those_of_densified_twins(tmp_path: Path, case: str) -> None:
    family, pool, twins = world(tmp_path, case)
    recipe, other = recipe_of(space_of(pool, "module")), recipe_of(space_of(twins, "module"))
    merged = dict(merged_tensors(twins, other))
    changed = 0
    for name, tensor in merged_tensors(pool, recipe):
        torch.testing.assert_close(tensor, merged[name], rtol=1e-5, atol=1e-6)
        changed += not torch.equal(tensor, pool.base.tensor(name))
    assert changed == len({n for a in pool.adapters.values() for n in a.low}) > 1
    found = []
    for one, said in ((pool, recipe), (twins, other)):
        resident = Resident(one)
        before = outputs(resident.model, family)
        resident.write(said)
        after = outputs(resident.model, family)
        assert not same(before, after)
        with resident.tracking():
            loss(resident.model, family).backward()
            found.append((after, resident.gradient(said)))
    for ours, theirs in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    scale = np.abs(found[1][1]).max()
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-5 * scale)


SCORE = """
import torch
def score(model, rows, tokenizer):
    tokens = torch.tensor([row["tokens"] for row in rows])
    with torch.no_grad():
        logits = model(input_ids=tokens, labels=tokens.flip(1)).logits
    losses = torch.nn.functional.cross_entropy(logits.movedim(2, 1), tokens.flip(1), reduction="none")
    return {"loss": losses.mean(1)}
"""


def test_a_search_over_adapters_of_an_encoder_decoder_scores_as_over_whole_models(tmp_path: Path) -> None:
    world(tmp_path, "t5")
    draw = np.random.default_rng(0)
    rows = [{"tokens": draw.integers(3, 40, 6).tolist()} for _ in range(24)]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "score.py").write_text(SCORE)
    found = []
    for name, (one, two) in {"adapters": ("e1", "e2"), "twins": ("twin1", "twin2")}.items():
        job = tmp_path / f"{name}.yaml"
        job.write_text(f"""
name: {name}
models: {{base: base, experts: {{one: {one}, two: {two}}}}}
space: {{granularity: layer}}
evaluators: [{{kind: function, name: f, function: "score.py:score", metrics: {{loss: min}}, data: items.jsonl}}]
objectives: [f.loss]
driver: {{name: sobol}}
budget: {{evaluations: 6}}
executor: {{kind: inline}}
""")
        run = Run.create(Job.load(job), tmp_path / "runs", allow_code=True)
        run.search(allow_code=True)
        found.append({n: c.measures["f.loss"].value for n, c in run.results().candidates.items()})
    assert found[0] == pytest.approx(found[1], abs=1e-5) and len(set(found[0].values())) == len(found[0]) == 6


@pytest.mark.parametrize("case", ["t5", "mixtral, experts"])
def test_an_export_answers_as_what_was_resident(tmp_path: Path, case: str) -> None:
    family, pool, _ = world(tmp_path, case)
    resident, recipe = Resident(pool), recipe_of(space_of(pool))
    resident.write(recipe)
    assert same(outputs(load_model(exported(tmp_path / "out", pool, recipe)), family), outputs(resident.model, family))


def test_the_pool_of_a_mixtures_adapters_is_as_large_as_their_files(tmp_path: Path) -> None:
    _, pool, twins = world(tmp_path, "mixtral, experts")
    for name, adapter in pool.adapters.items():
        assert adapter.bytes < (tmp_path / name / "adapter_model.safetensors").stat().st_size < twins.bytes / 2
        source = adapter.source("model.layers.0.block_sparse_moe.experts.2.w3.weight")
        file = adapter._file.tensor(adapter.low["model.layers.0.block_sparse_moe.experts.2.w3.weight"].b)
        assert source is not None and not isinstance(source, torch.Tensor)
        assert source.left.untyped_storage().data_ptr() == file.untyped_storage().data_ptr()  # a view of what is mapped


def test_t5_leaves_as_one_adapter_and_stacked_experts_do_not(tmp_path: Path) -> None:
    _, pool, _ = world(tmp_path, "t5")
    recipe = recipe_of(space_of(pool))
    (tmp_path / "out").mkdir()
    write_adapter(tmp_path / "out", pool, recipe, None, "base")
    twin = load_file(pico.densified(tmp_path / "one", pool.base.folder, tmp_path / "out") / "model.safetensors")
    for name, tensor in merged_tensors(pool, recipe):
        torch.testing.assert_close(twin[name], tensor, rtol=1e-5, atol=1e-6)
    (tmp_path / "moe").mkdir()
    _, pool, _ = world(tmp_path / "moe", "mixtral, experts")
    with pytest.raises(Inexpressible, match=r"'e1' adapts a parameter of which .*experts.*export the merged weights"):
        write_adapter(tmp_path / "moe", pool, recipe_of(space_of(pool)), None, "base")


def test_experts_that_are_stored_as_one_tensor_are_refused(tmp_path: Path) -> None:
    base = FAMILIES["granitemoe"].save(tmp_path / "base")
    lora = pico.adapter(tmp_path / "lora", base, 1, target_modules=["q_proj"], target_parameters=EXPERTS)
    with pytest.raises(
        PoolError, match=r"expert 'lora'.*experts\..*_proj' .* not stored as one matrix an expert; merge"
    ):
        Pool.open(base, {"lora": lora})


def test_factors_that_fit_no_stacked_parameter_are_refused(tmp_path: Path) -> None:
    base = FAMILIES["mixtral"].save(tmp_path / "base")
    lora = pico.adapter(tmp_path / "lora", base, 1, r=2, target_modules=["q_proj"], target_parameters=EXPERTS)
    file, config = lora / "adapter_model.safetensors", lora / "adapter_config.json"
    tensors, said = load_file(file), json.loads(config.read_text())
    name = next(n for n in tensors if "experts.lora_A" in n)
    save_file({**tensors, name: tensors[name][:, :5].contiguous()}, file)
    with pytest.raises(PoolError, match=r"has factors \(8, 5\) and .*, which do not say of what; merge it into"):
        Pool.open(base, {"lora": lora})
    save_file({n: t for n, t in tensors.items() if n != name}, file)
    with pytest.raises(PoolError, match=r"has factors \(\) and .*, which do not say of what"):
        Pool.open(base, {"lora": lora})
    save_file(tensors, file)
    config.write_text(json.dumps({**said, "r": 3, "rank_pattern": {"q_proj": 2}}))
    with pytest.raises(PoolError, match=r"of 4 experts has factors \(8, .*expected rank 3 for each as its config says"):
        Pool.open(base, {"lora": lora})
    config.write_text(json.dumps({**said, "target_parameters": None}))
    with pytest.raises(PoolError, match=r"adapts 'model\.layers\.0\.mlp\.experts.*', but the base has no tensor"):
        Pool.open(base, {"lora": lora})
