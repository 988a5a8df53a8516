"""How well does a merged model tell one task's classes apart? Texts or images, through that task's own head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from evaluators import heads, images, labels, metrics, texts
from evaluators.batches import Batch, Batches, by_length, in_order, pad
from evaluators.errors import DataError, NonFinite, OptionError
from evaluators.evaluator import Head, Indices, Metric, Scores, Setting
from evaluators.options import Count, ItemOptions, parse
from evaluators.splits import load_items

Positive = Annotated[float, Field(gt=0)]
Column = Annotated[str, Field(min_length=1)]


class ClassificationOptions(ItemOptions):
    """Options of kind `classification`. One of `text` and `image` says what the model reads."""

    text: Column | Annotated[list[Column], Field(min_length=2, max_length=2)] | None = None
    """The column with the text, or the two columns of a pair."""
    image: Column | None = None
    """The column with the image: nested numbers (H, W) or (C, H, W), a path beside the data file, or bytes."""
    label: Column = "label"
    """The column with the class: its name, or its place in `classes`."""
    classes: Annotated[list[str | int], Field(min_length=2)] | None = None
    """The class of each row of the head. Default: the expert's id2label, else the labels, sorted."""
    head: str | None = None
    """The expert whose head reads this task. Default: the one called like the evaluator."""
    pooling: heads.Pooling | None = None
    """`model`: the architecture's own classifier. `cls`, `mean`: a linear head on the first position, or on their mean.

    Default: `model` where the expert's config names a classifier, else `mean` for texts and `cls` for images.
    """
    normalize: bool = False
    """Scale pooled vectors to length 1 before the linear head."""
    max_length: Count | None = None
    """Texts are cut after so many tokens. Default: what tokenizer and model can take."""
    scale: float = 1.0
    """Pixel values given as numbers are multiplied by this, ..."""
    mean: float | list[float] = 0.0
    """... this is subtracted (one number, or one a channel), ..."""
    std: Positive | list[Positive] = 1.0
    """... and they are divided by this."""
    batch_size: Count | None = None
    """Items that go through the model together. Default: the worker's."""

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


class Classification:
    """Accuracy, macro F1 and cross-entropy of a task's head on the resident trunk."""

    runs_code: ClassVar[bool] = False
    Options: ClassVar[type[ClassificationOptions]] = ClassificationOptions

    metrics = (
        Metric("accuracy", "max", "share of items whose most likely class is the true one"),
        Metric("macro_f1", "max", "unweighted mean of the classes' F1"),
        Metric("cross_entropy", "min", "mean negative log likelihood of the true class, in nats"),
    )

    def __init__(self, name: str, options: ClassificationOptions | Mapping[str, Any], root: Path) -> None:
        self.name = name
        self._options = asked = parse(ClassificationOptions, name, options)
        self._columns = (
            [asked.image] if asked.image else [asked.text] if isinstance(asked.text, str) else asked.text or []
        )
        self._items = load_items(asked, root, [*self._columns, asked.label])
        self.splits, self.files = self._items.splits, self._items.files
        self._labels = labels.check_labels(self._items, asked.label)
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
        self._truth = labels.numbers(self._items, asked.label, self._labels, classes)
        size = asked.batch_size or setting.batch_size
        batches = self._text(setting, tokenizer, size) if tokenizer is not None else self._image(setting, size)
        self._batches = Batches(batches)

    @torch.inference_mode()
    def score(self, model: Any, items: Indices) -> Scores:
        """Scores of the model as it is now on these rows; raises `NonFinite` where logits are not finite."""
        self._items.check(self.name, items)
        model.eval()
        logits = self._batches.run(items, lambda inputs: self._forward(model, inputs))
        finite = torch.isfinite(logits).all(dim=1)
        if not finite.all():
            raise NonFinite(
                f"evaluator {self.name!r}: {int((~finite).sum())} of {len(items)} items have logits that are NaN or "
                "infinite; the candidate has failed"
            )
        truth = torch.from_numpy(self._truth[items]).to(logits.device)
        predicted = logits.argmax(dim=1)
        nll = torch.nn.functional.cross_entropy(logits, truth, reduction="none").cpu().numpy()
        correct = (predicted == truth).float().cpu().numpy()
        measures = {
            "accuracy": metrics.mean(correct),
            "macro_f1": metrics.macro_f1(self._truth[items], predicted.cpu().numpy(), self._classes),
            "cross_entropy": metrics.mean(nll),
        }
        return Scores(measures, {"accuracy": correct, "cross_entropy": nll})

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
            self._check_channels(next(iter(found.cells.values())).shape[0], setting.model.config)
            stacks = [images.standardise(found, rows.tolist(), asked.scale, asked.mean, asked.std) for rows in chunks]

        def move(pixels: Tensor) -> dict[str, Tensor]:
            return {"pixel_values": pixels.to(setting.device, parameter.dtype)}

        return [Batch(rows, move(pixels)) for rows, pixels in zip(chunks, stacks, strict=True)]

    def _check_channels(self, channels: int, config: Any) -> None:
        expected = getattr(config, "num_channels", channels)
        if channels != expected:
            raise DataError(
                f"evaluator {self.name!r}: images have {channels} channels, the model reads {expected}; "
                "convert the images"
            )
        for key in ("mean", "std"):
            given = getattr(self._options, key)
            if isinstance(given, list) and len(given) not in (1, channels):
                raise OptionError(
                    f"evaluator {self.name!r}: option {key!r} has {len(given)} numbers for {channels} channels; "
                    "give one a channel"
                )
