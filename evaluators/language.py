"""How well does a merged model predict text? Loss per token, and perplexity, of a causal language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from evaluators import heads, losses, metrics, statistics, teacher, texts
from evaluators.batches import Batch, Batches, by_item, by_length, pad
from evaluators.causal import CHUNK, check_causal, probe_head, uncached
from evaluators.errors import DataError, NonFinite
from evaluators.evaluator import Indices, Loss, Metric, Scores, Setting
from evaluators.options import Count, ItemOptions, parse
from evaluators.splits import load_items

Wanted = Callable[[int, int], Tensor]
"""The teacher's logits `(stop - start, vocabulary)` at predicted positions `start` to `stop` of a batch: read from the
disk where they are needed, and not kept."""


class LanguageOptions(ItemOptions):
    """Options of kind `language`."""

    text: Annotated[str, Field(min_length=1)] = "text"
    """The column with the text."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Texts are cut after so many tokens. Default: what tokenizer and model can take."""
    teacher: Annotated[str, Field(min_length=1)] | None = None
    """The expert that the losses `kl` and `hidden` follow; naming it adds the metric `kl`."""
    hidden_layers: list[int] = Field([-1], min_length=1)
    """The hidden states that the loss `hidden` compares: 0 are the embeddings, -1 is the last layer."""
    batch_size: Count | None = None
    """Texts that go through the model together. Default: the worker's, `32`."""


LOSS = Metric("loss", "min", "negative log likelihood per token, in nats", 0)
PERPLEXITY = Metric("perplexity", "min", "exponential of the loss per token", 1, whole=True)
KL = Metric("kl", "min", "KL divergence from the teacher's predictions per token, in nats", 0)


class Language:
    """Loss and perplexity of the resident causal language model on texts, each its own item.

    Every token but the first of a text is predicted from those before it; special tokens count where the tokenizer adds
    them.
    """

    runs_code: ClassVar[bool] = False
    Options: ClassVar[type[LanguageOptions]] = LanguageOptions

    losses: ClassVar[Mapping[str, str]] = losses.KINDS

    def __init__(self, name: str, options: LanguageOptions | Mapping[str, Any], root: Path) -> None:
        self.name = name
        self._options = parse(LanguageOptions, name, options)
        self._items = load_items(self._options, root, [self._options.text])
        self.splits, self.files = self._items.splits, self._items.files
        texts.check_texts(self._items, [self._options.text])
        self.teacher = self._options.teacher
        self.learns = self.teacher is not None
        self.metrics = self.reports(self._options)
        self._outputs: teacher.Outputs | None = None

    @staticmethod
    def reports(asked: LanguageOptions) -> tuple[Metric, ...]:
        """The metrics of one with these options."""
        return (LOSS, PERPLEXITY, *((KL,) if asked.teacher is not None else ()))

    def prepare(self, setting: Setting) -> None:
        """Tokenise, collate and move the texts.

        Raises `OptionError` where the resident model is no causal language model, `DataError` for a text of one token.
        """
        check_causal(self.name, setting.model, "language-model loss")
        tokenizer = texts.load_tokenizer(setting.folder)
        column = self._options.text
        cut = texts.longest(self.name, tokenizer, setting.model.config, self._options.max_length)
        encoded = texts.encode(tokenizer, self._items, [column], cut)
        lengths = {row: len(fields["input_ids"]) for row, fields in encoded.items()}
        for row, length in lengths.items():
            if length < 2:
                raise DataError(
                    f"{self._items.where(row, column)}: expected at least 2 tokens, got {length}; drop the row"
                )
        self._tokens = np.zeros(len(self._items.rows), dtype=np.int64)
        self._tokens[list(lengths)] = np.array(list(lengths.values())) - 1
        # token_type_ids mean nothing to a causal model, and most refuse them
        plain = {row: {key: fields[key] for key in ("input_ids", "attention_mask")} for row, fields in encoded.items()}
        self._size = setting.size(self._options.batch_size)
        chunks = by_length(self.splits, lengths, self._size)
        pad_id = texts.pad_token(tokenizer)
        batches = [Batch(rows, pad(rows, plain, pad_id, setting.device)) for rows in chunks]
        self._batches = Batches(batches, pad_id)
        self._outputs = None
        self._split_head, self._vocabulary = probe_head(setting.model, batches[0].inputs)
        self._step = max(1, CHUNK // self._vocabulary)

    @torch.inference_mode()
    def score(self, model: Any, items: Indices) -> Scores:
        """Scores of the model as it is now on these rows; raises `NonFinite` where a loss is not finite."""
        self._items.check(self.name, items)
        model.eval()
        sums = self._batches.run(items, lambda batch: self._sums(model, batch)).cpu().numpy()
        nll, found = sums[:, 0], sums[:, 1:]
        finite = np.isfinite(sums).all(axis=1)
        if not finite.all():
            raise NonFinite(
                f"evaluator {self.name!r}: {int((~finite).sum())} of {len(items)} items have a loss that is NaN or "
                "infinite; the candidate has failed"
            )
        tokens = self._tokens[items]
        loss = metrics.token_loss(nll, tokens)
        perplexity = metrics.perplexity(loss)
        if not np.isfinite(perplexity.value):
            raise NonFinite(
                f"evaluator {self.name!r}: a loss of {loss.value:.3g} nats per token over {len(items)} items has no "
                "finite perplexity; the candidate has failed"
            )
        measures, per_item = {"loss": loss, "perplexity": perplexity}, {"loss": (nll / tokens).astype(np.float32)}
        if self.learns:
            measures["kl"] = metrics.token_loss(found[:, 0], tokens)
            per_item["kl"] = (found[:, 0] / tokens).astype(np.float32)
        return Scores(measures, per_item)

    def _sums(self, model: Any, batch: Batch) -> Tensor:
        """Summed loss of each text in nats, and summed KL where that is a metric: float64 `(b, 1)` or `(b, 2)`.

        Logits are made for the true positions only, `CHUNK` numbers at a time; an architecture that does more to its
        logits than one linear layer makes all those of the batch.
        """
        states, head, _ = self._predicted(model, batch.inputs, ())
        kept = batch.inputs["attention_mask"][:, 1:].bool()  # (b, t - 1): the positions that are predicted
        targets = batch.inputs["input_ids"][:, 1:][kept]
        wanted = self._taught(batch.rows, states.device) if self.learns else None
        parts = []
        for start in range(0, len(targets), self._step):
            stop = min(start + self._step, len(targets))
            logits = head(states[start:stop]).float()
            part = [cross_entropy(logits, targets[start:stop], reduction="none")]
            part += [losses.kl(logits, wanted(start, stop), 1.0)] if wanted is not None else []
            parts.append(torch.stack(part))
        sums = []
        for values in torch.cat(parts, dim=1).double():
            each = torch.zeros(kept.shape, dtype=torch.float64, device=kept.device)
            each[kept] = values
            sums.append(each.sum(dim=1))
        return torch.stack(sums, dim=1)

    def loss(self, model: Any, items: Indices, loss: Loss, of: Indices | None = None) -> Iterator[Tensor]:
        """The loss per token over these texts `(n,)` (`hidden`: a text), a share of it for each microbatch."""
        self._items.check(self.name, items)
        losses.check_kinds(self.name, self.losses, loss)
        model.eval()
        every = items if of is None else of
        total = int(self._tokens[every].sum())
        for start in range(0, len(items), self._size):
            rows = items[start : start + self._size]
            with torch.enable_grad():
                value = self._loss(model, rows, loss, total, len(every))
            losses.check_finite(self.name, value, self._outputs)
            yield value

    def _loss(self, model: Any, rows: Indices, loss: Loss, total: int, count: int) -> Tensor:
        """Sums over these texts, divided by the tokens (texts) of all that were asked."""
        inputs = self._batches.take(rows)
        layers = self._options.hidden_layers if "hidden" in loss.weights else ()
        states, head, hidden = self._predicted(model, inputs, layers)
        targets = inputs["input_ids"][:, 1:][inputs["attention_mask"][:, 1:].bool()]
        wanted = self._taught(rows, states.device) if "kl" in loss.weights else None
        parts = [states.new_zeros((), dtype=torch.float32)]
        for start in range(0, len(targets) if loss.weights.keys() != {"hidden"} else 0, self._step):
            cut = slice(start, start + self._step)
            # logits are made again on the way back, and not kept: they are far larger than the states
            part = (head, states[cut], targets[cut], wanted, start, loss)
            parts.append(checkpoint(_token_losses, *part, use_reentrant=False))
        value = torch.stack(parts).sum() / total
        for layer, found in zip(layers, hidden, strict=True):
            kept = self._learned(f"hidden.{layer}").of(f"hidden.{layer}", rows.tolist())
            apart = losses.hidden(by_item(found, inputs), kept)
            value = value + loss.weights["hidden"] * apart.sum() / (count * len(layers))
        return torch.as_tensor(value)

    def unpadded(self, rows: Indices, size: int) -> list[Indices]:
        return self._batches.unpadded(rows, size)

    def observe(self, model: Any, rows: Indices) -> None:
        model.eval()
        states, head, _ = self._predicted(model, self._batches.take(rows), ())
        for start in range(0, len(states), self._step):
            head(states[start : start + self._step])

    def likelihoods(self, model: Any, row: int) -> Iterator[tuple[float, Tensor]]:
        """One continuation at every position of the text, drawn from the model's own distribution there.

        Positions are drawn independently, so that the expected square of the gradient is the sum of the positions'.
        """
        model.eval()
        stream = statistics.seed(f"{self.name} {row}")
        with torch.enable_grad():
            states, head, _ = self._predicted(model, self._batches.take(np.array([row])), ())
            total = states.new_zeros((), dtype=torch.float32)
            for start in range(0, len(states), self._step):
                part = states[start : start + self._step]
                with torch.no_grad():
                    drawn = statistics.drawn(head(part).float().softmax(dim=-1), stream)
                # logits are made again on the way back, and not kept
                total = total + checkpoint(_likelihood, head, part, drawn, use_reentrant=False)
        yield 1.0, total

    def predictions(self, row: int) -> int:
        return int(self._tokens[row])

    def _predicted(
        self, model: Any, inputs: Mapping[str, Tensor], layers: Sequence[int]
    ) -> tuple[Tensor, Any, list[Tensor]]:
        """What the head reads at the predicted positions, `(n, d)`; the head; hidden states `(b, t, d)` of layers."""
        kept = inputs["attention_mask"][:, 1:].bool()
        whole = model.base_model if self._split_head else model
        output = whole(**inputs, **uncached(whole), **heads.wanting(layers))
        read = output.last_hidden_state if self._split_head else output.logits
        head = model.get_output_embeddings() if self._split_head else torch.nn.Identity()
        return read[:, :-1][kept], head, heads.states(self.name, output, layers)

    @torch.inference_mode()
    def teach(self, model: Any, file: Path, hidden: bool, room: Callable[[int], None] = lambda needed: None) -> None:
        """Keep the logits of `model` (float16, below their maximum), and its hidden states, on all texts."""
        model.eval()
        layers = tuple(self._options.hidden_layers) if hidden else ()

        def logits(rows: Indices, states: Tensor, head: Any) -> teacher.Pieces:
            for row, text in zip(rows.tolist(), torch.split(states, self._tokens[rows].tolist()), strict=True):
                for part in torch.split(text, self._step):
                    found = head(part).float()
                    yield row, found - found.amax(dim=1, keepdim=True)

        def step(batch: Batch) -> dict[str, teacher.Pieces]:
            states, head, kept = self._predicted(model, batch.inputs, layers)
            found: dict[str, teacher.Pieces] = {"logits": logits(batch.rows, states, head)}
            for layer, whole in zip(layers, kept, strict=True):
                found[f"hidden.{layer}"] = zip(batch.rows.tolist(), by_item(whole, batch.inputs), strict=True)
            return found

        counts, whose = self._counts(), f"evaluator {self.name!r}: the outputs of its teacher {self.teacher!r}"
        dtypes = {name: np.dtype("<f2" if name == "logits" else "<f4") for name in counts}
        teacher.write(file, whose, self._batches, counts, dtypes, step, room)

    def learn(self, file: Path) -> None:
        """Take the teacher's outputs from a file that `teach` wrote; raises `DataError` where it is of other items."""
        self._outputs = teacher.Outputs(file, self._batches, self._counts(), self._vocabulary)

    def _counts(self) -> dict[str, Indices]:
        """How many rows each text has among the teacher's outputs: a prediction less than it has tokens."""
        tokens = np.where(self._tokens > 0, self._tokens + 1, 0)
        return {"logits": self._tokens, **{f"hidden.{layer}": tokens for layer in self._options.hidden_layers}}

    def _learned(self, table: str) -> teacher.Outputs:
        return teacher.learned(self.name, self._outputs, table, self.teacher)

    def _taught(self, rows: Indices, device: torch.device) -> Wanted:
        return partial(self._learned("logits").cut, "logits", rows.tolist(), device=device)


def _likelihood(head: Any, states: Tensor, targets: Tensor) -> Tensor:
    return -cross_entropy(head(states).float(), targets, reduction="sum")


def _token_losses(head: Any, states: Tensor, targets: Tensor, wanted: Wanted | None, start: int, loss: Loss) -> Tensor:
    """The weighted sum of the kinds that read logits, summed over positions from `start` on."""
    logits = head(states).float()
    value = logits.new_zeros(())
    if "cross_entropy" in loss.weights:
        value = value + loss.weights["cross_entropy"] * cross_entropy(logits, targets, reduction="sum")
    if "entropy" in loss.weights:
        value = value + loss.weights["entropy"] * losses.entropy(logits).sum()
    if wanted is not None:
        value = (
            value + loss.weights["kl"] * losses.kl(logits, wanted(start, start + len(targets)), loss.temperature).sum()
        )
    return torch.as_tensor(value)
