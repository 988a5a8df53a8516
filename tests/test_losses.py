"""Are the losses that gradients are taken of what they say, of the resident model, and of the experts it follows?"""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pico import base, expert
from safetensors.torch import load_file
from test_language import BASES
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax
from transformers import AutoModel, AutoModelForCausalLM

from evaluators import language, load, teacher
from evaluators.errors import DataError, NonFinite, OptionError
from evaluators.evaluator import Differentiable, Head, Loss, Setting

WORDS = ["good", "bad", "red", "blue", "a", "b", "c", "d"]
KINDS = ["entropy", "cross_entropy", "kl", "hidden"]


@dataclass
class World:
    """A prepared evaluator, the resident model, and an expert of the same architecture."""

    evaluator: Differentiable
    model: Any
    teacher: Any
    at: Setting
    folder: Path

    def taught(self, hidden: bool = True) -> World:
        file = self.folder / "outputs.safetensors"
        self.evaluator.teach(self.teacher, file, hidden)
        self.evaluator.learn(file)
        return self

    def value(self, rows: Any, weights: dict[str, float], temperature: float = 1.0) -> float:
        return sum(float(x.detach()) for x in self.evaluator.loss(self.model, rows, Loss(weights, temperature)))

    def slope(self, weights: dict[str, float], rows: Any, temperature: float = 1.0) -> torch.Tensor:
        parameters = [p.requires_grad_(True) for p in self.model.parameters()]
        for part in self.evaluator.loss(self.model, rows, Loss(weights, temperature)):
            part.backward()
        found = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters])
        for p in parameters:
            p.requires_grad_(False).grad = None
        return found


def rows_of(kind: str, n: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    if kind == "image":
        return [{"pixels": draw.normal(size=(8, 8)).round(3).tolist(), "label": i % 3} for i in range(n)]
    texts = [" ".join(draw.choice(WORDS, size=draw.integers(2, 12))) + f" {WORDS[i % 8]}" for i in range(n)]
    return [{"text": text, "label": i % 3} for i, text in enumerate(texts)]


def world(root: Path, kind: str, batch_size: int = 4, **options: Any) -> World:
    of = {"text": "bert", "own classifier": "bert", "image": "vit", "language": "llama"}[kind]
    folder = base(root / "base", of)
    task = expert(root / "task", folder, seed=1, labels=None if kind == "language" else 3, scale=0.3)
    auto = AutoModelForCausalLM if kind == "language" else AutoModel
    model = auto.from_pretrained(folder).eval().requires_grad_(False)
    teacher = auto.from_pretrained(folder).eval().requires_grad_(False)
    tensors = load_file(task / "model.safetensors")
    teacher.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("classifier")}, strict=False)
    head = {k: v for k, v in tensors.items() if k.startswith("classifier")}
    at = Setting(model, folder, torch.device("cpu"), {"task": Head(task, head)}, batch_size)
    (root / "items.jsonl").write_text("\n".join(map(json.dumps, rows_of(kind, 24))))
    asked: dict[str, Any] = {
        "text": {"text": "text", "head": "task"},
        "own classifier": {"text": "text", "head": "task", "pooling": "model"},
        "image": {"image": "pixels", "head": "task"},
        "language": {"text": "text", "teacher": "task"},
    }[kind]
    name = "language" if kind == "language" else "classification"
    made: Any = load(name)("mine", {"data": "items.jsonl", **asked, **options}, root)
    made.prepare(at)
    return World(made, model, teacher, at, root)


@pytest.fixture(params=["text", "own classifier", "image", "language"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("loss", KINDS)
def test_microbatches_add_up_to_the_whole_in_any_order(tmp_path: Path, kind: str, loss: str) -> None:
    found = []
    for size in (1, 4, 100):
        (tmp_path / str(size)).mkdir()
        one = world(tmp_path / str(size), kind, size).taught()
        rows = one.evaluator.splits.calibration
        found += [one.value(rows, {loss: 1.0}), one.value(rows[::-1].copy(), {loss: 1.0})]
    np.testing.assert_allclose(found, found[0], rtol=1e-5)
    assert found[0] > 0


def test_kinds_are_weighed_and_added(tmp_path: Path, kind: str) -> None:
    one = world(tmp_path, kind).taught()
    rows = one.evaluator.splits.calibration[:5]
    weights = {"entropy": 0.3, "cross_entropy": 2.0, "kl": 0.5, "hidden": 1.5}
    apart = sum(weight * one.value(rows, {loss: 1.0}) for loss, weight in weights.items())
    assert one.value(rows, weights) == pytest.approx(apart, rel=1e-5)


def test_a_model_that_is_its_teacher_has_nothing_to_follow(tmp_path: Path, kind: str) -> None:
    one = world(tmp_path, kind)
    one.teacher = one.model
    one.taught()
    rows = one.evaluator.splits.calibration
    # a language model's teacher is kept in half precision
    assert one.value(rows, {"kl": 1.0}) == pytest.approx(0, abs=1e-5)
    assert one.value(rows, {"hidden": 1.0}) == pytest.approx(0, abs=1e-6)


def logits_by_hand(model: Any, one: World, row: int) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Logits, hidden states and what is true of one item, computed as plainly as can be."""
    item = json.loads((one.folder / "items.jsonl").read_text().splitlines()[row])
    if "pixels" in item:
        pixels = torch.tensor(item["pixels"], dtype=torch.float32)[None, None]
        out = model(pixel_values=pixels, output_hidden_states=True)
        pooled = out.last_hidden_state[:, 0]
    else:
        from transformers import AutoTokenizer

        tokens = AutoTokenizer.from_pretrained(one.at.folder)(item["text"], return_tensors="pt")
        ids = {"input_ids": tokens["input_ids"]}
        out = model(**ids, output_hidden_states=True)
        if hasattr(out, "logits"):
            return out.logits[0, :-1], out.hidden_states[-1][0], ids["input_ids"][0, 1:]
        pooled = out.last_hidden_state.mean(1)
    head = one.at.heads["task"].tensors
    logits = pooled @ head["classifier.weight"].T + head["classifier.bias"]
    return logits, out.hidden_states[-1][0], torch.tensor([item["label"]])


@pytest.mark.parametrize("kind", ["text", "image", "language"])
@pytest.mark.parametrize("loss", KINDS)
def test_value_and_gradient_are_those_computed_by_hand(tmp_path: Path, kind: str, loss: str) -> None:
    one = world(tmp_path, kind).taught()
    rows = one.evaluator.splits.calibration[:6]
    found = one.slope({loss: 1.0}, rows, temperature=2.0)
    parameters = [p.requires_grad_(True) for p in one.model.parameters()]
    total, count = torch.zeros(()), 0
    for row in rows.tolist():
        logits, hidden, truth = logits_by_hand(one.model, one, row)
        with torch.no_grad():
            wanted, wanted_hidden, _ = logits_by_hand(one.teacher, one, row)
        count += len(truth) if loss != "hidden" else 1
        total = (
            total
            + {
                "entropy": lambda p=logits: -(softmax(p, 1) * log_softmax(p, 1)).sum(),
                "cross_entropy": lambda p=logits, y=truth: cross_entropy(p, y, reduction="sum"),
                "kl": lambda p=logits, q=wanted: 4 * kl_div(log_softmax(p / 2, 1), softmax(q / 2, 1), reduction="sum"),
                "hidden": lambda h=hidden, w=wanted_hidden: ((h - w) ** 2).sum() / (w**2).sum(),
            }[loss]()
        )
    (total / count).backward()
    by_hand = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters])
    tolerance = 2e-3 if kind == "language" and loss == "kl" else 1e-5  # half precision on the disk
    assert one.value(rows, {loss: 1.0}, 2.0) == pytest.approx(float(total.detach()) / count, rel=tolerance)
    assert float((found - by_hand).norm() / by_hand.norm()) < tolerance


def test_kl_is_a_metric_where_a_teacher_is_named(tmp_path: Path, kind: str) -> None:
    one = world(tmp_path, kind, teacher="task").taught()
    assert one.evaluator.learns and one.evaluator.teacher == "task"
    items = one.evaluator.splits.heldout
    scores = one.evaluator.score(one.model, items)
    assert scores.measures["kl"].value == pytest.approx(one.value(items, {"kl": 1.0}), rel=1e-4)
    assert scores.measures["kl"].stderr > 0 and len(scores.per_item["kl"]) == len(items)


@pytest.mark.parametrize("kind", ["text", "own classifier", "image"])
def test_without_a_named_teacher_there_is_no_such_metric_but_the_heads_expert_teaches(
    tmp_path: Path, kind: str
) -> None:
    one = world(tmp_path, kind)
    assert not one.evaluator.learns and one.evaluator.teacher == "task"
    assert "kl" not in {m.name for m in one.evaluator.metrics} and "kl" in one.evaluator.losses


@pytest.mark.parametrize("kind", ["text", "image"])
def test_without_labels_there_is_entropy_and_the_teacher(tmp_path: Path, kind: str) -> None:
    one = world(tmp_path, kind, label=None, teacher="task").taught()
    assert {m.name for m in one.evaluator.metrics} == {"entropy", "kl"}
    items = one.evaluator.splits.calibration
    scores = one.evaluator.score(one.model, items)
    assert scores.measures["entropy"].value == pytest.approx(one.value(items, {"entropy": 1.0}), rel=1e-5)
    with pytest.raises(OptionError, match="offers no loss 'cross_entropy'; its losses are: entropy, kl, hidden"):
        one.value(items, {"cross_entropy": 1.0})


@pytest.mark.parametrize("loss", ["kl", "hidden"])
def test_what_follows_a_teacher_says_so_where_there_is_none(tmp_path: Path, kind: str, loss: str) -> None:
    one = world(tmp_path, kind)
    with pytest.raises(OptionError, match="kl and hidden need the outputs of"):
        one.value(one.evaluator.splits.calibration, {loss: 1.0})


def test_hidden_states_are_kept_where_they_are_asked_for(tmp_path: Path, kind: str) -> None:
    one = world(tmp_path, kind).taught(hidden=False)
    rows = one.evaluator.splits.calibration
    assert one.value(rows, {"kl": 1.0}) > 0
    with pytest.raises(OptionError, match="need the outputs of"):
        one.value(rows, {"hidden": 1.0})


def test_a_layer_that_the_model_does_not_have_is_refused(tmp_path: Path, kind: str) -> None:
    one = world(tmp_path, kind, hidden_layers=[7])
    with pytest.raises(OptionError, match="hidden_layers has 7; the model's are 0 to 2"):
        one.taught()
    assert not list(tmp_path.glob("*outputs*")), "nothing half written"


def test_another_items_outputs_are_refused(tmp_path: Path, kind: str) -> None:
    one = world(tmp_path, kind).taught()
    (tmp_path / "other").mkdir()
    other = world(tmp_path / "other", kind, limit=9)
    with pytest.raises(DataError, match="outputs on other items than these; remove it"):
        other.evaluator.learn(tmp_path / "outputs.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no such thing")
    with pytest.raises(DataError, match=r"broken\.safetensors: cannot be read"):
        one.evaluator.learn(tmp_path / "broken.safetensors")
    whole = (tmp_path / "outputs.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"half\.safetensors: cannot be read"):
        one.evaluator.learn(tmp_path / "half.safetensors")


def test_as_many_items_of_the_same_lengths_are_other_items(tmp_path: Path, kind: str) -> None:
    one = world(tmp_path, kind, calibration=12).taught()
    items = tmp_path / "items.jsonl"
    rows = [json.loads(line) for line in items.read_text().splitlines()]
    for row in rows:  # another word for each, and the negative of each image
        if "pixels" in row:
            row["pixels"] = (-np.array(row["pixels"])).tolist()
        else:
            row["text"] = " ".join(WORDS[WORDS.index(word) - 1] for word in row["text"].split())
    items.write_text("\n".join(map(json.dumps, rows)))
    options = {"image": "pixels"} if kind == "image" else {"text": "text"}
    options |= {"teacher": "task"} if kind == "language" else {"head": "task"}
    name = "language" if kind == "language" else "classification"
    made: Any = load(name)("mine", {"data": "items.jsonl", "calibration": 12, **options}, tmp_path)
    made.prepare(one.at)
    with pytest.raises(DataError, match="outputs on other items than these; remove it"):
        made.learn(tmp_path / "outputs.safetensors")


def test_outputs_serve_whatever_the_batches_and_the_splits(tmp_path: Path, kind: str) -> None:
    one = world(tmp_path, kind, batch_size=4).taught()
    (tmp_path / "other").mkdir()
    other = world(tmp_path / "other", kind, batch_size=7, calibration=5)
    other.evaluator.learn(tmp_path / "outputs.safetensors")
    rows = np.arange(24)
    assert other.value(rows, {"kl": 1.0, "hidden": 1.0}) == pytest.approx(one.value(rows, {"kl": 1.0, "hidden": 1.0}))


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    one = world(tmp_path, "text").taught()
    weight, bias = one.at.heads["task"].tensors["classifier.weight"], one.at.heads["task"].tensors["classifier.bias"]
    four = {"classifier.weight": torch.cat([weight, weight[:1]]), "classifier.bias": torch.cat([bias, bias[:1]])}
    one.at.heads["task"] = Head(one.at.heads["task"].folder, four)  # type: ignore[index]
    one.evaluator.prepare(one.at)
    with pytest.raises(DataError, match="expected logits of 4 classes or tokens, got 3"):
        one.evaluator.learn(tmp_path / "outputs.safetensors")


def test_a_disk_without_room_is_refused_before_and_while_writing(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world(tmp_path, kind)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as small:
        small.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(DataError, match=r"0\.00 GB free, the expert's outputs on 24 items need .* `limit`"):
            one.taught()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as late:  # somebody else took the room meanwhile
        late.setattr(teacher.Notes, "put", full)
        with pytest.raises(DataError, match=r"outputs of its teacher 'task' cannot be written .*No space left"):
            one.taught()
    assert not list(tmp_path.glob("*outputs*")) and not list(tmp_path.glob(".*outputs*")), "nothing half written"
    one.taught()


@pytest.mark.parametrize("loss", KINDS)
def test_half_precision_models_have_every_loss(tmp_path: Path, kind: str, loss: str) -> None:
    one = world(tmp_path, kind).taught()
    rows = one.evaluator.splits.calibration
    whole = one.value(rows, {loss: 1.0})
    one.model.bfloat16(), one.teacher.bfloat16()
    one.evaluator.prepare(one.at)
    one.taught()
    assert one.value(rows, {loss: 1.0}) == pytest.approx(whole, rel=0.1)
    assert float(one.slope({loss: 1.0}, rows).norm()) > 0


@pytest.mark.parametrize("of", BASES)
def test_logits_in_chunks_are_the_same_loss(tmp_path: Path, of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an architecture whose logits are one linear layer, and of one that does more to them."""
    folder = BASES[of](tmp_path / "base")
    model, other = (AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False) for _ in range(2))
    for p in other.parameters():
        p.mul_(1.1)
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, rows_of("language", 12))))
    at = Setting(model, folder, torch.device("cpu"), {}, 4)
    found = []
    for chunk in (1, 150, 2**24):
        monkeypatch.setattr(language, "CHUNK", chunk)
        made: Any = load("language")("mine", {"data": "items.jsonl", "text": "text", "teacher": "task"}, tmp_path)
        made.prepare(at)
        one = World(made, model, other, at, tmp_path).taught()
        rows, kinds = made.splits.calibration, dict.fromkeys(KINDS, 1.0)
        slope = one.slope(kinds, rows, temperature=2.0)
        found.append([one.value(rows, kinds, 2.0), float(slope.norm()), made.score(model, rows).measures["kl"].value])
    np.testing.assert_allclose(found, np.tile(found[-1], (3, 1)), rtol=1e-4)
    assert min(found[0]) > 0


def test_a_teacher_or_a_model_with_nan_is_refused(tmp_path: Path, kind: str) -> None:
    one = world(tmp_path, kind).taught()
    for p in (*one.teacher.parameters(), *one.model.parameters()):
        p.fill_(float("nan"))
    with pytest.raises(NonFinite, match="outputs of its teacher 'task' are not finite"):
        one.evaluator.teach(one.teacher, tmp_path / "new.safetensors", False)
    assert not list(tmp_path.glob("*new*")) and not list(tmp_path.glob(".*new*"))
    with pytest.raises(NonFinite, match="the loss is nan"):
        one.value(one.evaluator.splits.calibration, {"entropy": 1.0})


def test_losses_leave_the_models_scores_as_they_were(tmp_path: Path, kind: str) -> None:
    one = world(tmp_path, kind).taught()
    rows = one.evaluator.splits.calibration
    before = one.evaluator.score(one.model, rows)
    one.slope({"entropy": 1.0, "kl": 1.0}, rows)
    assert one.evaluator.score(one.model, rows).measures == before.measures
    assert not any(p.requires_grad for p in one.model.parameters())
