"""Does a search over LoRA experts find what one over whole models finds, and does it end as one LoRA? Whole runs."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import torch
import transformers
import worlds
from safetensors.torch import load_file
from typer.testing import CliRunner

from optimizer import Job, Run
from optimizer.commands.cli import app
from optimizer.errors import ExportError, ScoreMismatch
from optimizer.jobs.checking import check_job
from searchspaces import CoefficientSpace, Pool, processed
from searchspaces.adapters.concatenate import write_adapter
from searchspaces.errors import Inexpressible
from searchspaces.weights.materialise import merged_tensors


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return worlds.searched(worlds.adapters(tmp_path_factory.mktemp("lora")))


def test_scores_are_those_of_densified_twins_all_the_way_through_a_search(finished: Run, tmp_path: Path) -> None:
    twins = Run.create(Job.load(worlds.adapters(tmp_path, dense=True)), tmp_path / "runs")
    twins.search()
    ours, theirs = finished.results().candidates, twins.results().candidates
    assert len(ours) == len(theirs) == 10
    for number, candidate in ours.items():
        other = theirs[number]
        np.testing.assert_allclose(candidate.point, other.point, atol=1e-4)
        for split in ("measures", "heldout"):
            scores, wanted = getattr(candidate, split), getattr(other, split)
            assert scores.keys() == wanted.keys()
            for name, measure in scores.items():
                assert measure.value == pytest.approx(wanted[name].value, abs=1e-5, rel=1e-5)
    losses = {round(c.measures["first.loss"].value, 4) for c in ours.values()}
    assert len(losses) > 5  # the adapters matter


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(5, 25).view(2, 10)).logits  # type: ignore[no-any-return]


def with_peft(base: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> Any:
    import peft

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = peft.PeftModel.from_pretrained(model, adapter)
    assert not [w for w in said if "key" in str(w.message)]  # all of it was loaded, and nothing was missing
    return found


def test_a_merge_becomes_one_adapter_that_peft_loads(finished: Run, tmp_path: Path) -> None:
    chosen = finished.results().pick("uniform")
    whole = finished.export(chosen, tmp_path / "whole")
    folder, found = finished.export_adapter(chosen, tmp_path / "lora")
    assert (found.rank, found.joined_rank, found.error, found.exact) == (7, 7, 0.0, True)
    assert {p.name for p in folder.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md", "recipe.yaml",
    }  # fmt: skip
    base = Path(finished.job.root or "") / "base"
    wanted = logits(transformers.AutoModelForCausalLM.from_pretrained(whole))
    torch.testing.assert_close(logits(with_peft(base, folder)), wanted, rtol=1e-5, atol=1e-5)
    # read as an expert, it is the merge to the bit
    pool = Pool.open(base, {"merged": folder})
    space = CoefficientSpace([t.name for t in pool.merged], pool.names, granularity="model")
    there = load_file(whole / "model.safetensors")
    assert all(torch.equal(t, there[n]) for n, t in merged_tensors(pool, space.decode(np.ones(1))))
    card = (folder / "README.md").read_text()
    assert "PeftModel.from_pretrained" in card and "rank 7, which is the merge exactly" in card
    assert "Measured by the search" in card and "scores of the base with the adapter merged into it" in card
    assert f"{chosen.measures['first.loss'].value:.4f} ±" in card and str(base) not in card


def test_cut_to_a_rank_it_is_the_nearest_and_says_how_near(finished: Run, tmp_path: Path) -> None:
    chosen = finished.results().pick("uniform")
    base = Path(finished.job.root or "") / "base"
    whole = load_file(finished.export(chosen, tmp_path / "whole") / "model.safetensors")
    folder, found = finished.export_adapter(chosen, tmp_path / "lora", rank=4)
    pool = Pool.open(base, {"merged": folder})
    assert pool.adapters["merged"].ranks == (4,) and (found.rank, found.joined_rank, found.exact) == (4, 7, False)
    lost = kept = worst = 0.0
    for name in pool.adapters["merged"].low:
        tau = (whole[name] - pool.base.tensor(name)).double()
        values = torch.linalg.svdvals(tau)
        nearest, total = float(values[4:].square().sum()), float(tau.square().sum())
        away = float((pool.adapters["merged"].tensor(name).double() - whole[name]).square().sum())
        assert away == pytest.approx(nearest, rel=1e-3)
        lost, kept, worst = lost + away, kept + total, max(worst, math.sqrt(away / total))
    assert found.error == pytest.approx(math.sqrt(lost / kept), rel=1e-3) and 0.01 < found.error < 1
    assert found.worst == pytest.approx(worst, rel=1e-3)
    card = (folder / "README.md").read_text()
    said = f"rank 4, the nearest to the merge, whose factors side by side have rank 7: relative error {found.error:.2e}"
    assert said in card and "Measured on this adapter of rank 4" in card and "before it was\ncut to this rank" in card
    assert "Measured by the search" not in card and "chose this candidate" not in card
    scored = logits(with_peft(base, folder))
    assert not torch.allclose(scored, logits(transformers.AutoModelForCausalLM.from_pretrained(base)), atol=1e-4)


def test_the_command_line_exports_an_adapter(finished: Run, tmp_path: Path) -> None:
    def said(*options: str) -> str:
        result = CliRunner().invoke(app, ["export", str(finished.folder), "uniform", *options])
        assert result.exit_code == 0, result.output
        return result.output

    assert "rank 7, which is the merge exactly" in said("--lora", "exact", "--out", str(tmp_path / "a"))
    cut = said("--lora", "2", "--out", str(tmp_path / "b"))
    assert "rank 2, the nearest to the merge, whose factors side by side have rank 7: relative error" in cut
    assert "rank 7, which is the merge exactly" in said("--lora", "64", "--out", str(tmp_path / "c"))
    for odd in ("0", "-1", "much", "2.5"):
        result = CliRunner().invoke(app, ["export", str(finished.folder), "uniform", f"--lora={odd}"])
        assert isinstance(result.exception, ExportError) and "expected a rank from 1, or 'exact'" in str(
            result.exception
        )


def test_what_is_no_merge_of_adapters_is_no_adapter(tmp_path: Path) -> None:
    base = pico.base(tmp_path / "base", "llama")
    lora = pico.adapter(tmp_path / "lora", base, 1)
    normed = pico.adapter(tmp_path / "normed", base, 2, modules_to_save=["norm"])
    pool = Pool.open(base, {"lora": lora, "normed": normed, "full": pico.expert(tmp_path / "full", base, 3)})
    names = [t.name for t in pool.merged]

    def refused(row: list[float], message: str, pool: Pool = pool, **options: Any) -> None:
        space = CoefficientSpace(names, pool.names, granularity="model", **options)
        with pytest.raises(Inexpressible, match=message):
            write_adapter(tmp_path, pool, space.decode(np.array(row)), None, "base")
        assert not (tmp_path / "adapter_model.safetensors").exists()

    refused([0.5, 0.0, 0.1], r"expert 'full' has a coefficient that is not 0, and is no adapter; export the merged")
    refused([0.5, 0.1, 0.0], r"adapter 'normed' stores 'model\..*norm\.weight' whole")
    refused([0.0, 0.0, 0.0], r"all coefficients are 0: the merge is the base")
    refused([0.5, 0.0, 0.0], r"scales the base itself", method="linear", options={"normalize": False})
    made = processed(pool, "ties_once", {})
    refused([0.5, 0.0, 0.0], r"method ties_once changes task vectors", made, method="ties_once")
    experts = {"lora": lora, "normed": normed, "full": tmp_path / "full"}
    wider = Pool.open(base, experts, vocabulary="base", sources={"red": "full"})
    refused([0.5, 0.0, 0.0], r"models.vocabulary gave the merge rows of tokens", wider)
    space = CoefficientSpace(names, pool.names, granularity="model")
    found = write_adapter(tmp_path, pool, space.decode(np.array([0.5, 0.0, 0.0])), None, "base")
    assert found.joined_rank == 4  # what has no coefficient is in nobody's way


def test_a_rank_above_a_tensors_smaller_side_is_cut_all_the_same(tmp_path: Path) -> None:
    base = pico.base(tmp_path / "base", "llama")  # 16 features; keys and values have 8
    pool = Pool.open(base, {name: pico.adapter(tmp_path / name, base, k, r=12) for k, name in enumerate("ab")})
    space = CoefficientSpace([t.name for t in pool.merged], pool.names, granularity="model")
    recipe = space.decode(np.array([0.5, 0.7]))
    (tmp_path / "out").mkdir()
    found = write_adapter(tmp_path / "out", pool, recipe, 20, "base")
    assert (found.rank, found.joined_rank) == (20, 24) and found.exact
    one = Pool.open(base, {"merged": tmp_path / "out"})
    whole = CoefficientSpace([t.name for t in one.merged], one.names, granularity="model").decode(np.ones(1))
    there = dict(merged_tensors(one, whole))
    for name, tensor in merged_tensors(pool, recipe):
        torch.testing.assert_close(there[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gpt2", {"target_modules": ["c_attn", "c_proj", "wpe"]}),
        ("bert", {"target_modules": ["query", "word_embeddings"]}),
        ("vit", {"target_modules": ["projection", "q_proj", "fc1"]}),
    ],
)
@pytest.mark.parametrize("rank", [None, 3])
def test_an_adapter_of_any_layer_is_loaded_by_peft(
    tmp_path: Path, kind: str, options: dict[str, Any], rank: int
) -> None:
    base = pico.base(tmp_path / "base", kind)
    experts = {f"e{r}": pico.adapter(tmp_path / f"e{r}", base, r, r=r, **options) for r in (2, 3)}
    pool = Pool.open(base, experts)
    recipe = CoefficientSpace([t.name for t in pool.merged], pool.names, granularity="layer").decode(
        np.random.default_rng(0).uniform(0.1, 1, 2 * len(CoefficientSpace([t.name for t in pool.merged], "ab").groups))
    )
    (tmp_path / "out").mkdir()
    found = write_adapter(tmp_path / "out", pool, recipe, rank, "base")
    twin = load_file(pico.densified(tmp_path / "twin", base, tmp_path / "out") / "model.safetensors")
    for name, tensor in merged_tensors(pool, recipe):
        away = (twin[name] - tensor).norm()
        assert (
            away
            <= 2e-6 * tensor.norm()
            + (0 if rank is None else 1.01 * found.worst) * (tensor - pool.base.tensor(name)).norm()
        )
    assert (found.error > 0) == (rank is not None)


def test_a_cut_that_loses_nothing_is_the_merge_and_scored_as_such(tmp_path: Path) -> None:
    job = worlds.adapters(tmp_path, evaluations=10)
    shutil.rmtree(tmp_path / "adapters/two")
    shutil.copytree(tmp_path / "adapters/one", tmp_path / "adapters/two")  # side by side 6, in truth 3
    run = Run.create(Job.load(job), tmp_path / "runs")
    run.search()
    chosen = run.results().pick("uniform")
    folder, found = run.export_adapter(chosen, tmp_path / "out", rank=3)
    assert (found.rank, found.joined_rank, found.exact) == (3, 6, True) and found.error < 1e-7
    card = (folder / "README.md").read_text()
    assert "rank 3, which is the merge up to rounding: relative error" in card and "Measured by the search" in card
    name, was = next(iter(chosen.measures.items()))
    wrong = {**chosen.measures, name: dataclasses.replace(was, value=was.value + 0.1)}
    with pytest.raises(ScoreMismatch):
        run.export_adapter(dataclasses.replace(chosen, measures=wrong), tmp_path / "other", rank=3)
    assert not run.export_adapter(chosen, tmp_path / "less", rank=2)[1].exact


def test_one_module_of_a_large_rank_does_not_widen_the_others(tmp_path: Path) -> None:
    base = pico.base(tmp_path / "base", "llama", hidden_size=64, intermediate_size=96)
    few = pico.adapter(tmp_path / "few", base, 1, r=1)
    one = pico.adapter(tmp_path / "one", base, 2, r=32, target_modules=r".*layers\.1\.self_attn\.q_proj")
    pool = Pool.open(base, {"few": few, "one": one})
    space = CoefficientSpace([t.name for t in pool.merged], pool.names, granularity="model")
    recipe = space.decode(np.array([0.5, 0.7]))
    (tmp_path / "out").mkdir()
    found = write_adapter(tmp_path / "out", pool, recipe, None, "base")
    assert found.rank == 33
    held, parts = load_file(tmp_path / "out/adapter_model.safetensors"), sum(a.bytes for a in pool.adapters.values())
    assert sum(t.nbytes for t in held.values()) == parts
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert set(config["rank_pattern"].values()) == {1} and config["rank_pattern"] == config["alpha_pattern"]
    again = Pool.open(base, {"merged": tmp_path / "out"})
    assert again.adapters["merged"].ranks == (1, 33)
    twin = load_file(pico.densified(tmp_path / "twin", base, tmp_path / "out") / "model.safetensors")
    for name, tensor in merged_tensors(pool, recipe):
        torch.testing.assert_close(twin[name], tensor, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(again.adapters["merged"].tensor(name), tensor, rtol=1e-6, atol=1e-6)


def test_in_bf16_the_scores_are_those_of_the_adapter_merged_and_peft_is_roundings_away(tmp_path: Path) -> None:
    job = worlds.adapters(tmp_path, evaluations=10)
    job.write_text(job.read_text().replace("models: {", "models: {dtype: bfloat16, "))
    run = Run.create(Job.load(job), tmp_path / "runs")
    run.search()
    chosen = run.results().pick("uniform")
    whole = run.export(chosen, tmp_path / "whole")
    folder, _ = run.export_adapter(chosen, tmp_path / "lora")  # its scores are the ledger's, or it would be refused
    card = (folder / "README.md").read_text()
    assert all(f"{m.value:.4f} ±" in card for m in chosen.measures.values())
    merged = transformers.AutoModelForCausalLM.from_pretrained(whole)
    beside = with_peft(tmp_path / "base", folder, torch.bfloat16)
    wanted = logits(merged).float()
    away = (logits(beside).float() - wanted).norm() / wanted.norm()
    assert 0 < away < 0.02
    rounded = dict(merged.named_parameters())
    for name, parameter in beside.merge_and_unload().named_parameters():
        torch.testing.assert_close(parameter, rounded[name], rtol=2**-6, atol=2**-9)


def test_an_adapter_whose_scores_are_not_the_ledgers_leaves_nothing(finished: Run, tmp_path: Path) -> None:
    chosen = finished.results().pick("uniform")
    name, was = next(iter(chosen.measures.items()))
    wrong = dataclasses.replace(was, value=was.value + 0.1)
    other = dataclasses.replace(chosen, measures={**chosen.measures, name: wrong})
    with pytest.raises(ScoreMismatch):
        finished.export_adapter(other, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_adapters_of_classifiers_keep_their_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base, kind = pico.base(tmp_path / "base", "bert"), "BertForSequenceClassification"
    for seed, name in enumerate(("spam", "mood"), 1):
        lora = pico.adapter(
            tmp_path / "adapters" / name, base, seed, kind, task_type="SEQ_CLS", target_modules=["query"]
        )
        twin = pico.densified(tmp_path / "twins" / name, base, lora, kind)
        (lora / "config.json").write_bytes((twin / "config.json").read_bytes())
        worlds.items(tmp_path / "data" / f"{name}.jsonl", 40, seed)
    found = []
    for kind in ("adapters", "twins"):
        pairs = [text for name in ("spam", "mood") for text in ("--expert", f"{name}={kind}/{name}")]
        data = [text for name in ("spam", "mood") for text in ("--data", f"{name}=data/{name}.jsonl")]
        made = CliRunner().invoke(app, ["init", "--base", "base", *pairs, *data, "--out", f"{kind}.yaml"])
        assert made.exit_code == 0, made.exception
        text = (tmp_path / f"{kind}.yaml").read_text()
        assert "classifier.*" in text
        text = text.replace("kind: ray, workers: 2, threads: 1", "kind: inline").replace(
            "label: label", "label: label\n    classes: [neg, pos]"
        )
        (tmp_path / f"{kind}.yaml").write_text(re.sub("evaluations: [0-9]+", "evaluations: 10", text))
        run = Run.create(Job.load(tmp_path / f"{kind}.yaml"), tmp_path / kind / "runs")
        run.search()
        found.append(run)
    ours, theirs = (run.results().candidates for run in found)
    for number, candidate in ours.items():
        for name, measure in candidate.measures.items():
            assert measure.value == pytest.approx(theirs[number].measures[name].value, abs=1e-5), name
    assert len({c.measures["mood.cross_entropy"].value for c in ours.values()}) > 3
    folder, _ = found[0].export_adapter("uniform", tmp_path / "out")
    assert (folder / "heads/spam/config.json").is_file() and (folder / "heads/mood/model.safetensors").is_file()


def test_check_says_which_experts_are_adapters(finished: Run) -> None:
    found = check_job(finished.job)
    assert found["adapters"]["two"]["ranks"] == [4] and found["adapters"].keys() == {"one", "two"}
    result = CliRunner().invoke(app, ["check", str(finished.folder.parent.parent / "job.yaml")])
    assert "adapter two" in result.output and "rank 4" in result.output
    assert json.dumps(found)
