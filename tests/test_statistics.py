"""Are statistics what they are said to be, whatever the batches, passes and kills, and do jobs that need them run?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import torch
import worlds
from safetensors.torch import load_file, save_file
from torch.nn.functional import log_softmax
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from evaluators import statistics
from evaluators.errors import NonFinite
from evaluators.evaluator import Setting
from optimizer import Job, Run
from optimizer.errors import JobError
from optimizer.jobs.checking import check_job
from optimizer.jobs.paper import on_paper
from optimizer.jobs.problem import Problem
from optimizer.training import gathering
from optimizer.training.gathering import gathered, merged_pool
from optimizer.training.sums import Work
from searchspaces import processed
from searchspaces.cache import limit
from searchspaces.errors import PoolError
from searchspaces.facts.gathered import Gathered
from searchspaces.models.layout import Part, Place
from searchspaces.weights.materialise import merged_tensors

TASKS = ("spam", "mood")
Space = namedtuple("Space", "total used free")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def classified(folder: Path, method: str = "regmean", items: int = 20, **changes: Any) -> Job:
    """Two tasks on a pico BERT whose layers matter: experts far from the base."""
    base = pico.base(folder / "base", "bert")
    for seed, name in enumerate(TASKS, 1):
        pico.expert(folder / "experts" / name, base, seed, labels=2, scale=0.3)
        worlds.items(folder / "data" / f"{name}.jsonl", items, seed)
    data: dict[str, Any] = {
        "name": "pico",
        "models": {"base": "base", "experts": {n: f"experts/{n}" for n in TASKS}, "heads": ["classifier.*"]},
        "space": {"granularity": "model", "method": method},
        "evaluators": [
            {"kind": "classification", "name": n, "data": f"data/{n}.jsonl", "text": "text", "classes": ["neg", "pos"],
             "pooling": "mean"} for n in TASKS
        ],
        "objectives": ["spam.cross_entropy", "mood.cross_entropy"],
        "driver": {"name": "sobol"},
        "budget": {"evaluations": 6},
        "executor": {"kind": "inline"},
    }  # fmt: skip
    return Job.parse(data | changes, folder)


def spoken(folder: Path, kind: str = "llama", method: str = "regmean", **config: Any) -> Job:
    """Two tasks on a causal language model."""
    base = pico.base(folder / "base", kind, **config)
    for seed, name in enumerate(TASKS, 1):
        pico.expert(folder / "experts" / name, base, seed, scale=0.3)
        worlds.items(folder / "data" / f"{name}.jsonl", 12, seed)
    data = {
        "name": "pico",
        "models": {"base": "base", "experts": {n: f"experts/{n}" for n in TASKS}},
        "space": {"granularity": "model", "method": method},
        "evaluators": [{"kind": "language", "name": n, "data": f"data/{n}.jsonl"} for n in TASKS],
        "objectives": ["spam.loss", "mood.loss"],
        "driver": {"name": "sobol"},
        "budget": {"evaluations": 6},
        "executor": {"kind": "inline"},
    }
    return Job.parse(data, folder)


def gather(job: Job, method: str | None = None, **rest: Any) -> dict[str, Path]:
    problem = Problem.open(job)
    return gathered(problem, method or job.space.method, problem.pool.hashes(), **rest)


def contents(home: Path) -> dict[str, torch.Tensor]:
    return {n: t for file in home.glob("*.safetensors") for n, t in load_file(file).items()}


def rows_of(job: Job, name: str) -> list[tuple[int, str]]:
    """The calibration items of an evaluator, by row."""
    evaluator = next(e for e in Problem.open(job).evaluators if e.name == name)
    texts = [json.loads(line)["text"] for line in Path(job.root, "data", f"{name}.jsonl").read_text().splitlines()]
    return [(row, texts[row]) for row in evaluator.splits.calibration.tolist()]


def read(job: Job, text: str) -> dict[str, torch.Tensor]:
    """One text as the model reads it, alone."""
    found = AutoTokenizer.from_pretrained(Path(job.root, "base"))(text, return_tensors="pt")
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


def seen(model: Any, job: Job, name: str) -> dict[str, torch.Tensor]:
    """All inputs of each linear layer, `(positions, n)` float64, one item at a time."""
    found: dict[str, list[torch.Tensor]] = {}
    for path, module in model.named_modules():
        if type(module).__name__ in ("Linear", "Conv1D"):
            module.register_forward_pre_hook(lambda m, args, path=path: found.setdefault(path, []).append(args[0][0]))
    with torch.no_grad():
        for _, text in rows_of(job, name):
            model(**read(job, text))
    return {path: torch.cat([x.reshape(-1, x.shape[-1]) for x in xs]).double() for path, xs in found.items()}


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_grams_are_those_of_every_input_and_of_no_padding(tmp_path: Path, kind: str) -> None:
    job = classified(tmp_path) if kind == "bert" else spoken(tmp_path, kind)
    homes = gather(job)
    assert homes.keys() == set(TASKS) and homes["spam"] != homes["mood"]
    for name in TASKS:
        auto = AutoModel if kind == "bert" else AutoModelForCausalLM
        model = auto.from_pretrained(Path(job.root, "experts", name)).eval()
        inputs, found = seen(model, job, name), contents(homes[name])
        wanted = {f"{path}.weight" for path in inputs}
        wanted -= {"lm_head.weight"} if kind == "gpt2" else set()  # tied to the embeddings
        wanted = {n.removeprefix("bert.") for n in wanted}
        # the last position of a text predicts nothing, and the output layer is not asked
        inputs = {p: x for p, x in inputs.items() if p != "lm_head"}
        assert found.keys() == wanted
        for path, x in inputs.items():
            gram = found[f"{path}.weight"]
            assert gram.dtype == torch.float32 and gram.shape[:2] == (x.shape[1],) * 2
            assert gram.dim() == (3 if kind == "gpt2" else 2)
            torch.testing.assert_close(gram.reshape(gram.shape[:2]).double(), x.T @ x / len(x), rtol=1e-4, atol=1e-5)


def of(module: Any, path: str) -> Any:
    return dict(module.named_parameters())[path]


def squares(values: list[tuple[float, torch.Tensor]], parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    """`sum share * gradient^2`, float64."""
    total = [torch.zeros(p.shape, dtype=torch.float64) for p in parameters]
    for share, value in values:
        grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        for sums, grad in zip(total, grads, strict=True):
            sums += 0 if grad is None else share * grad.double().square()
    return total


def test_fisher_information_is_that_of_autograd_item_by_item(tmp_path: Path) -> None:
    job = classified(tmp_path, "fisher", items=10)
    for name, home in gather(job).items():
        folder = Path(job.root, "experts", name)
        model, head = AutoModel.from_pretrained(folder).eval(), load_file(folder / "model.safetensors")
        names, parameters = zip(*model.named_parameters(), strict=True)
        total = [torch.zeros(p.shape, dtype=torch.float64) for p in parameters]
        rows = rows_of(job, name)
        for _, text in rows:
            pooled = model(**read(job, text)).last_hidden_state[0].mean(0)
            log = log_softmax(pooled @ head["classifier.weight"].T + head["classifier.bias"], dim=-1)
            for sums, part in zip(
                total, squares([(float(x.detach().exp()), x) for x in log], list(parameters)), strict=True
            ):
                sums += part
        found = contents(home)
        assert found.keys() == set(names)
        for tensor, sums in zip(names, total, strict=True):
            torch.testing.assert_close(found[tensor].double(), sums / len(rows), rtol=1e-3, atol=1e-9)
        assert found["pooler.dense.weight"].abs().max() == 0  # this evaluator does not read it


def test_fisher_sums_lie_where_the_weights_do() -> None:
    weights = {name: torch.nn.Parameter(torch.zeros(2, 3, device=name)) for name in ("cpu", "meta")}
    places = {name: Place((Part(weight, weight, name),)) for name, weight in weights.items()}
    sums = statistics.Fishers(places).sums
    assert [sums[f"sum {name}"].device.type for name in places] == ["cpu", "meta"]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_fisher_information_of_language_is_that_of_drawn_tokens(tmp_path: Path, kind: str) -> None:
    job = spoken(tmp_path, kind, "fisher")
    homes = gather(job)
    model = AutoModelForCausalLM.from_pretrained(Path(job.root, "experts", "mood")).eval()
    names, parameters = zip(*model.named_parameters(), strict=True)
    total, count = [torch.zeros(p.shape, dtype=torch.float64) for p in parameters], 0
    for row, text in rows_of(job, "mood"):
        log = log_softmax(model(**read(job, text)).logits[0, :-1].float(), dim=-1)
        drawn = torch.multinomial(log.detach().exp(), 1, generator=statistics.seed(f"mood {row}"))
        for sums, part in zip(total, squares([(1.0, log.gather(1, drawn).sum())], list(parameters)), strict=True):
            sums += part
        count += len(log)
    found = contents(homes["mood"])
    assert found.keys() == set(names)
    for tensor, sums in zip(names, total, strict=True):
        torch.testing.assert_close(found[tensor].double(), sums / count, rtol=1e-3, atol=1e-8)


def test_drawn_tokens_give_the_expected_square(tmp_path: Path) -> None:
    """Positions are drawn independently: the mean over draws of the squared norm is the exact expectation."""
    job = spoken(tmp_path, "llama", "fisher")
    problem = Problem.open(job)
    evaluator = next(e for e in problem.evaluators if e.name == "spam")
    model = AutoModelForCausalLM.from_pretrained(Path(job.root, "experts", "spam")).eval()
    evaluator.prepare(Setting(model, Path(job.root, "base"), torch.device("cpu")))
    row, text = rows_of(job, "spam")[0]
    weight = of(model, "model.norm.weight")
    log = log_softmax(model(**read(job, text)).logits[0, :-1].float(), dim=-1)
    exact = float(squares([(float(x.detach().exp()), x) for position in log for x in position], [weight])[0].sum())
    samples = []
    for number in range(300):
        evaluator.name = f"stream {number}"
        samples.append(float(squares(list(evaluator.likelihoods(model, row)), [weight])[0].sum()))  # type: ignore[attr-defined]
    assert abs(np.mean(samples) - exact) < 4 * np.std(samples) / len(samples) ** 0.5
    assert np.std(samples) > 0


def test_where_classes_are_many_one_is_drawn_by_its_probability() -> None:
    chance = torch.linspace(1, 3, statistics.EXACT + 1).softmax(0)
    counts = torch.zeros(len(chance))
    for number in range(2000):
        ((share, value),) = statistics.expected(chance.log(), f"task {number}")
        assert share == 1.0
        counts[int((chance.log() == value).nonzero()[0])] += 1
    error = (chance * (1 - chance) / 2000).sqrt()
    assert ((counts / 2000 - chance).abs() < 4 * error).all()
    few = list(statistics.expected(chance[:3].log(), "task"))
    assert [share for share, _ in few] == pytest.approx(chance[:3].tolist())
    again = [statistics.expected(chance.log(), "task 7") for _ in range(2)]
    assert len({float(value) for found in again for _, value in found}) == 1


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_several_passes_give_the_bits_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    job = classified(tmp_path, method, items=8)
    whole = {n: contents(home) for n, home in gather(job).items()}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setattr(gathering, "SHARE", 0.0)
    said: list[str] = []
    homes = gather(job, progress=said.append)
    assert len(said) == sum(len(list(home.glob("*.safetensors"))) for home in homes.values()) > 20
    for name, home in homes.items():
        found = contents(home)
        assert found.keys() == whole[name].keys()
        assert all(torch.equal(found[n], tensor) for n, tensor in whole[name].items())
        assert Gathered.open(home).get("no.such") is None


KILLED = """
import os, signal, sys
from pathlib import Path
from optimizer import Job
from optimizer.training import gathering
from optimizer.jobs.problem import Problem
from optimizer.training.sums import Work
job, method, at, share = sys.argv[1:]
gathering.EVERY, gathering.SHARE = 0.0, float(share)
calls = []
def progress(said):
    calls.append(said)
    if len(calls) == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
problem = Problem.open(Job.load(Path(job)))
gathering.gathered(problem, method, problem.pool.hashes(), progress)
"""


@pytest.mark.parametrize(
    ("method", "at", "share"), [("regmean", 3, 0.5), ("fisher", 1, 0.5), ("fisher", 7, 0.5), ("regmean", 30, 0.0)]
)
def test_killed_in_the_middle_little_is_lost_and_the_bits_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, at: int, share: float
) -> None:
    job = classified(tmp_path, method)
    (tmp_path / "job.yaml").write_text(json.dumps(json.loads(job.model_dump_json(exclude={"root", "hashes"}))))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "job.yaml"), method, str(at), str(share)]
    process = subprocess.run(command, env=dict(os.environ), check=False)
    assert process.returncode == -signal.SIGKILL
    monkeypatch.setattr(gathering, "EVERY", 0.0)
    monkeypatch.setattr(gathering, "SHARE", share)
    rest: list[str] = []
    resumed = gather(job, progress=rest.append)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    every: list[str] = []
    undisturbed = gather(job, progress=every.append)
    assert rest == every[at:]  # and nothing that was written down is done again
    for name, home in resumed.items():
        found, wanted = contents(home), contents(undisturbed[name])
        assert home.name == undisturbed[name].name and found.keys() == wanted.keys()
        assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    assert not [p for p in gathering.folder().iterdir() if p.name.endswith((".work", ".partial"))]


def test_sums_that_cannot_be_read_are_summed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = classified(tmp_path)
    wanted = {n: contents(home) for n, home in gather(job).items()}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setattr(gathering, "EVERY", 0.0)
    calls: list[str] = []

    def stop(said: str) -> None:
        calls.append(said)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather(job, progress=stop)
    (sums,) = gathering.folder().glob(".*.work/sums.safetensors")
    sums.write_bytes(sums.read_bytes()[:-8])
    for name, home in gather(job).items():
        assert all(torch.equal(t, wanted[name][n]) for n, t in contents(home).items())


def test_work_that_nobody_takes_up_goes_with_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "EVERY", 0.0)

    def stop(said: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather(classified(tmp_path), progress=stop)
    assert len(list(gathering.folder().glob(".*.work"))) == 1
    limit.make_room(0, gathering.folder())
    assert len(list(gathering.folder().glob(".*.work"))) == 1  # others' needs leave it
    limit.clear()
    assert not list(gathering.folder().glob(".*.work"))


STATES = (
    "{", "[]", "null", "[" * 100_000, '{"passes": 3, "done": [0]}', '{"passes": [["a"]], "done": 5}',
    '{"passes": [["a"], "b"], "done": []}', '{"passes": [["a"]], "done": [1, 1]}', '{"passes": [["c"]], "done": []}',
    '{"passes": [["a"]], "done": ["1"]}', '{"passes": []}', '{"passes": [["a"]], "done": [], "more": 1}',
)  # fmt: skip


def test_a_state_that_cannot_be_read_starts_anew(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    sums = {"sum a": torch.ones(2), "count a": torch.tensor(3)}
    names = ["a", "b"]
    work = Work(folder, names)
    assert work.next(lambda names: names[:1]) == ["a"] and work.take_up(sums) == 0
    work.keep(sums, 5)
    again = {name: torch.zeros_like(tensor) for name, tensor in sums.items()}
    assert Work(folder, names).next(lambda names: names) == ["a"] and Work(folder, names).take_up(again) == 5
    assert all(torch.equal(again[n], sums[n]) for n in sums)
    assert Work(folder, names).take_up({"sum b": torch.ones(2)}) == 0  # another pass's
    for odd in STATES:
        (folder / "state.json").write_text(odd)
        work = Work(folder, names)
        assert list(folder.iterdir()) == [] and work.next(lambda names: names) == names


def test_a_disk_without_room_is_refused_before_anything_is_gathered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = classified(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Space(10**9, 10**9, 1000))
    with pytest.raises(PoolError, match=r"the statistics of expert 'spam' need .* XDG_CACHE_HOME"):
        gather(job, progress=lambda said: pytest.fail(said))


@pytest.mark.parametrize(
    ("method", "what"),
    [("regmean", r"the statistics of 'model\.layers.* are NaN or infinite"), ("fisher", "a likelihood is nan")],
)
def test_states_that_are_not_finite_are_refused_by_expert_and_rows_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, what: str
) -> None:
    job = spoken(tmp_path, method=method)
    file = tmp_path / "experts" / "mood" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"] *= 1e38
    save_file(tensors, file, {"format": "pt"})
    monkeypatch.setattr(gathering, "EVERY", 0.0)
    said: list[str] = []
    with pytest.raises(NonFinite, match=rf"expert 'mood': {what}.* rows? [\d, ]+.* of evaluator 'mood'; look at"):
        gather(job, progress=said.append)
    assert not [line for line in said if "mood" in line]  # before any further step


@pytest.mark.parametrize("classes", [statistics.EXACT, statistics.EXACT + 1])
def test_a_classifier_whose_outputs_are_not_finite_is_refused_by_row(classes: int) -> None:
    class Broken:
        name = "spam"

        def likelihoods(self, model: Any, row: int) -> Any:
            return statistics.expected(torch.full((classes,), torch.nan), f"spam {row}")

    with pytest.raises(NonFinite, match=r"a likelihood is nan, on row 3 of evaluator 'spam'"):
        statistics.Fishers({}).step(Broken(), None, np.array([3]))  # type: ignore[arg-type]


def test_statistics_are_made_once_and_again_for_what_they_depend_on(tmp_path: Path) -> None:
    job = classified(tmp_path)
    said: list[str] = []
    first = gather(job, progress=said.append)
    assert len(said) == 2 and gather(job, progress=said.append) == first and len(said) == 2
    assert gather(job, "mats", progress=said.append) == first and len(said) == 2  # the same kind
    assert set(gather(job, "fisher").values()).isdisjoint(first.values())
    pico.expert(tmp_path / "experts" / "mood", tmp_path / "base", 9, labels=2)
    moved = gather(job, progress=said.append)
    assert moved["spam"] == first["spam"] and moved["mood"] != first["mood"] and len(said) == 3
    worlds.items(tmp_path / "data" / "spam.jsonl", 24, 7)
    assert gather(job)["spam"] != first["spam"] and gather(job)["mood"] == moved["mood"]
    assert gather(job, "task_arithmetic") == {}


def test_the_items_are_what_a_search_may_see_with_gradients_or_without(tmp_path: Path) -> None:
    plain = gather(classified(tmp_path))
    driver = {"name": "supervised", "steps": 2, "every": 2, "batch": 4}
    assert gather(classified(tmp_path, driver=driver)) == plain


def recipe_of(problem: Problem, *coefficients: float) -> Any:
    return problem.space(problem.pool.hashes()).decode(np.array(coefficients))


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_a_candidate_of_regmean_is_the_base_and_its_formula(tmp_path: Path, kind: str) -> None:
    job = classified(tmp_path) if kind == "bert" else spoken(tmp_path, kind)
    problem = Problem.open(job)
    grams = [contents(home) for home in gather(job).values()]
    pool = problem.pool
    recipe = recipe_of(problem, 0.3, 0.9)
    linear = 0
    for name, found in merged_tensors(merged_pool(problem, recipe), recipe):
        base, experts = pool.base.tensor(name), [e.tensor(name) for e in pool.experts.values()]
        taus = [(e - base).double() for e in experts]
        if name in grams[0]:
            linear += 1
            dense = [g[name].reshape(g[name].shape[:2]).double() for g in grams]
            dense = [0.9 * g + 0.1 * torch.diag(g.diagonal()) for g in dense]
            inverse = torch.linalg.inv(dense[0] + dense[1])
            turned = grams[0][name].dim() == 3
            taus = [inverse @ g @ t if turned else t @ g @ inverse for g, t in zip(dense, taus, strict=True)]
        else:
            taus = [t / 2 for t in taus]
        wanted = base.double() + 0.3 * taus[0] + 0.9 * taus[1]
        torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-4)
    assert linear == {"bert": 13, "llama": 15, "gpt2": 8}[kind]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_output_layer_tied_to_the_embeddings_is_averaged(tmp_path: Path, kind: str, tied: bool) -> None:
    found = contents(gather(spoken(tmp_path, kind, tie_word_embeddings=tied))["spam"])
    assert ("lm_head.weight" in found) == (not tied)
    assert not any("embed" in name or "wte" in name for name in found)


def test_adapters_are_observed_as_their_whole_twins(tmp_path: Path) -> None:
    found: list[Mapping[str, Path]] = []
    for dense in (False, True):
        home = tmp_path / ("whole" if dense else "lora")
        text = worlds.adapters(home, dense).read_text()
        for name, expert in (("first", "one"), ("second", "two")):
            text = text.replace(f"name: {name},", f"name: {name}, teacher: {expert},")
        (home / "job.yaml").write_text(text.replace("granularity: module", "granularity: module, method: regmean"))
        job = Job.load(home / "job.yaml")
        found.append(gather(job))
        problem = Problem.open(job)
        recipe = recipe_of(problem, *[0.5] * len(problem.space(problem.pool.hashes()).domain.names))
        assert all(torch.isfinite(t).all() for _, t in merged_tensors(merged_pool(problem, recipe), recipe))
    for name in ("one", "two"):
        lora, whole = contents(found[0][name]), contents(found[1][name])
        assert lora.keys() == whole.keys() and len(lora) > 10
        for tensor in whole:
            torch.testing.assert_close(lora[tensor], whole[tensor], rtol=1e-3, atol=1e-4)


def test_an_expert_without_items_of_its_own_is_one_clear_error(tmp_path: Path) -> None:
    job = spoken(tmp_path)
    entries = [json.loads(e.model_dump_json()) for e in job.evaluators]
    data = json.loads(job.model_dump_json(exclude={"root", "hashes"}))
    other = data | {"evaluators": [entries[0], {**entries[1], "name": "other"}], "objectives": ["other.loss"]}
    said = r"method 'regmean' .* expert 'mood' no evaluator is of its task; add .* `head: mood` .* `teacher: mood`"
    with pytest.raises(JobError, match=said):
        Problem.open(Job.parse(other, tmp_path))
    with pytest.raises(JobError, match=said):
        on_paper(Job.parse(other, tmp_path))
    named = {**entries[1], "name": "other", "teacher": "mood"}
    assert on_paper(Job.parse(other | {"evaluators": [entries[0], named]}, tmp_path))["methods"].keys() == {"regmean"}
    assert gather(Job.parse(other | {"evaluators": [entries[0], named]}, tmp_path)).keys() == set(TASKS)
    (tmp_path / "job.yaml").write_text(json.dumps(other))
    with pytest.raises(JobError, match=said):
        check_job(Job.load(tmp_path / "job.yaml"))
    Problem.open(Job.parse(other | {"space": {"method": "task_arithmetic"}}, tmp_path))


def test_an_evaluator_that_cannot_be_observed_is_told_from_one_that_is_missing(tmp_path: Path) -> None:
    job = spoken(tmp_path)
    (tmp_path / "mine.py").write_text("def score(model, rows, tokenizer):\n    return {'one': 1.0}\n")
    data = json.loads(job.model_dump_json(exclude={"root", "hashes"}))
    mine = {"kind": "function", "name": "mood", "data": "data/mood.jsonl", "function": "mine.py:score"}
    data["evaluators"][1] = mine | {"metrics": {"one": "max"}}
    data["objectives"] = ["mood.one"]
    with pytest.raises(JobError, match=r"expert 'mood' evaluator 'mood' is of a kind that cannot be observed"):
        Problem.open(Job.parse(data, tmp_path), allow_code=True)


@pytest.mark.parametrize("method", ["regmean", "mats", "fisher"])
def test_without_statistics_nothing_is_processed(tmp_path: Path, method: str) -> None:
    pool = Problem.open(classified(tmp_path)).pool
    with pytest.raises(PoolError, match=f"method '{method}' needs statistics of expert 'mood'"):
        processed(pool, method)


@pytest.mark.parametrize("method", ["regmean", "mats", "fisher"])
def test_a_whole_job_runs_and_its_export_scores_the_same(tmp_path: Path, method: str) -> None:
    run = Run.create(classified(tmp_path, method), tmp_path / "runs")
    run.search()
    found = run.results()
    assert found.candidates and not [c for c in found.candidates.values() if c.failure is not None]
    best = found.on_front[0]
    run.export(best, tmp_path / "out")  # raises where a score is not the ledger's
    assert (tmp_path / "out" / "config.json").is_file()


def test_gradients_are_taken_through_processed_task_vectors(tmp_path: Path) -> None:
    driver = {"name": "supervised", "steps": 4, "every": 2, "batch": 8, "lr": 0.05}
    job = classified(tmp_path, driver=driver, space={"granularity": "tensor", "method": "regmean"})
    run = Run.create(
        Job.parse(
            json.loads(job.model_dump_json(exclude={"root", "hashes"})) | {"budget": {"evaluations": 30}}, tmp_path
        ),
        tmp_path / "runs",
    )
    run.search()
    assert not [c for c in run.results().candidates.values() if c.failure is not None]
