"""Does a model on several devices merge, score and search like one on one? With hooks, on the CPU."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pico
import pytest
import torch
import transformers as hf
import worlds
from families import FAMILIES

from evaluators.causal import probe_head
from optimizer import Job, Run
from optimizer.jobs.checking import check_job
from searchspaces import CoefficientSpace, Pool, Resident
from searchspaces.errors import PoolError
from searchspaces.models.loading import input_device, load_model
from searchspaces.weights.spread import Where, dispatch, map_of, settled

SPLIT: dict[str, str | int] = {
    "model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "cpu", "model.norm": "cpu",
    "model.rotary_emb": "cpu", "lm_head": "cpu",
}  # fmt: skip


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A map with one device in it is no reason to hook modules; here they are hooked as they are for several."""
    wanted: list[Any] = []

    def seen(where: Where, folder: Path) -> Any:
        wanted.append(map_of(where, folder))
        return wanted[-1]

    def forced(model: Any) -> Any:
        devices = wanted[-1] if isinstance(wanted[-1], dict) else {"": "cpu"}
        return settled(accelerate.dispatch_model(model, devices, force_hooks=True))

    monkeypatch.setattr("searchspaces.models.loading.map_of", seen)
    monkeypatch.setattr("searchspaces.models.loading.settled", forced)
    monkeypatch.setattr("accelerate.dispatch_model", partial(accelerate.dispatch_model, force_hooks=True))


def pool_of(folder: Path) -> Pool:
    base = pico.base(folder / "base", "llama")
    return Pool.open(base, {n: pico.expert(folder / n, base, k) for k, n in enumerate("ab", 1)})


def run(resident: Resident, pool: Pool) -> tuple[torch.Tensor, np.ndarray]:
    space = CoefficientSpace([t.name for t in pool.merged], pool.names, start=0.3)
    recipe = space.decode(space.domain.start)
    resident.write(recipe)
    ids = torch.arange(5, 25, device=resident.device).view(2, 10)
    with resident.tracking():
        output = resident.model(input_ids=ids, labels=ids)
        output.loss.backward()
        slope = resident.gradient(recipe)
    return output.logits.detach(), slope


@pytest.mark.parametrize("where", ["auto", {"": "cpu"}, SPLIT])
def test_weights_outputs_and_gradients_are_those_of_one_device(tmp_path: Path, hooked: None, where: Where) -> None:
    pool = pool_of(tmp_path)
    resident = Resident(pool, where)
    assert hasattr(resident.model, "_hf_hook"), "accelerate brings inputs to the layers"
    assert hasattr(resident.model.model.layers[1], "_hf_hook")
    for ours, theirs in zip(run(resident, pool), run(Resident(pool), pool), strict=True):
        assert np.array_equal(ours, theirs)
    assert resident.placement() == {"cpu": [t.name for t in pool.merged]}


def test_trunk_and_output_layer_give_back_where_they_were_given(tmp_path: Path, hooked: None) -> None:
    model = Resident(pool_of(tmp_path), SPLIT).model
    assert model.model._hf_hook.io_same_device and model.lm_head._hf_hook.io_same_device
    apart, vocabulary = probe_head(model, {"input_ids": torch.arange(5, 13)[None]})
    assert apart and vocabulary == len(pico.VOCABULARY)


def test_a_base_whose_rows_of_tokens_were_moved_is_laid_out_too(tmp_path: Path, hooked: None) -> None:
    base = pico.base(tmp_path / "base", "llama")
    for where in ("auto", dict(SPLIT)):
        laid = dispatch(load_model(base), where)
        assert hasattr(laid.lm_head, "_hf_hook")
        ids = torch.arange(5, 13)[None]
        assert torch.equal(laid(input_ids=ids).logits, load_model(base)(input_ids=ids).logits)


@pytest.mark.parametrize("where", ["auto", "{model: cpu, lm_head: cpu}"])
def test_a_search_with_it_finds_what_a_search_without_finds(tmp_path: Path, hooked: None, where: str) -> None:
    job = worlds.language(tmp_path)
    plain = Run.create(Job.load(job), tmp_path / "runs")
    plain.search()
    text = job.read_text().replace("executor: {kind: inline", f"executor: {{device: {where}, kind: inline")
    assert text != job.read_text()
    job.write_text(text.replace("name: words", "name: laid"))
    laid = Run.create(Job.load(job), tmp_path / "runs")
    laid.search()
    ours, theirs = ([*run.results().candidates.values()] for run in (laid, plain))
    assert [c.measures for c in ours] == [c.measures for c in theirs] and len(ours) == 8
    laid.export("best", tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_check_says_where_the_layers_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = check_job(Job.load(worlds.language(tmp_path)))
    assert found["layers"] == ["cpu: embeddings to model.norm (5)"]
    half = {"cuda:0": ["model.embed_tokens.weight"], "cuda:1": ["model.norm.weight", "lm_head.weight"]}
    monkeypatch.setattr(Resident, "placement", lambda self: half)
    found = check_job(Job.load(tmp_path / "job.yaml"))
    assert [line.partition(":")[2].partition(":")[0] for line in found["layers"]] == ["0", "1"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"model.layer.0": 0}, r"no module 'model\.layer\.0'; the nearest is 'model\.layers"),
        ({"model": "cpu"}, r"no device for 'lm_head\.weight'"),
        ({"": "disk"}, r"executor\.device"),
        ("nowhere", r"cannot be moved to 'nowhere'.*executor\.device"),
    ],
)
def test_a_map_that_leads_nowhere_is_one_clear_error(tmp_path: Path, where: Any, message: str) -> None:
    with pytest.raises(PoolError, match=message):
        Resident(pool_of(tmp_path), where)


def test_what_is_kept_off_every_device_is_refused(tmp_path: Path) -> None:
    model = load_model(pool_of(tmp_path).base.folder)
    model.lm_head.to("meta")
    with pytest.raises(PoolError, match=r"'lm_head\.weight' was left to the CPU or the disk"):
        settled(model)


def test_without_accelerate_the_error_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("searchspaces.weights.spread.find_spec", lambda name: None)
    with pytest.raises(PoolError, match=r"pip install 'mergeopt\[devices\]'"):
        Resident(pool_of(tmp_path), "auto")


LATENT = hf.PerceiverConfig(num_latents=4, d_latents=8, d_model=8, num_self_attends_per_block=1, num_blocks=1)


@pytest.mark.parametrize(("kind", "where"), [("gpt2", "meta"), ("clip", "meta"), ("perceiver", "cpu")])
def test_inputs_belong_where_embeddings_are_or_else_the_first_parameter(kind: str, where: str) -> None:
    with torch.device("meta"):
        if kind in FAMILIES:
            model = getattr(hf, FAMILIES[kind].model)(FAMILIES[kind].config())
        else:  # whose inputs are a parameter, and no module
            model = hf.PerceiverModel(LATENT)
    model.register_parameter("first", torch.nn.Parameter(torch.zeros(1, device="cpu")))
    assert input_device(model) == torch.device(where)
