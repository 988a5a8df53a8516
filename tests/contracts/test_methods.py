"""What does every merge method owe? Properties over the whole table, and mergekit's numbers where it has the method."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import CASES, GOLDEN, IDS, expected, models, said
from naive import NaiveFacts
from safetensors.torch import load_file, save_file

from searchspaces import METHODS, Pool, Recipe, processed
from searchspaces.errors import RecipeError
from searchspaces.method import Method
from searchspaces.methods import load
from searchspaces.option import Choice, Flag, Number, Option, complete
from searchspaces.row import Row
from searchspaces.weights.compositions import Compositions
from searchspaces.weights.materialise import merged_tensors
from searchspaces.weights.packed import Packed
from searchspaces.weights.sources import Sources

LINEAR = [name for name in METHODS if load(name).linear]
RANDOM = [name for name in METHODS if load(name).random]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Golden models, the same in bf16, and adapters of the golden base."""
    made = {}
    for name in ("base", "expert1", "expert2", "expert3", "expert4"):
        state = load_file(GOLDEN / f"{name}.safetensors")
        made[name] = written(tmp_path_factory.mktemp(name), state)
        made[f"{name}-bf16"] = written(
            tmp_path_factory.mktemp(f"{name}-bf16"), {n: t.bfloat16() for n, t in state.items()}
        )
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


def written(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    """A checkpoint's folder."""
    save_file({name: t.contiguous() for name, t in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "golden"}')
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pool_of(
    folders: dict[str, Path],
    names: list[str],
    method: str,
    options: dict[str, Option] | None = None,
    base: str = "base",
) -> Pool:
    """What the method merges: where it processes task vectors, experts with those."""
    pool = Pool.open(folders[base], {n: folders[n] for n in names})
    return processed(pool, method, options, statistics=statistics(folders, names, method))


def statistics(folders: dict[str, Path], names: list[str], method: str) -> dict[str, Path]:
    """What a method that gathers statistics of experts is given: of each expert its own, of matrices alone."""
    kind = getattr(load(method), "gathers", "")
    found = {name: folders[name].with_name(f"{folders[name].name}-{kind}") for name in names if kind}
    for name, home in found.items():
        if not home.exists():
            home.mkdir()
            draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            matrices = {n: t.shape for n, t in load_file(GOLDEN / "base.safetensors").items() if t.dim() == 2}
            made = {n: STATISTICS[kind](torch.randn(shape, generator=draw)) for n, shape in matrices.items()}
            save_file(made, home / "statistics.safetensors")
    return found


STATISTICS = {"fisher": torch.square, "gram": lambda drawn: drawn.T @ drawn}
"""How they look, out of random numbers of a merged tensor's shape."""


def recipe_of(
    pool: Pool, method: str, rows: list[float], options: dict[str, Option] | None = None, seed: int = 0
) -> Recipe:
    """One group, its coefficients in the pool's order."""
    found = complete(method, load(method).options, options or {})
    groups = tuple(pool.groups("model"))
    return Recipe(method, found, "model", groups, pool.names, np.array([rows]), {}, seed if load(method).random else 0)


def rule_of(method: str, options: dict[str, Option] | None = None) -> Method:
    return load(method)(complete(method, load(method).options, options or {}))


def fitting(names: list[str], method: str) -> list[str]:
    """As many of them as it merges."""
    return names[: load(method).experts[1]]


def rows_of(method: str, count: int) -> list[float]:
    """Coefficients that it accepts, no two alike where it accepts more than a choice."""
    return [0.0, 1.0, 0.0, 0.0][:count] if load(method).picks else [0.5, -0.2, 0.7, 0.1][:count]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_weights_are_mergekits(case: dict, tmp_path: Path) -> None:
    folders = {}
    for name, state in models(case).items():
        (tmp_path / name).mkdir()
        folders[name] = written(tmp_path / name, state)
    weights, options = said(case)
    pool = pool_of(folders, case["experts"], case["method"])
    merged = dict(merged_tensors(pool, recipe_of(pool, case["method"], weights, options)))
    assert expected(case).keys() <= merged.keys()
    for name, tensor in expected(case).items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_coefficient_known_best_is_one_of_those_worth_asking(method: str) -> None:
    flags = [n for n, s in load(method).options.items() if isinstance(s, Flag)]
    for options in ({}, *({name: True} for name in flags), *({name: False} for name in flags)):
        rule = rule_of(method, options)
        assert rule.usual is None or rule.usual in rule.sweep


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
    pool = pool_of(folders, fitting(names, method), method)
    assert rule_of(method).grounded
    for name, tensor in merged_tensors(pool, recipe_of(pool, method, [0.0] * len(pool.names))):
        assert torch.equal(tensor, pool.base.tensor(name))


def whole(method: str) -> dict[str, Option]:
    """Options with which it drops nothing."""
    return {"density": 1.0} if takes_density(method) else {}


def takes_density(method: str) -> bool:
    """Whether it drops entries of task vectors for each candidate, and keeps all at a density of 1."""
    spec = load(method).options.get("density")
    return isinstance(spec, Number) and not spec.prepared


RESTORING = [m for m in METHODS if rule_of(m, whole(m)).restores]


@COMPANIES
@pytest.mark.parametrize("method", RESTORING)
def test_one_expert_at_unit_is_that_expert_where_that_is_promised(
    method: str, names: list[str], folders: dict[str, Path]
) -> None:
    options = whole(method)
    pool, rule = pool_of(folders, fitting(names, method), method, options), rule_of(method, options)
    name = pool.names[-1]
    rows = [0.0] * (len(pool.names) - 1) + [rule.unit]
    for tensor, merged in merged_tensors(pool, recipe_of(pool, method, rows, options)):
        torch.testing.assert_close(merged, pool.experts[name].tensor(tensor), rtol=1e-5, atol=1e-6)


@COMPANIES
@pytest.mark.parametrize("method", METHODS)
def test_permuting_experts_with_their_coefficients_changes_nothing(
    method: str, names: list[str], folders: dict[str, Path]
) -> None:
    names = fitting(names, method)
    rows = rows_of(method, len(names))
    one, other = pool_of(folders, names, method), pool_of(folders, names[::-1], method)
    there = dict(merged_tensors(other, recipe_of(other, method, rows[::-1])))
    for name, tensor in merged_tensors(one, recipe_of(one, method, rows)):
        torch.testing.assert_close(tensor, there[name], rtol=1e-5, atol=1e-6)
    # a recipe names its experts: another order of the pool's is the same merge, to the bit of that order
    for name, tensor in merged_tensors(other, recipe_of(one, method, rows)):
        assert torch.equal(tensor, there[name])


@pytest.mark.parametrize("method", [m for m in METHODS if takes_density(m)])
def test_options_by_expert_go_with_their_experts(method: str, folders: dict[str, Path]) -> None:
    names = ["expert1", "expert2", "expert3"]
    one, other = pool_of(folders, names, method), pool_of(folders, names[::-1], method)
    ask, turned = ({"density": np.array([shares])} for shares in ([0.2, 0.5, 0.9], [0.9, 0.5, 0.2]))
    rows = [0.5, -0.2, 0.7]
    there = dict(merged_tensors(other, recipe_of(other, method, rows[::-1], turned)))
    wrong = dict(merged_tensors(other, recipe_of(other, method, rows[::-1], ask)))
    differs = False
    for name, tensor in merged_tensors(one, recipe_of(one, method, rows, ask)):
        torch.testing.assert_close(tensor, there[name], rtol=1e-5, atol=1e-6)
        differs |= not torch.allclose(tensor, wrong[name], rtol=1e-5, atol=1e-6)
    assert differs


@pytest.mark.parametrize("method", METHODS)
def test_bf16_models_give_the_float32_merge_rounded_once(method: str, folders: dict[str, Path]) -> None:
    names = fitting(["expert1-bf16", "expert2-bf16", "expert3-bf16"], method)
    pool = pool_of(folders, names, method, base="base-bf16")
    recipe = recipe_of(pool, method, rows_of(method, len(names)))
    wide = dict(merged_tensors(pool, recipe, torch.float32))
    for name, tensor in merged_tensors(pool, recipe):
        assert tensor.dtype == torch.bfloat16 and wide[name].dtype == torch.float32
        assert torch.equal(tensor, wide[name].bfloat16())


@pytest.mark.parametrize("method", RANDOM)
def test_what_is_drawn_is_of_the_seed(method: str, folders: dict[str, Path]) -> None:
    pool = pool_of(folders, ["expert1", "expert2"], method)
    found = [digest(pool, recipe_of(pool, method, [0.5, 0.3], seed=seed)) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def digest(pool: Pool, recipe: Recipe) -> str:
    """Of all merged weights, to the bit."""
    found = hashlib.sha256()
    for name, tensor in sorted(merged_tensors(pool, recipe)):
        found.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def digests(folders: dict[str, Path], every: list[str]) -> dict[str, str]:
    """Of a merge by each method."""
    found = {}
    for method in every:
        pool = pool_of(folders, fitting(["expert1", "expert2", "expert3"], method), method)
        found[method] = digest(pool, recipe_of(pool, method, rows_of(method, len(pool.names)), seed=5))
    return found


def test_another_process_in_another_order_merges_the_same_bits(folders: dict[str, Path], tmp_path: Path) -> None:
    code = (
        "import json, sys, pathlib\nsys.path[:0] = json.loads(sys.argv[1])\n"
        "from contracts.test_methods import digests\n"
        "print(json.dumps(digests({k: pathlib.Path(v) for k, v in json.loads(sys.argv[2]).items()}, sys.argv[3:])))"
    )
    paths = json.dumps([str(GOLDEN.parent), str(GOLDEN.parent.parent)])
    every = json.dumps({name: str(folder) for name, folder in folders.items()})
    environment = {**os.environ, "PYTHONHASHSEED": "77", "XDG_CACHE_HOME": str(tmp_path / "another")}
    there = subprocess.run(
        [sys.executable, "-c", code, paths, every, *sorted(METHODS, reverse=True)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(there.stdout.splitlines()[-1]) == digests(folders, list(METHODS))


@pytest.mark.parametrize("method", LINEAR)
def test_the_chain_rule_is_the_derivative_of_base_scale_and_weights(method: str) -> None:
    draw = np.random.default_rng(0)
    tensors = [torch.from_numpy(draw.normal(size=(5, 6))).float() for _ in range(5)]
    facts = NaiveFacts("layer.weight", tensors[0], tensors[1:])
    coefficients, slopes = draw.uniform(0.1, 1.0, 4), draw.normal(size=5)
    for options in ({}, *({n: not s.default} for n, s in load(method).options.items() if n == "normalize")):
        rule, found = rule_of(method, options), complete(method, load(method).options, options)

        def row(c: np.ndarray, found: dict[str, Option] = found) -> Row:
            return Row.of(load(method).options, c[None], found, 0)

        def loss(c: np.ndarray, rule: Method = rule) -> float:
            composition = rule.compose(row(c), facts)
            return float(composition.base) * slopes[0] + float(composition.weights @ slopes[1:])

        pulled = rule.pull(row(coefficients), slopes[0], slopes[1:])
        assert pulled.shape == (4,)
        for k, step in enumerate(1e-6 * np.eye(4)):
            change = loss(coefficients + step) - loss(coefficients - step)
            assert pulled[k] == pytest.approx(change / 2e-6, rel=1e-6, abs=1e-8)


@COMPANIES
@pytest.mark.parametrize("method", LINEAR)
def test_linear_ones_are_differentiated_as_they_are_merged(
    method: str, names: list[str], folders: dict[str, Path]
) -> None:
    pool = pool_of(folders, fitting(names, method), method)
    compositions = Compositions.of(pool, recipe_of(pool, method, rows_of(method, len(pool.names))))
    draw = torch.Generator().manual_seed(3)
    for info in pool.merged:
        sources, what = Sources.of(pool, info.name), compositions.at(info.name)
        slope, out = torch.randn(info.shape, generator=draw).view(-1), torch.empty(info.shape).view(-1)
        found = sources.products(slope, what, 0, len(slope))
        for k, alone in enumerate(np.eye(len(pool.names))):
            # a weight of 1 on one expert, and nothing else
            only = replace(what.composition if isinstance(what, Packed) else what, base=0.0, weights=alone)
            assert sources.merge(out, only if only.plain else Packed.of(only, info.shape), 0, len(out))
            assert found[k] == pytest.approx(float((slope.double() * out.double()).sum()), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_says_what_it_has_been_processed_for(method: str, folders: dict[str, Path]) -> None:
    names = fitting(["expert1", "expert2"], method)
    raw = Pool.open(folders["base"], {n: folders[n] for n in names})
    pool = processed(raw, method, statistics=statistics(folders, names, method))
    assert bool(pool.processing) == load(method).processes and pool.original is raw
    assert pool.names == raw.names and pool.merged == raw.merged
    for info in pool.merged if load(method).processes else ():
        found = [e.tensor(info.name) for e in pool.experts.values()]
        assert all(t.shape == info.shape and t.isfinite().all() for t in found)


@pytest.mark.parametrize("method", METHODS)
def test_options_that_do_not_exist_or_do_not_fit_are_refused(method: str) -> None:
    kind = load(method)
    assert kind.summary and kind.experts[0] >= 1
    with pytest.raises(RecipeError, match=r"no option 'speed'; .*there are"):
        rule_of(method, {"speed": 1.0})
    for name, spec in kind.options.items():
        odd: list[tuple[Option, str]] = [("much", "must be")] if not isinstance(spec, Choice) else [("much", "one of")]
        if isinstance(spec, Number):
            odd += [(type(spec.low)(n), "expected") for n in (spec.low - 1, spec.high + 1)]
            odd += [(spec.low, "above")] if spec.above else []
            assert spec.search is None or spec.low <= spec.search[0] < spec.search[1] <= spec.high
        elif isinstance(spec, Flag):
            odd += [(1, "must be true or false")]
        for value, message in odd:
            with pytest.raises(RecipeError, match=f"option {name}.*{message}"):
                rule_of(method, {name: value})


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match="did you mean 'task_arithmetic'"):
        load("task_aritmetic")


@pytest.mark.parametrize("method", [m for m in METHODS if "lambda" in load(m).options])
def test_a_lambda_of_0_makes_no_merge_and_is_refused(method: str) -> None:
    with pytest.raises(RecipeError, match="lambda is 0"):
        rule_of(method, {"lambda": 0.0})


@pytest.mark.parametrize("method", [name for name in METHODS if "lambda" in load(name).options])
def test_lambdas_by_group_may_cancel(method: str) -> None:
    assert rule_of(method, {"lambda": np.array([[0.5], [-0.5]])}).unit == 1.0


@pytest.mark.parametrize("value", [10**400, float("nan"), np.array(0.5)], ids=["large", "nan", "shapeless"])
def test_a_number_that_is_none_is_refused(value: Option) -> None:
    with pytest.raises(RecipeError, match="lambda"):
        rule_of("task_arithmetic", {"lambda": value})


@pytest.mark.parametrize("method", [name for name in RANDOM if load(name).linear])
def test_what_is_dropped_at_random_is_unbiased(method: str, folders: dict[str, Path]) -> None:
    """Each tensor's mean entry over seeds is that of task arithmetic, to 4 standard errors."""
    pool = pool_of(folders, ["expert1", "expert2"], method)
    options: dict[str, Option] = {"density": 0.4} | ({"epsilon": 0.2} if "epsilon" in load(method).options else {})
    plain = dict(merged_tensors(pool, recipe_of(pool, "task_arithmetic", [0.5, 0.3])))
    off: dict[str, list[torch.Tensor]] = {name: [] for name in plain}
    for seed in range(200):
        for name, tensor in merged_tensors(pool, recipe_of(pool, method, [0.5, 0.3], options, seed)):
            # against a fixed pattern of signs, so that errors of both signs do not cancel
            off[name].append(((tensor - plain[name]) * plain[name].sign()).mean())
    for name, found in off.items():
        errors = torch.stack(found).double()
        assert errors.std() > 0 and abs(errors.mean()) < 4 * errors.std() / len(errors) ** 0.5, name


@pytest.mark.parametrize("method", METHODS)
def test_the_documentation_has_its_options_and_says_whether_it_is_linear(method: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    lines = text.partition("## The table")[2].partition("\n## ")[0].splitlines()
    (row,) = [line for line in lines if line.startswith(f"| `{method}` |") and line.count("|") == 6]
    _, _, options, linear, _ = (cell.strip() for cell in row.strip("|").split("|"))
    specs = {name: spec for name, spec in load(method).options.items() if name != "lambda"}
    told = [f"`{n}` ({str(s.default).lower() if isinstance(s, Flag) else s.default})" for n, s in specs.items()]
    assert options == (", ".join(told) or "none")
    assert linear.partition(",")[0] == ("yes" if load(method).linear else "no")
