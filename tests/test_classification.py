"""Does classification give what transformers gives for the whole expert, and does bad input say what is wrong?"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from pico import base, config, expert, tokenizer
from PIL import Image
from safetensors.torch import load_file

from evaluators.classification import Classification
from evaluators.errors import DataError, OptionError
from evaluators.evaluator import Head, Scores, Setting

TEXTS = ["good red", "bad", "a b c good blue d e f", "red blue bad a", "c", "bad bad d", "blue", "e f g h"]


def rows(labels: list[Any], **columns: list[Any]) -> list[dict[str, Any]]:
    columns = columns or {"text": TEXTS}
    return [
        dict(zip(columns, cells, strict=True), label=label)
        for *cells, label in zip(*columns.values(), labels, strict=True)
    ]


def make(root: Path, items: list[dict[str, Any]], **options: Any) -> Classification:
    (root / "a.jsonl").write_text("\n".join(map(json.dumps, items)))
    column = {} if "image" in options or "text" in options else {"text": "text"}
    return Classification("task", {"data": "a.jsonl", **column, **options}, root)


def at(folder: Path, head: Path, trunk: str, model: Any = None, batch_size: int = 3) -> Setting:
    """The setting in which the resident model is the expert's own trunk: the merge that is one expert."""
    tensors = load_file(head / "model.safetensors")
    own = {k: v for k, v in tensors.items() if not k.startswith(trunk)} if trunk else {}
    own |= {k: v for k, v in tensors.items() if k.startswith("classifier")}
    resident = hf.AutoModel.from_pretrained(head) if model is None else model
    return Setting(resident, folder, torch.device("cpu"), {"task": Head(head, own)}, batch_size)


def everything(evaluator: Classification, setting: Setting) -> Scores:
    evaluator.prepare(setting)
    return evaluator.score(setting.model, np.arange(len(TEXTS)))


def save_classifier(folder: Path, kind: str, cls: type[Any], labels: int = 3, **changes: Any) -> Path:
    torch.manual_seed(5)
    made = cls(config(kind, num_labels=labels, **changes))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    made.save_pretrained(folder)
    if kind != "vit":
        tokenizer(folder)
    return folder


def nll_by_transformers(folder: Path, cls: type[Any], labels: list[int]) -> np.ndarray:
    """One text at a time, no padding: nothing that the evaluator could share a mistake with."""
    model, words = cls.from_pretrained(folder).eval(), hf.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = [model(**words(text, return_tensors="pt")).logits for text in TEXTS]
    return np.array(
        [float(torch.nn.functional.cross_entropy(z, torch.tensor([y]))) for z, y in zip(logits, labels, strict=True)]
    )


SEQUENCE = {
    "bert": (hf.BertForSequenceClassification, "bert.", {}),
    "llama": (hf.LlamaForSequenceClassification, "model.", {"pad_token_id": 0}),
}


@pytest.mark.parametrize("kind", SEQUENCE)
def test_own_classifier_is_what_transformers_computes(kind: str, tmp_path: Path) -> None:
    cls, trunk, changes = SEQUENCE[kind]
    folder = save_classifier(tmp_path / "expert", kind, cls, **changes)
    labels = [0, 1, 2, 0, 1, 2, 0, 1]
    scores = everything(make(tmp_path, rows(labels)), at(folder, folder, trunk))
    np.testing.assert_allclose(scores.per_item["cross_entropy"], nll_by_transformers(folder, cls, labels), atol=1e-5)


def test_a_pooler_that_the_base_lacks_comes_from_the_head(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "expert", "bert", hf.BertForSequenceClassification)
    resident = hf.BertModel.from_pretrained(folder, add_pooling_layer=False)
    setting = at(folder, folder, "bert.", resident)
    pooler = {k: v for k, v in load_file(folder / "model.safetensors").items() if ".pooler." in k}
    head = Head(folder, {**setting.heads["task"].tensors, **pooler})
    setting = Setting(resident, folder, setting.device, {"task": head}, 3)
    labels = [0, 1, 2, 0, 1, 2, 0, 1]
    scores = everything(make(tmp_path, rows(labels)), setting)
    expected = nll_by_transformers(folder, hf.BertForSequenceClassification, labels)
    np.testing.assert_allclose(scores.per_item["cross_entropy"], expected, atol=1e-5)
    assert resident.pooler is None, "the resident model is shared with other tasks"
    with pytest.raises(OptionError, match=r"lacks: bert\.pooler\.dense\.bias, bert\.pooler\.dense\.weight"):
        make(tmp_path, rows(labels)).prepare(at(folder, folder, "bert.", resident))


def test_own_image_classifier_is_what_transformers_computes(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "expert", "vit", hf.ViTForImageClassification)
    pixels = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    items = rows([0, 1, 2, 0, 1, 2, 0, 1], x=pixels.tolist())
    scores = everything(make(tmp_path, items, image="x", mean=0.5, std=2.0), at(folder, folder, "vit."))
    with torch.no_grad():
        model = hf.ViTForImageClassification.from_pretrained(folder).eval()
        logits = model(torch.from_numpy((pixels - 0.5) / 2)[:, None]).logits
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]), reduction="none")
    np.testing.assert_allclose(scores.per_item["cross_entropy"], expected, atol=1e-5)


@pytest.mark.parametrize(("pooling", "unit"), [("mean", False), ("mean", True), ("cls", False)])
def test_linear_head_on_pooled_states(pooling: str, unit: bool, tmp_path: Path) -> None:
    task = expert(tmp_path / "task", base(tmp_path / "base"), 1, labels=3)
    setting = at(tmp_path / "base", task, "")
    labels = [0, 1, 2, 0, 1, 2, 0, 1]
    scores = everything(make(tmp_path, rows(labels), pooling=pooling, normalize=unit), setting)
    words, tensors = hf.AutoTokenizer.from_pretrained(setting.folder), load_file(task / "model.safetensors")
    for text, label, found in zip(TEXTS, labels, scores.per_item["cross_entropy"], strict=True):
        with torch.no_grad():
            states = setting.model(**words(text, return_tensors="pt")).last_hidden_state[0]
        pooled = states.mean(0) if pooling == "mean" else states[0]
        pooled = pooled / pooled.norm() if unit else pooled
        logits = tensors["classifier.weight"] @ pooled + tensors["classifier.bias"]
        assert found == pytest.approx(float(-logits.log_softmax(0)[label]), abs=1e-5)


def test_batches_and_padding_change_results_by_rounding_only(tmp_path: Path) -> None:
    task = expert(tmp_path / "task", base(tmp_path / "base"), 1, labels=3)
    found = [
        everything(make(tmp_path, rows([0, 1, 2, 0, 1, 2, 0, 1]), batch_size=size), at(tmp_path / "base", task, ""))
        for size in (1, 3, 8)
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other.per_item["cross_entropy"], found[0].per_item["cross_entropy"], atol=1e-5)


def test_measures_are_those_of_the_items(tmp_path: Path) -> None:
    task = expert(tmp_path / "task", base(tmp_path / "base"), 1, labels=3)
    scores = everything(make(tmp_path, rows([0, 1, 2, 0, 1, 2, 0, 1])), at(tmp_path / "base", task, ""))
    assert scores.measures["accuracy"].value == pytest.approx(scores.per_item["accuracy"].mean())
    assert scores.measures["cross_entropy"].value == pytest.approx(scores.per_item["cross_entropy"].mean())
    assert 0 <= scores.measures["macro_f1"].value <= 1


NAMED = [
    (["spam", "ham"], ["spam", "ham"], [0, 1]),
    (["spam", "ham"], [1, 0], [1, 0]),
    ([7, 3], ["3", "7"], [1, 0]),
    (["3", "7"], [7, 3], [1, 0]),
    (None, ["b", "a"], [1, 0]),
    (None, [1, 0], [1, 0]),
    (None, [True, False], [1, 0]),
    (None, ["LABEL_1", "LABEL_0"], [1, 0]),
]


@pytest.mark.parametrize(("classes", "labels", "numbers"), NAMED)
def test_what_a_label_means(classes: list[Any] | None, labels: list[Any], numbers: list[int], tmp_path: Path) -> None:
    task = expert(tmp_path / "task", base(tmp_path / "base"), 1, labels=2)
    options = {} if classes is None else {"classes": classes}
    setting = at(tmp_path / "base", task, "")
    plain = everything(make(tmp_path, rows(numbers * 4)), setting)
    named = everything(make(tmp_path, rows(labels * 4), **options), setting)
    assert sorted(named.per_item["cross_entropy"]) == pytest.approx(sorted(plain.per_item["cross_entropy"]), abs=1e-5)


def test_the_experts_own_names_of_the_classes_are_used(tmp_path: Path) -> None:
    task = expert(tmp_path / "task", base(tmp_path / "base"), 1, labels=2)
    conf = hf.AutoConfig.from_pretrained(task)
    conf.id2label = {0: "yes", 1: "no"}
    conf.save_pretrained(task)
    setting = at(tmp_path / "base", task, "")
    named = everything(make(tmp_path, rows(["no", "yes"] * 4)), setting)
    placed = everything(make(tmp_path, rows([1, 0] * 4)), setting)
    assert sorted(named.per_item["accuracy"]) == sorted(placed.per_item["accuracy"])
    with pytest.raises(DataError, match=r"a\.jsonl: row \d, column 'label': unknown label 'nope'; .*'yes', 'no'"):
        make(tmp_path, rows(["nope", "yes"] * 4)).prepare(setting)


def test_a_pair_of_texts_is_read_together(tmp_path: Path) -> None:
    task = expert(tmp_path / "task", base(tmp_path / "base"), 1, labels=2)
    setting = at(tmp_path / "base", task, "")
    items = rows([0, 1] * 4, a=TEXTS, b=TEXTS[::-1])
    both = everything(make(tmp_path, items, text=["a", "b"]), setting)
    one = everything(make(tmp_path, items, text="a"), setting)
    assert not np.allclose(both.per_item["cross_entropy"], one.per_item["cross_entropy"])


def picture(seed: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (12, 10, 3), dtype=np.uint8)).save(data, "PNG")
    return data.getvalue()


def image_setting(root: Path) -> Setting:
    folder = base(root / "base", "vit", num_channels=3)
    half = [0.5] * 3
    hf.ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=half, image_std=half).save_pretrained(folder)
    return at(folder, expert(root / "task", folder, 1, labels=2), "")


def test_pictures_as_files_and_as_bytes_go_through_the_image_processor(tmp_path: Path) -> None:
    import datasets

    setting = image_setting(tmp_path)
    (tmp_path / "pictures").mkdir()
    for i in range(8):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(picture(i))
    files = make(tmp_path, rows([0, 1] * 4, x=[f"pictures/{i}.png" for i in range(8)]), image="x")
    assert tmp_path / "pictures" / "3.png" in files.files
    cells = [{"x": {"bytes": picture(i), "path": None}, "label": i % 2} for i in range(8)]
    datasets.Dataset.from_list(cells).cast_column("x", datasets.Image()).save_to_disk(tmp_path / "saved")
    stored = Classification("task", {"data": "saved", "image": "x"}, tmp_path)
    by_file, by_bytes = (everything(evaluator, setting).per_item["cross_entropy"] for evaluator in (files, stored))
    np.testing.assert_allclose(by_file, by_bytes, atol=1e-5)
    processor = hf.AutoImageProcessor.from_pretrained(setting.folder, backend="pil")
    inputs = processor([Image.open(tmp_path / "pictures" / f"{i}.png") for i in range(8)], return_tensors="pt")
    with torch.no_grad():
        state = setting.model(**inputs).last_hidden_state[:, 0]
    head = setting.heads["task"].tensors
    logits = state @ head["classifier.weight"].T + head["classifier.bias"]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1] * 4), reduction="none")
    np.testing.assert_allclose(by_file, expected, atol=1e-5)


BAD = [
    ({"items": rows([0] * 8, text=[*TEXTS[:7], " "])}, r"row 7, column 'text': expected text, got a blank"),
    ({"items": rows([0] * 8, text=[*TEXTS[:7], 3])}, r"row 7, column 'text': expected text, got int 3"),
    ({"items": rows([0.5] * 8)}, r"row 0, column 'label': expected a label .* got 0\.5"),
    ({"label": "lable"}, r"row 0 has no column 'lable'; did you mean 'label'"),
    ({"items": rows([*range(8)], x=[[[1, 2], [3]]] * 8), "image": "x"}, r"row 0, column 'x': expected an image"),
    ({"items": rows([*range(8)], x=[[1, 2]] * 8), "image": "x"}, r"expected an image of shape \(H, W\) .* got \(2,\)"),
    ({"items": rows([*range(8)], x=["gone.png"] * 8), "image": "x"}, r"row 0, column 'x': no such image file"),
    (
        {"items": rows([*range(8)], x=[*[[[0, 1]]] * 7, [[2]]]), "image": "x"},
        r"row 7.*shape \(1, 1, 2\).* got \(1, 1, 1\)",
    ),
    (
        {"items": rows([*range(8)], x=[*[[[0, 1]]] * 7, [[0, float("nan")]]]), "image": "x"},
        "row 7.*finite pixel values",
    ),
    ({"text": "text", "image": "x"}, "expected one of `text` and `image`"),
    ({"pooling": "max"}, "option 'pooling'"),
    ({"normalize": True, "pooling": "model"}, "normalize needs pooling cls or mean"),
    ({"classes": ["a"]}, "option 'classes'"),
    ({"classes": ["a", "a"]}, "named twice"),
    ({"batch_size": 0}, "option 'batch_size'"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input_is_explained_before_a_model_is_needed(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    options = dict(options)
    with pytest.raises((DataError, OptionError), match=message):
        make(tmp_path, options.pop("items", rows([0, 1] * 4)), **options)


def test_heads_that_do_not_fit_are_explained(tmp_path: Path) -> None:
    folder = base(tmp_path / "base")
    setting = at(folder, expert(tmp_path / "task", folder, 1, labels=2), "")
    for options, labels, message in [
        ({"head": "other"}, [0, 1], r"no expert 'other' with a head of its own; there are: task"),
        ({"classes": ["a", "b", "c"]}, ["a", "b"], r"3 classes \('a', 'b', 'c'\) but a head of 2 rows"),
        ({"classes": ["a", "b"]}, ["a", "d"], "unknown label 'd'"),
        ({}, [0, 2], "unknown label 2"),
        ({"max_length": 100}, [0, 1], "max_length 100 is more than the model's 40"),
    ]:
        with pytest.raises((DataError, OptionError), match=message):
            make(tmp_path, rows(labels * 4), **options).prepare(setting)
    for tensors, pooling, message in [
        ({"classifier.0.weight": torch.ones(2, 2)}, "mean", "needs a head with one linear layer .*classifier.0.weight"),
        (
            {"classifier.weight": torch.ones(2, 16)},
            "model",
            "needs tensors that the head of task lacks: classifier.bias",
        ),
        ({"classifier.weight": torch.ones(2, 9)}, "model", r"has shape \(2, 9\), Bert.* expects \(2, 16\)"),
        ({"pooler.dense.weight": torch.ones(16, 16)}, "model", "lacks: .*classifier.weight"),
        ({"strange.weight": torch.ones(2, 9)}, "model", "strange.weight .*expects no such tensor"),
    ]:
        other = Setting(setting.model, folder, setting.device, {"task": Head(tmp_path / "task", tensors)})
        with pytest.raises(OptionError, match=message):
            make(tmp_path, rows([0, 1] * 4), pooling=pooling).prepare(other)


def test_images_that_the_model_cannot_read_are_explained(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", "vit")
    setting = at(folder, expert(tmp_path / "task", folder, 1, labels=2), "")
    wide = make(tmp_path, rows([0, 1] * 4, x=np.random.default_rng(0).random((8, 3, 8, 8)).tolist()), image="x")
    with pytest.raises(DataError, match="images have 3 channels, the model reads 1"):
        wide.prepare(setting)
    for name, content in (("a.png", picture(0)), ("b.png", b"no picture")):
        (tmp_path / name).write_bytes(content)
    pictures = make(tmp_path, rows([0, 1] * 4, x=["a.png"] * 7 + ["b.png"]), image="x")
    with pytest.raises(OptionError, match="preprocessor_config"):
        pictures.prepare(setting)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="row 7, column 'x': not a readable image"):
        pictures.prepare(image_setting(tmp_path / "other"))
