"""What does every merge method owe? Properties over the whole table, and mergekit's numbers where it has the method."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from searchspaces import METHODS, CoefficientSpace, Pool, Recipe, processed
from searchspaces.errors import RecipeError
from searchspaces.materialise import merged_tensors
from searchspaces.method import Option
from searchspaces.methods import load

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = json.loads((GOLDEN / "index.json").read_text())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name in ("base", "expert1", "expert2", "expert3", "expert4"):
        made[name] = tmp_path_factory.mktemp(name)
        shutil.copyfile(GOLDEN / f"{name}.safetensors", made[name] / "model.safetensors")
        (made[name] / "config.json").write_text('{"model_type": "golden"}')
    for seed, name in enumerate(("adapter1", "adapter2")):
        made[name] = tmp_path_factory.mktemp(name)
        draw = torch.Generator().manual_seed(seed)
        factors = {}
        for module in ("layers.0.mlp", "layers.1.attn", "layers.1.mlp"):
            rows, columns = load_file(GOLDEN / "base.safetensors")[f"{module}.weight"].shape
            factors[f"{module}.lora_A.weight"] = torch.randn(3, columns, generator=draw)
            factors[f"{module}.lora_B.weight"] = torch.randn(rows, 3, generator=draw)
        save_file(factors, made[name] / "adapter_model.safetensors")
        (made[name] / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 1}')
    return made


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pool_of(folders: dict[str, Path], names: list[str], method: str) -> Pool:
    """What the method merges: where it processes task vectors, experts with those."""
    return processed(Pool.open(folders["base"], {n: folders[n] for n in names}), method)


def recipe_of(pool: Pool, method: str, rows: list[float], options: dict[str, Option] | None = None) -> Recipe:
    space = CoefficientSpace(
        [t.name for t in pool.merged], pool.names, method, options, "model", bounds=(-4.0, 4.0), start=0.0
    )
    return space.decode(np.array(rows))


@pytest.mark.parametrize("case", CASES, ids=[c["file"] for c in CASES])
def test_the_weights_are_mergekits(case: dict, folders: dict[str, Path]) -> None:
    pool = pool_of(folders, case["experts"], case["method"])
    options = {k: v for k, v in case["parameters"].items() if k != "weight"}
    merged = dict(merged_tensors(pool, recipe_of(pool, case["method"], case["parameters"]["weight"], options)))
    expected = load_file(GOLDEN / case["file"])
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-5)


COMPANIES = pytest.mark.parametrize(
    "names",
    [
        ["expert1", "expert2", "expert3", "expert4"],
        ["adapter1", "adapter2"],
        ["expert1", "adapter1", "expert2", "adapter2"],
    ],
    ids=["whole", "adapters", "mixed"],
)


@COMPANIES
@pytest.mark.parametrize("method", METHODS)
def test_zero_coefficients_give_the_base_bit_for_bit(method: str, names: list[str], folders: dict[str, Path]) -> None:
    pool = pool_of(folders, names, method)
    for name, tensor in merged_tensors(pool, recipe_of(pool, method, [0.0] * len(names))):
        assert torch.equal(tensor, pool.base.tensor(name))


@COMPANIES
@pytest.mark.parametrize("method", METHODS)
def test_one_expert_at_the_methods_unit_is_that_expert(method: str, names: list[str], folders: dict[str, Path]) -> None:
    pool = pool_of(folders, names, method)
    unit = load(method)(load(method).defaults).unit
    for name, tensor in merged_tensors(pool, recipe_of(pool, method, [0.0, unit, 0.0, 0.0][: len(names)])):
        torch.testing.assert_close(tensor, pool.experts[names[1]].tensor(name), rtol=1e-6, atol=1e-6)


@COMPANIES
@pytest.mark.parametrize("method", METHODS)
def test_permuting_experts_with_their_coefficients_changes_nothing(
    method: str, names: list[str], folders: dict[str, Path]
) -> None:
    rows = [0.5, -0.2, 0.7, 0.1][: len(names)]
    one, other = pool_of(folders, names, method), pool_of(folders, names[::-1], method)
    there = dict(merged_tensors(other, recipe_of(other, method, rows[::-1])))
    for name, tensor in merged_tensors(one, recipe_of(one, method, rows)):
        torch.testing.assert_close(tensor, there[name], rtol=1e-5, atol=1e-6)
    # a recipe names its experts: another order of the pool's is the same merge, to the bit of that order
    for name, tensor in merged_tensors(other, recipe_of(one, method, rows)):
        assert torch.equal(tensor, there[name])


@pytest.mark.parametrize("method", METHODS)
def test_scales_have_a_row_per_group(method: str) -> None:
    base, experts = load(method)(load(method).defaults).mix(np.array([[0.1, 0.2, 0.3], [0.0, 0.0, 0.0]]))
    assert base.shape == (2,) and experts.shape == (2, 3)
    assert np.isfinite(base).all() and np.isfinite(experts).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_chain_rule_is_the_derivative_of_the_scales(method: str) -> None:
    rule = load(method)(load(method).defaults)
    draw = np.random.default_rng(0)
    coefficients, slopes = draw.uniform(0.1, 1.0, (3, 4)), (draw.normal(size=3), draw.normal(size=(3, 4)))
    found = rule.pull(coefficients, slopes)
    assert found.shape == (3, 4)
    for i in np.ndindex(3, 4):
        step = np.zeros((3, 4))
        step[i] = 1e-6
        ahead, behind = (rule.mix(coefficients + s) for s in (step, -step))
        change = sum(float(((a - b) * slope).sum()) for a, b, slope in zip(ahead, behind, slopes, strict=True))
        assert found[i] == pytest.approx(change / 2e-6, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_says_what_it_has_been_processed_for(method: str, folders: dict[str, Path]) -> None:
    raw = Pool.open(folders["base"], {n: folders[n] for n in ("expert1", "expert2")})
    pool = processed(raw, method)
    assert bool(pool.processing) == load(method).processes and pool.original is raw
    assert pool.names == raw.names and pool.merged == raw.merged
    for info in pool.merged if load(method).processes else ():
        found = [e.tensor(info.name) for e in pool.experts.values()]
        assert all(t.shape == info.shape and t.isfinite().all() for t in found)


@pytest.mark.parametrize("method", METHODS)
def test_options_that_do_not_exist_or_do_not_fit_are_refused(method: str, folders: dict[str, Path]) -> None:
    pool = pool_of(folders, ["expert1"], method)
    with pytest.raises(RecipeError, match="no option 'speed'; there are"):
        recipe_of(pool, method, [0.1], {"speed": 1.0})
    for key, default in load(method).defaults.items():
        with pytest.raises(RecipeError, match=f"option {key} must be"):
            recipe_of(pool, method, [0.1], {key: 1.5 if isinstance(default, str) else "much"})


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match="did you mean 'task_arithmetic'"):
        load("task_aritmetic")


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("task_arithmetic", {"lambda": 0}, "lambda is 0"),
        ("ties_once", {"lambda": 0}, "lambda is 0"),
        ("ties_once", {"density": 0.0}, "above 0 and at most 1"),
        ("ties_once", {"density": 1.1}, "above 0 and at most 1"),
        ("ties_once", {"scope": "layer"}, "expected model or tensor"),
    ],
)
def test_options_that_make_no_merge_are_refused(method: str, options: dict[str, Option], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        CoefficientSpace(["a.w"], ["x"], method, options)
