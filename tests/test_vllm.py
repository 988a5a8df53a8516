"""Do engines continue prompts alike, with the weights as they are now? And is vLLM refused where it cannot?

What needs vLLM itself runs where it is installed with a device that it was built for, and is skipped elsewhere.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import harness_world
import numpy as np
import pico
import pytest
import torch
import transformers as hf
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file

from evaluators.engine import Decoding, Engine, TransformersEngine
from evaluators.errors import NonFinite, OptionError
from evaluators.evaluator import Setting
from evaluators.harness.evaluator import Harness
from evaluators.vllm_engine import VllmEngine, engine, stored
from evaluators.vllm_host import VllmOptions, refuse
from optimizer import Job, Run
from optimizer.jobs.checking import check_job

PROMPTS = [[0, 40, 41, 42], [0, 7, 8, 9, 10, 11, 12, 13, 14], [5], [0, *range(5, 205)]]
"""The last is long enough for a block of vLLM's prefix cache, which is 128 tokens on a CPU."""
SMALL = {"enforce_eager": True, "kv_cache_memory_bytes": 2**26, "max_num_seqs": 8}


@pytest.fixture(scope="session")
def vllm() -> None:
    """Skips a test where vLLM is not installed, or has no device: what `refuse` says of a model that it knows."""
    try:
        refuse("e", hf.LlamaForCausalLM(pico.config("chat")))
    except OptionError as error:
        pytest.skip(str(error))
    with suppress(ImportError):
        # vLLM's CPU build looks into every loaded module, and stumbles over cffi's, whose `__dict__` is no dict
        dispatcher: Any = importlib.import_module("vllm.triton_utils.dispatcher")
        dispatcher.vars = lambda value: found if isinstance(found := value.__dict__, dict) else {}


def llama(folder: Path, **changes: object) -> Setting:
    """A pico Llama that reads bytes, with heads as wide as vLLM's kernels ask for."""
    wide = {"hidden_size": 64, "head_dim": 32, "intermediate_size": 64, "initializer_range": 0.5}
    pico.base(folder, "chat", **{**wide, **changes})
    return setting(folder)


def setting(folder: Path) -> Setting:
    model = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    return Setting(model, folder, torch.device("cpu"), {}, 4)


def of_transformers(at: Setting) -> Engine:
    tokenizer = hf.AutoTokenizer.from_pretrained(at.folder)
    bare = SimpleNamespace(config=at.model.config, device=at.device)
    return TransformersEngine(HFLM(pretrained=bare, tokenizer=tokenizer, backend="causal", batch_size=4))


def of_vllm(at: Setting) -> VllmEngine:
    return engine("e", at, 256, VllmOptions(**SMALL))


@pytest.fixture(params=["transformers", "vllm"])
def make(request: pytest.FixtureRequest) -> Callable[[Setting], Engine]:
    if request.param == "transformers":
        return of_transformers
    request.getfixturevalue("vllm")
    return of_vllm


def decoding(**changes: Any) -> Decoding:
    said: dict[str, Any] = {"do_sample": False, "temperature": 0.0}
    return Decoding(
        **{"asker": "e", "longest": 12, "until": (), "sampled": False, "seed": 3, "arguments": said} | changes
    )


def alone(model: Any, prompt: list[int], **changes: Any) -> list[int]:
    """What transformers itself answers one prompt with."""
    ids = torch.tensor([prompt])
    said = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 1, **changes}
    out: list[int] = model.generate(ids, attention_mask=torch.ones_like(ids), **said)[0, len(prompt) :].tolist()
    return out


def kept(tokens: list[int]) -> list[int]:
    """Up to the end of the sequence: what an engine pads with after it is its own affair."""
    return tokens[: tokens.index(1)] if 1 in tokens else tokens


def shift(model: torch.nn.Module, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=draw))


@pytest.mark.parametrize("tied", [False, True])
def test_greedy_answers_are_those_of_the_weights_as_they_are_now(
    make: Callable[[Setting], Engine], tmp_path: Path, tied: bool
) -> None:
    at = llama(tmp_path / "base", tie_word_embeddings=tied)
    made, seen = make(at), []
    for seed in range(3):
        if seed:
            shift(at.model, seed)
        made.load(at.model)
        found = [kept(tokens) for tokens in made.generate(PROMPTS, decoding())]
        assert found == [kept(alone(at.model, prompt)) for prompt in PROMPTS]
        assert found == [kept(tokens) for tokens in made.generate(PROMPTS, decoding())]
        seen.append(found)
    assert seen[0] != seen[1] != seen[2]


def test_another_model_of_the_architecture_can_be_asked(make: Callable[[Setting], Engine], tmp_path: Path) -> None:
    at = llama(tmp_path / "base")
    other = llama(tmp_path / "other", seed=1).model
    made = make(at)
    for model in (other, at.model):
        made.load(model)
        assert [kept(t) for t in made.generate(PROMPTS, decoding())] == [kept(alone(model, p)) for p in PROMPTS]


def test_a_penalty_of_repetition_is_the_same_in_both(make: Callable[[Setting], Engine], tmp_path: Path) -> None:
    at = llama(tmp_path / "base")
    made = make(at)
    made.load(at.model)
    how = decoding(arguments={"do_sample": False, "temperature": 0.0, "repetition_penalty": 1.7})
    made.check(how)
    found = [kept(tokens) for tokens in made.generate(PROMPTS, how)]
    assert found == [kept(alone(at.model, prompt, repetition_penalty=1.7)) for prompt in PROMPTS]
    assert found != [kept(tokens) for tokens in made.generate(PROMPTS, decoding())]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_fail_the_candidate_and_not_the_next(
    make: Callable[[Setting], Engine], tmp_path: Path, value: float
) -> None:
    at = llama(tmp_path / "base")
    made, weight = make(at), at.model.lm_head.weight
    was = weight.detach().clone()
    with torch.no_grad():
        weight[3] = value
    made.load(at.model)
    with pytest.raises(NonFinite, match="'e': the logits of 4 of 4 prompts are NaN or infinite"):
        made.generate(PROMPTS, decoding())
    with torch.no_grad():
        weight.copy_(was)
    made.load(at.model)
    assert [kept(t) for t in made.generate(PROMPTS, decoding())] == [kept(alone(at.model, p)) for p in PROMPTS]


def test_sampling_repeats_itself_answers_twice_and_touches_no_global_generator(
    make: Callable[[Setting], Engine], tmp_path: Path
) -> None:
    at = llama(tmp_path / "base")
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]  # noqa: NPY002
    made = make(at)
    made.load(at.model)
    how = decoding(sampled=True, arguments={"do_sample": True, "temperature": 2.0})
    made.check(how)
    first = made.generate([PROMPTS[0], PROMPTS[0]], how)
    assert first[0] != first[1]
    assert made.generate([PROMPTS[0], PROMPTS[0]], how) == first
    assert states[:2] == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(states[2], torch.get_rng_state())


def harness(world: Path, task: str, **options: Any) -> Harness:
    return Harness("mine", {"task": f"tasks/{task}", "bootstrap_iters": 0, **options}, world)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    harness_world.write(tmp_path, 12, 4)
    return tmp_path


def texts(made: Harness) -> list[str]:
    return [instance.resps[0] for _, asked in sorted(made._asked.items()) for instance, *_ in asked]


@pytest.mark.parametrize("task", ["say", "echo"])
@pytest.mark.usefixtures("vllm")
def test_a_task_scores_what_it_scores_with_transformers(world: Path, task: str) -> None:
    at = llama(world / "base", initializer_range=0.2)
    found: list[list[str]] = []
    plain = harness(world, task)
    vllm = harness(world, task, backend="vllm", vllm=SMALL)
    for made in (plain, vllm):
        made.prepare(at)
    rows = np.concatenate([plain.splits.calibration, plain.splits.heldout])
    for seed in (0, 1):
        if seed:
            shift(at.model, seed)
        scores = [made.score(at.model, rows) for made in (plain, vllm)]
        assert scores[0].measures == scores[1].measures
        assert texts(plain) == texts(vllm)
        found.append(texts(plain))
    assert found[0] != found[1] and len(set(found[1])) > 2


FAMILIES: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "qwen2": lambda: hf.Qwen2Config(**DENSE, num_key_value_heads=1, tie_word_embeddings=True),
    "mistral": lambda: hf.MistralConfig(**DENSE, num_key_value_heads=1, head_dim=32),
    "gpt2": lambda: hf.GPT2Config(vocab_size=266, n_embd=64, n_layer=2, n_head=2, n_positions=256, eos_token_id=1),
    "mixtral": lambda: hf.MixtralConfig(**DENSE, num_key_value_heads=1, num_local_experts=4, head_dim=32),
}
DENSE: dict[str, Any] = {
    **{"vocab_size": 266, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "eos_token_id": 1},
    **{"num_attention_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3, "bos_token_id": 0},
}


def family(kind: str, folder: Path) -> Setting:
    torch.manual_seed(0)
    hf.AutoModelForCausalLM.from_config(FAMILIES[kind]()).save_pretrained(folder)
    pico.byte_tokenizer(folder)
    return setting(folder)


@pytest.mark.parametrize("kind", FAMILIES)
def test_weights_go_by_the_names_under_which_they_are_saved(kind: str, tmp_path: Path) -> None:
    at = family(kind, tmp_path / "base")
    shift(at.model, 1)
    at.model.save_pretrained(tmp_path / "saved")
    wanted, found = load_file(tmp_path / "saved" / "model.safetensors"), stored(at.model)
    tied = {"lm_head.weight"} if at.model.config.tie_word_embeddings else set()
    assert found.keys() == wanted.keys() | tied
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("kind", ["qwen2", "mistral", "gpt2"])
@pytest.mark.usefixtures("vllm")
def test_other_architectures_answer_as_with_transformers(kind: str, tmp_path: Path) -> None:
    at = family(kind, tmp_path / "base")
    made = of_vllm(at)
    made.verify("e", PROMPTS)
    for seed in (1, 2):
        shift(at.model, seed)
        made.load(at.model)
        assert [kept(t) for t in made.generate(PROMPTS, decoding())] == [kept(alone(at.model, p)) for p in PROMPTS]


@pytest.mark.usefixtures("vllm")
def test_an_architecture_whose_replaced_weights_vllm_does_not_use_is_refused(tmp_path: Path) -> None:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("it is vLLM's CPU kernels that keep a copy of stacked experts")
    with pytest.raises(OptionError, match="other numbers than transformers for a MixtralForCausalLM"):
        of_vllm(family("mixtral", tmp_path / "base")).verify("e", PROMPTS)


@pytest.mark.usefixtures("vllm")
def test_weights_that_do_not_arrive_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = llama(tmp_path / "base")
    made = of_vllm(at)
    for change, told in {
        lambda names: {k: v for k, v in names.items() if "down_proj" not in k}: "no values for 'model.layers.0.mlp",
        lambda names: {**names, "model.other.weight": torch.zeros(2)}: "parameter named 'other'",
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr("evaluators.vllm_engine.stored", lambda model, change=change: change(stored(model)))
            with pytest.raises(OptionError, match=f"does not take the weights of a LlamaForCausalLM.*{told}"):
                made.load(at.model)
        made.load(at.model)  # starts anew
        assert [kept(t) for t in made.generate(PROMPTS, decoding())] == [kept(alone(at.model, p)) for p in PROMPTS]
    with monkeypatch.context() as patch:
        patch.setattr("evaluators.vllm_engine.stored", lambda model: {k: v.flip(0) for k, v in stored(model).items()})
        with pytest.raises(OptionError, match="'e': vLLM computes other numbers than transformers"):
            made.verify("e", PROMPTS)


@pytest.mark.usefixtures("vllm")
def test_evaluators_share_an_engine_and_must_agree_on_it(tmp_path: Path) -> None:
    at = llama(tmp_path / "base")
    made = of_vllm(at)
    assert of_vllm(at) is made
    with pytest.raises(OptionError, match="'f': a worker has one vLLM engine, and another evaluator's options"):
        engine("f", at, 256, VllmOptions(**{**SMALL, "max_num_seqs": 4}))
    with pytest.raises(OptionError, match="'f': it needs a context of 257 tokens, the engine's is 256"):
        engine("f", at, 257, VllmOptions(**SMALL))
    for said, key in (({"num_beams": 2}, "num_beams"), ({"penalty_alpha": 0.6}, "penalty_alpha")):
        with pytest.raises(OptionError, match=f"says '{key}', for which vLLM has no equal"):
            made.check(decoding(arguments=said))
    other = llama(tmp_path / "other", seed=1)
    assert of_vllm(other) is not made
    made.load(at.model)  # takes the process's place back
    assert kept(made.generate(PROMPTS, decoding())[1]) == kept(alone(at.model, PROMPTS[1]))


@pytest.mark.usefixtures("vllm")
def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    at = llama(tmp_path / "base")
    with pytest.raises(OptionError, match=r"'e': vLLM does not start: .*change the options under `vllm`"):
        engine("e", at, 256, VllmOptions(**{**SMALL, "max_model_len": 100_000}))


def pretend(monkeypatch: pytest.MonkeyPatch, device: bool, reload: bool = True) -> None:
    """Put a vllm in place that knows Llamas alone."""
    names = ["vllm", "vllm.platforms", "vllm.model_executor", "vllm.model_executor.models"]
    names += ["vllm.model_executor.model_loader", "vllm.model_executor.model_loader.reload"]
    for name in names:
        module: Any = ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None), []
        monkeypatch.setitem(sys.modules, name, module)
    made: Any = sys.modules
    made["vllm.platforms"].current_platform = SimpleNamespace(is_unspecified=lambda: not device)
    known = SimpleNamespace(get_supported_archs=lambda: {"LlamaForCausalLM"})
    made["vllm.model_executor.models"].ModelRegistry = known
    if reload:
        made["vllm.model_executor.model_loader.reload"].initialize_layerwise_reload = None


def test_vllm_is_refused_with_what_is_missing(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = llama(world / "base")
    gpt2 = setting(pico.base(world / "gpt2", "gpt2"))

    def refused(told: str, where: Setting = at) -> None:
        made = harness(world, "say", backend="vllm")
        with pytest.raises(OptionError, match=told):
            made.prepare(where)

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "vllm", None)
        refused(r"'mine': backend: vllm needs the package vllm, which is not installed here; .*'mergeopt\[vllm\]'")
    with monkeypatch.context() as patch:
        pretend(patch, device=False)
        refused("'mine': backend: vllm needs a device that the installed vllm is built for, and finds none")
    with monkeypatch.context() as patch:
        pretend(patch, device=True, reload=False)
        refused("'mine': backend: vllm: vllm cannot be used here .*; install 0.32 or 0.33")
    with monkeypatch.context() as patch:
        pretend(patch, device=True)
        refused("'mine': backend: vllm has no architecture GPT2LMHeadModel; leave `backend` out", gpt2)


def test_options_that_say_nothing_are_refused(world: Path) -> None:
    with pytest.raises(OptionError, match="'mine': `vllm` has options and backend is not vllm"):
        harness(world, "say", vllm={"max_num_seqs": 3})
    with pytest.raises(OptionError, match="task tasks/choices asks for likelihoods alone"):
        harness(world, "choices", backend="vllm")
    for wrong, told in ({"gpu_memory_utilization": 1.5}, "less than or equal to 1"), ({"max_seqs": 3}, "max_seqs"):
        with pytest.raises(OptionError, match=told):
            harness(world, "say", backend="vllm", vllm=wrong)
    with pytest.raises(OptionError, match="option 'backend'"):
        harness(world, "say", backend="sglang")


@pytest.fixture
def job(world: Path) -> Job:
    base = llama(world / "base", initializer_range=0.2).folder
    for seed, name in enumerate(("one", "two"), 1):
        pico.expert(world / name, base, seed, scale=0.3)
    (world / "job.yaml").write_text(f"""
name: said
models: {{base: base, experts: {{one: one, two: two}}}}
evaluators:
  - {{kind: harness, name: say, task: tasks/echo, allow_test: true, backend: vllm, vllm: {json.dumps(SMALL)}}}
  - {{kind: harness, name: plain, task: tasks/echo, allow_test: true}}
objectives: [say.chrf, plain.chrf]
driver: {{name: sobol}}
budget: {{evaluations: 6}}
executor: {{kind: inline}}
""")
    return Job.load(world / "job.yaml")


@pytest.mark.usefixtures("vllm")
def test_a_search_scores_and_exports_the_same_with_either(job: Job, world: Path) -> None:
    run = Run.create(job, world / "runs")
    run.search()
    results = run.results()
    assert len(results.candidates) == 6 and not results.failures
    values = [[c.measures[f"{name}.chrf"].value for name in ("say", "plain")] for c in results.candidates.values()]
    assert all(one == other for one, other in values) and len({one for one, _ in values}) > 3
    run.export("best:say.chrf", world / "out")  # loaded and scored again, or it would not be there


def test_check_refuses_a_job_that_cannot_generate_here(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(OptionError, match="'say': backend: vllm needs the package vllm") as refused:
        check_job(job)
    assert refused.value.exit_code == 2
