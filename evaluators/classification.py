"""How well does a merged model tell one task's classes apart? Texts or images, through that task's own head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from evaluators import heads, images, labels, losses, metrics, statistics, teacher, texts
from evaluators.batches import Batch, Batches, by_item, by_length, in_order, pad
from evaluators.errors import NonFinite, OptionError
from evaluators.evaluator import Head, Indices, Loss, Metric, Scores, Setting
from evaluators.options import Count, ItemOptions, parse
from evaluators.splits import load_items

Positive = Annotated[float, Field(gt=0)]
Column = Annotated[str, Field(min_length=1)]


class ClassificationOptions(ItemOptions):
    """Options of kind `classification`. One of `text` and `image` says what the model reads."""

    text: Column | Annotated[list[Column], Field(min_length=2, max_length=2)] | None = None
    """The column with the text, or the two columns `[a, b]` of a pair; this or `image` is required."""
    image: Column | None = None
    """The column with the image: nested numbers, (H, W) or (C, H, W); a path beside the data file, or bytes, which go
    through the base's image processor."""
    label: Column | None = "label"
    """The column with the class: its name, or its place in `classes`. `null`: no labels, and of the metrics only
    `entropy` and `kl`."""
    classes: Annotated[list[str | int], Field(min_length=2)] | None = None
    """The class of each row of the head. Default: the expert's id2label, else the labels, sorted."""
    head: str | None = None
    """The expert whose head reads this task. Default: the one called like the evaluator."""
    pooling: heads.Pooling | None = None
    """`model`: the architecture's own classifier. `cls`, `mean`: a linear head on the last hidden state, at its first
    position or the mean of all.

    Default: `model` where the expert's config names a classifier, else `mean` for texts and `cls` for images.
    """
    normalize: bool = False
    """Scale pooled vectors to length 1 before a linear head."""
    teacher: Column | None = None
    """The expert that the losses `kl` and `hidden` follow, and whose predictions the metric `kl` measures the distance
    from; without it there is no such metric. Default: the head's, for the losses."""
    hidden_layers: list[int] = Field([-1], min_length=1)
    """The hidden states that the loss `hidden` compares: 0 are the embeddings, -1 is the last layer."""
    max_length: Count | None = None
    """Texts are cut after so many tokens. Default: what tokenizer and model can take."""
    scale: float = 1.0
    """What pixels that are given as numbers are multiplied by."""
    mean: float | list[float] = 0.0
    """What is then subtracted: one number, or one a channel."""
    std: Positive | list[Positive] = 1.0
    """What they are then divided by, likewise."""
    batch_size: Count | None = None
    """Items that go through the model together. Default: the worker's, `32`."""

    @model_validator(mode="after")
    def _fits(self) -> ClassificationOptions:
        if (self.text is None) == (self.image is None):
            raise ValueError("expected one of `text` and `image`: the column that the model reads")
        if self.normalize and self.pooling == "model":
            raise ValueError(
                "normalize needs pooling cls or mean: with `model` the architecture's own classifier decides"
            )
        if self.classes is not None and len({str(c) for c in self.classes}) < len(self.classes):
            raise ValueError("a class is named twice in `classes`; each row of the head has one name of its own")
        return self


LABELLED = (
    Metric("accuracy", "max", "share of items whose most likely class is the true one", 0, 1),
    Metric("macro_f1", "max", "unweighted mean of the classes' F1", 0, 1, whole=True),
    Metric("cross_entropy", "min", "mean negative log likelihood of the true class, in nats", 0),
)
ENTROPY = Metric("entropy", "min", "mean softmax entropy, in nats: needs no labels", 0)
KL = Metric("kl", "min", "mean KL divergence from the teacher's predictions, in nats: needs no labels", 0)


class Classification:
    """Accuracy, macro F1 and cross-entropy of a task's head on the resident trunk; entropy, and KL from a teacher."""

    runs_code: ClassVar[bool] = False
    brings_head: ClassVar[bool] = True
    Options: ClassVar[type[ClassificationOptions]] = ClassificationOptions

    def __init__(self, name: str, options: ClassificationOptions | Mapping[str, Any], root: Path) -> None:
        self.name = name
        self._options = asked = parse(ClassificationOptions, name, options)
        self._columns = (
            [asked.image] if asked.image else [asked.text] if isinstance(asked.text, str) else asked.text or []
        )
        labelled = asked.label is not None
        self._items = load_items(asked, root, [*self._columns, *([asked.label] if asked.label is not None else [])])
        self.splits, self.files = self._items.splits, self._items.files
        self._labels = labels.check_labels(self._items, asked.label) if asked.label is not None else {}
        self.teacher: str | None = asked.teacher or asked.head or name
        self.learns = asked.teacher is not None
        self.metrics = self.reports(asked)
        self.losses = {kind: what for kind, what in losses.KINDS.items() if labelled or kind != "cross_entropy"}
        self._outputs: teacher.Outputs | None = None
        self._images: images.Images | None = None
        if asked.image:
            self._images = images.read_images(self._items, asked.image)
            self.files += self._images.files
            if self._images.kind == "pictures" and {"scale", "mean", "std"} & asked.model_fields_set:
                raise OptionError(
                    f"evaluator {name!r}: scale, mean and std are for images given as numbers; pictures go through the "
                    "base model's image processor: drop them"
                )
        else:
            texts.check_texts(self._items, self._columns)

    @staticmethod
    def reports(asked: ClassificationOptions) -> tuple[Metric, ...]:
        """The metrics of one with these options."""
        return (*(LABELLED if asked.label is not None else ()), ENTROPY, *((KL,) if asked.teacher is not None else ()))

    def prepare(self, setting: Setting) -> None:
        """Tokenise or process the items, collate and move them, and join head and trunk.

        Raises `OptionError` for a head that is not there or does not fit, `DataError` for an unknown label.
        """
        asked = self._options
        head = self._head(setting)
        reads: Literal["text", "image"] = "image" if asked.image else "text"
        config = heads.read_config(head.folder)
        tokenizer = None if asked.image else texts.load_tokenizer(setting.folder)
        pad_id = 0 if tokenizer is None else texts.pad_token(tokenizer)
        pooling = asked.pooling or (
            "mean" if asked.normalize and reads == "text" else heads.default_pooling(config, reads)
        )
        if pooling == "model":
            self._forward, rows = heads.model_head(self.name, head, config, reads, setting.model, pad_id)
        else:
            self._forward, rows = heads.linear_head(self.name, head, pooling, asked.normalize, setting.device)
        self.head_use = heads.HeadUse.of(asked.head or self.name, head, pooling, asked.normalize, reads)
        classes = labels.class_list(self.name, asked.classes, config, self._labels, rows)
        self._classes = len(classes)
        self._truth = labels.numbers(self._items, asked.label or "", self._labels, classes)
        self._size = size = setting.size(asked.batch_size)
        batches = self._text(setting, tokenizer, size) if tokenizer is not None else self._image(setting, size)
        self._batches = Batches(batches, pad_id)
        self._outputs = None

    @torch.inference_mode()
    def score(self, model: Any, items: Indices) -> Scores:
        """Scores of the model as it is now on these rows; raises `NonFinite` where logits are not finite."""
        self._items.check(self.name, items)
        model.eval()
        logits = self._batches.run(items, lambda batch: self._forward(model, batch.inputs, ())[0])
        finite = torch.isfinite(logits).all(dim=1)
        if not finite.all():
            raise NonFinite(
                f"evaluator {self.name!r}: {int((~finite).sum())} of {len(items)} items have logits that are NaN or "
                "infinite; the candidate has failed"
            )
        per_item = {"entropy": losses.entropy(logits).cpu().numpy()}
        if self.learns:
            per_item["kl"] = losses.kl(logits, self._taught(items, logits.device), 1.0).cpu().numpy()
        if not self._labels:
            return Scores({name: metrics.mean(values) for name, values in per_item.items()}, per_item)
        truth = torch.from_numpy(self._truth[items]).to(logits.device)
        predicted = logits.argmax(dim=1)
        per_item["cross_entropy"] = torch.nn.functional.cross_entropy(logits, truth, reduction="none").cpu().numpy()
        per_item["accuracy"] = (predicted == truth).float().cpu().numpy()
        measures = {name: metrics.mean(values) for name, values in per_item.items()}
        measures["macro_f1"] = metrics.macro_f1(self._truth[items], predicted.cpu().numpy(), self._classes)
        return Scores({metric.name: measures[metric.name] for metric in self.metrics}, per_item)

    def loss(self, model: Any, items: Indices, loss: Loss, of: Indices | None = None) -> Iterator[Tensor]:
        """The loss over these rows `(n,)`, a share of it for each microbatch; raises `NonFinite`, `OptionError`."""
        total = len(items if of is None else of)
        self._items.check(self.name, items)
        losses.check_kinds(self.name, self.losses, loss)
        model.eval()
        for start in range(0, len(items), self._size):
            rows = items[start : start + self._size]
            with torch.enable_grad():
                value = self._loss(model, rows, loss) * (len(rows) / total)
            losses.check_finite(self.name, value, self._outputs)
            yield value

    def _loss(self, model: Any, rows: Indices, loss: Loss) -> Tensor:
        inputs = self._batches.take(rows)
        layers = self._options.hidden_layers if "hidden" in loss.weights else ()
        logits, states = self._forward(model, inputs, layers)
        found: dict[str, Tensor] = {}
        if "entropy" in loss.weights:
            found["entropy"] = losses.entropy(logits).mean()
        if "cross_entropy" in loss.weights:
            truth = torch.from_numpy(self._truth[rows]).to(logits.device)
            found["cross_entropy"] = torch.nn.functional.cross_entropy(logits, truth)
        if "kl" in loss.weights:
            found["kl"] = losses.kl(logits, self._taught(rows, logits.device), loss.temperature).mean()
        if "hidden" in loss.weights:
            found["hidden"] = torch.stack(
                [self._distance(inputs, rows, layer, state) for layer, state in zip(layers, states, strict=True)]
            ).mean()
        return torch.stack([weight * found[kind] for kind, weight in loss.weights.items()]).sum()

    def _distance(self, inputs: Mapping[str, Tensor], rows: Indices, layer: int, states: Tensor) -> Tensor:
        """The mean over items of the distance between hidden states `(b, t, d)` and the teacher's."""
        wanted = self._learned(f"hidden.{layer}").of(f"hidden.{layer}", rows.tolist())
        return losses.hidden(by_item(states, inputs), wanted).mean()

    def unpadded(self, rows: Indices, size: int) -> list[Indices]:
        return self._batches.unpadded(rows, size)

    def observe(self, model: Any, rows: Indices) -> None:
        model.eval()
        self._forward(model, self._batches.take(rows), ())

    def likelihoods(self, model: Any, row: int) -> Iterator[tuple[float, Tensor]]:
        """Each class with its probability where they are few, else one that is drawn: see `statistics.expected`."""
        model.eval()
        with torch.enable_grad():
            logits = self._forward(model, self._batches.take(np.array([row])), ())[0]
            log = torch.nn.functional.log_softmax(logits[0], dim=-1)
        yield from statistics.expected(log, f"{self.name} {row}")

    def predictions(self, row: int) -> int:
        return 1

    @torch.inference_mode()
    def teach(self, model: Any, file: Path, hidden: bool, room: Callable[[int], None] = lambda needed: None) -> None:
        """Keep the logits of `model`, and its hidden states, on all items; raises `NonFinite`, `DataError`."""
        model.eval()
        layers = tuple(self._options.hidden_layers) if hidden else ()

        def step(batch: Batch) -> dict[str, teacher.Pieces]:
            logits, states = self._forward(model, batch.inputs, layers)
            found = {"logits": list(logits.unsqueeze(1))}
            found |= {f"hidden.{n}": by_item(s, batch.inputs) for n, s in zip(layers, states, strict=True)}
            return {name: zip(batch.rows.tolist(), values, strict=True) for name, values in found.items()}

        counts, whose = self._counts(), f"evaluator {self.name!r}: the outputs of its teacher {self.teacher!r}"
        teacher.write(file, whose, self._batches, counts, dict.fromkeys(counts, np.dtype("<f4")), step, room)

    def learn(self, file: Path) -> None:
        """Take the teacher's outputs from a file that `teach` wrote; raises `DataError` where it is of other items."""
        self._outputs = teacher.Outputs(file, self._batches, self._counts(), self._classes)

    def _counts(self) -> dict[str, Indices]:
        """How many rows each item has among the teacher's outputs, by row number: see `by_item`."""
        positions = np.zeros(len(self._items.rows), dtype=np.int64)
        ones = np.zeros(len(self._items.rows), dtype=np.int64)
        for batch in self._batches:
            mask = batch.inputs.get("attention_mask")
            ones[batch.rows] = 1
            positions[batch.rows] = 1 if mask is None else mask.sum(dim=1).cpu().numpy()
        return {"logits": ones, **{f"hidden.{layer}": positions for layer in self._options.hidden_layers}}

    def _learned(self, table: str) -> teacher.Outputs:
        return teacher.learned(self.name, self._outputs, table, self.teacher)

    def _taught(self, rows: Indices, device: torch.device) -> Tensor:
        return self._learned("logits").cut("logits", rows.tolist(), 0, None, device)

    def _head(self, setting: Setting) -> Head:
        wanted = self._options.head or self.name
        if wanted not in setting.heads:
            raise OptionError(
                f"evaluator {self.name!r}: no expert {wanted!r} with a head of its own; there are: "
                f"{', '.join(sorted(setting.heads)) or 'none'}; name one under `head`"
            )
        return setting.heads[wanted]

    def _text(self, setting: Setting, tokenizer: Any, size: int) -> list[Batch]:
        cut = texts.longest(self.name, tokenizer, setting.model.config, self._options.max_length)
        encoded = texts.encode(tokenizer, self._items, self._columns, cut)
        lengths = {row: len(fields["input_ids"]) for row, fields in encoded.items()}
        pad_id = texts.pad_token(tokenizer)
        return [
            Batch(rows, pad(rows, encoded, pad_id, setting.device)) for rows in by_length(self.splits, lengths, size)
        ]

    def _image(self, setting: Setting, size: int) -> list[Batch]:
        found, asked = self._images, self._options
        assert found is not None and asked.image is not None  # told by the options
        parameter = next(setting.model.parameters())
        chunks = in_order(self.splits, size)
        if found.kind == "pictures":
            done = images.process(found, self._items, asked.image, images.load_processor(setting.folder))
            stacks = [torch.stack([done[row] for row in rows.tolist()]) for rows in chunks]
        else:
            images.check_channels(self.name, found, setting.model.config, asked.mean, asked.std)
            stacks = [images.standardise(found, rows.tolist(), asked.scale, asked.mean, asked.std) for rows in chunks]

        def move(pixels: Tensor) -> dict[str, Tensor]:
            return {"pixel_values": pixels.to(setting.device, parameter.dtype)}

        return [Batch(rows, move(pixels)) for rows, pixels in zip(chunks, stacks, strict=True)]
