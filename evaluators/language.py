"""How well does a merged model predict text? Loss per token, and perplexity, of a causal language model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from evaluators import metrics, texts
from evaluators.batches import Batch, Batches, by_length, pad
from evaluators.errors import DataError, NonFinite, OptionError
from evaluators.evaluator import Indices, Metric, Scores, Setting
from evaluators.options import Count, ItemOptions, parse
from evaluators.splits import load_items

CHUNK = 2**24
"""Logits made at once: 64 MB in float32, and about two such copies more while the loss is computed."""


class LanguageOptions(ItemOptions):
    """Options of kind `language`."""

    text: Annotated[str, Field(min_length=1)] = "text"
    """The column with the text."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Texts are cut after so many tokens. Default: what tokenizer and model can take."""
    batch_size: Count | None = None
    """Texts that go through the model together. Default: the worker's."""


class Language:
    """Loss and perplexity of the resident causal language model on texts, each its own item.

    Every token but the first of a text is predicted from those before it; special tokens count where the tokenizer adds
    them.
    """

    runs_code: ClassVar[bool] = False
    Options: ClassVar[type[LanguageOptions]] = LanguageOptions

    metrics = (
        Metric("loss", "min", "negative log likelihood per token, in nats"),
        Metric("perplexity", "min", "exponential of the loss per token"),
    )

    def __init__(self, name: str, options: LanguageOptions | Mapping[str, Any], root: Path) -> None:
        self.name = name
        self._options = parse(LanguageOptions, name, options)
        self._items = load_items(self._options, root, [self._options.text])
        self.splits, self.files = self._items.splits, self._items.files
        texts.check_texts(self._items, [self._options.text])

    def prepare(self, setting: Setting) -> None:
        """Tokenise, collate and move the texts.

        Raises `OptionError` where the resident model is no causal language model, `DataError` for a text of one token.
        """
        self._check_model(setting.model)
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
        chunks = by_length(self.splits, lengths, self._options.batch_size or setting.batch_size)
        pad_id = texts.pad_token(tokenizer)
        batches = [Batch(rows, pad(rows, plain, pad_id, setting.device)) for rows in chunks]
        self._batches = Batches(batches)
        self._split_head = bool(_head_is_linear(setting.model, batches[0].inputs))

    @torch.inference_mode()
    def score(self, model: Any, items: Indices) -> Scores:
        """Scores of the model as it is now on these rows; raises `NonFinite` where a loss is not finite."""
        self._items.check(self.name, items)
        model.eval()
        nll = self._batches.run(items, lambda inputs: text_losses(model, inputs, self._split_head)).cpu().numpy()
        finite = np.isfinite(nll)
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
        per_item = (nll / tokens).astype(np.float32)
        return Scores({"loss": loss, "perplexity": perplexity}, {"loss": per_item})

    def _check_model(self, model: Any) -> None:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

        found = type(model).__name__
        if found not in CAUSAL.values():
            raise OptionError(
                f"evaluator {self.name!r}: language-model loss needs a causal language model, the base is a {found}; "
                "use a base saved as ...ForCausalLM, or another kind of evaluator"
            )


def text_losses(model: Any, inputs: Mapping[str, Tensor], split_head: bool) -> Tensor:
    """Summed loss of each text in nats, float64 `(b,)`: `-sum_t log p(x_t | x_<t)` over its tokens but the first.

    Logits are made for the true positions only, `CHUNK` numbers at a time; without `split_head` (an architecture that
    does more to its logits than one linear layer) the model makes all those of the batch.
    """
    kept = inputs["attention_mask"][:, 1:].bool()  # (b, t - 1): the positions that are predicted
    targets = inputs["input_ids"][:, 1:][kept]
    if split_head:
        states = model.base_model(**inputs).last_hidden_state[:, :-1][kept]  # (n, d)
        head = model.get_output_embeddings()
    else:
        states = model(**inputs).logits[:, :-1][kept]  # (n, vocabulary)
        head = torch.nn.Identity()
    step = max(1, CHUNK // model.config.get_text_config().vocab_size)
    parts = [
        cross_entropy(head(states[start : start + step]).float(), targets[start : start + step], reduction="none")
        for start in range(0, len(targets), step)
    ]
    losses = torch.zeros(kept.shape, dtype=torch.float64, device=kept.device)
    losses[kept] = torch.cat(parts).double()
    return losses.sum(dim=1)


@torch.inference_mode()
def _head_is_linear(model: Any, inputs: Mapping[str, Tensor]) -> bool:
    """Whether logits are the output layer of the last hidden state and no more (no soft cap, no scale): a probe."""
    model.eval()
    probe = {key: value[:1, :8] for key, value in inputs.items()}
    whole = model(**probe).logits.float()
    apart = model.get_output_embeddings()(model.base_model(**probe).last_hidden_state).float()
    return whole.shape == apart.shape and torch.allclose(whole, apart, rtol=1e-3, atol=1e-4)
