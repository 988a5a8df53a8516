"""How are the heads and experts made? Linear probes on the base, then the trunk fine-tuned under each frozen probe.

One thread a process: two processes side by side use two cores better than two threads of one do.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from texts import Row, Task
from transformers import AutoTokenizer, BertConfig, BertModel, logging
from transformers.modeling_outputs import BaseModelOutput

MAX_LENGTH = 32  # tokens
BATCH = 32
HEAD_ITEMS = 1500  # training items that a head is fitted on


@dataclass(frozen=True)
class Recipe:
    """How an expert is fine-tuned: number of steps, peak of the learning rate, and whether it autocasts to bfloat16."""

    steps: int
    lr: float
    bf16: bool


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokenised items: `ids` and `mask` int64 of shape `(n, 32)`, `labels` int64 of shape `(n,)`."""

    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor

    def batch(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask of these rows, as long as the longest of them."""
        length = int(self.mask[rows].sum(1).max())
        return self.ids[rows, :length], self.mask[rows, :length]


def quiet() -> None:
    """One thread, and no progress bars."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load(folder: Path) -> BertModel:
    """The trunk in float32, without pooler; tensors of a head beside it are left aside."""
    return BertModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).eval()


def write_base(source: Path, out: Path) -> None:
    """The base as a Hugging Face folder: trunk without pooler, config, tokenizer."""
    with _whole(out) as half:
        load(source).save_pretrained(half)
        AutoTokenizer.from_pretrained(source).save_pretrained(half)


def encode(folder: Path, rows: list[Row]) -> Encoded:
    """Items by the tokenizer of `folder`, cut at MAX_LENGTH tokens."""
    made = AutoTokenizer.from_pretrained(folder)(
        [text for text, _ in rows], truncation=True, max_length=MAX_LENGTH, padding="max_length", return_tensors="pt"
    )
    return Encoded(made["input_ids"], made["attention_mask"], torch.tensor([label for _, label in rows]))


def features(model: BertModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the last hidden states over real tokens, L2-normalised: float32 of shape `(batch, 384)`."""
    output: BaseModelOutput = model(input_ids=ids, attention_mask=mask)
    weight = mask[..., None].float()
    return F.normalize((output.last_hidden_state.float() * weight).sum(1) / weight.sum(1), dim=-1)


@torch.no_grad()
def all_features(model: BertModel, items: Encoded, bf16: bool) -> torch.Tensor:
    """`features` of all items in their order, batched by length: float32 of shape `(n, 384)`."""
    model.eval()
    order = items.mask.sum(1).argsort()
    out = torch.empty(len(items.ids), model.config.hidden_size)
    for rows in order.split(BATCH):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out[rows] = features(model, *items.batch(rows))
    return out


def fit_head(model: BertModel, items: Encoded, classes: int, bf16: bool) -> dict[str, torch.Tensor]:
    """Multinomial logistic regression with ridge 0.01 on features of norm sqrt(384), by L-BFGS.

    Returns:
        `weight (classes, 384)` and `bias (classes,)` for features of norm 1: that norm is folded into the weight.
    """
    scale = model.config.hidden_size**0.5
    inputs = all_features(model, items, bf16) * scale
    weight = torch.zeros(classes, inputs.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs @ weight.T + bias, items.labels) + 1e-2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return {"weight": weight.detach() * scale, "bias": bias.detach()}


def write_heads(base: Path, tasks: dict[str, Task], bf16: bool, out: Path) -> None:
    """Every task's head on the base's features, as tensors `TASK.weight` and `TASK.bias` of one file."""
    torch.manual_seed(0)
    model = load(base)
    tensors: dict[str, torch.Tensor] = {}
    for name, task in tasks.items():
        head = fit_head(model, encode(base, task.train[:HEAD_ITEMS]), len(task.classes), bf16)
        tensors |= {f"{name}.{key}": value for key, value in head.items()}
    half = out.with_suffix(".half")
    save_file(tensors, half)
    half.replace(out)


def write_expert(base: Path, heads: Path, name: str, task: Task, recipe: Recipe, out: Path) -> tuple[float, float]:
    """Fine-tune the trunk on one task and write it, with the head, as a Hugging Face folder.

    Returns:
        Mean training loss of the first and of the last ten steps.
    """
    quiet()
    stored = load_file(heads)
    head = {key: stored[f"{name}.{key}"] for key in ("weight", "bias")}
    model = load(base)
    losses = _finetune(model, head, encode(base, task.train), recipe)
    with _whole(out) as half:
        names = dict(enumerate(task.classes))
        config = BertConfig.from_pretrained(base, id2label=names, label2id={c: i for i, c in names.items()})
        config.architectures = model.config.architectures
        config.save_pretrained(half)
        tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
        tensors |= {f"classifier.{key}": value for key, value in head.items()}
        save_file(tensors, half / "model.safetensors", metadata={"format": "pt"})
    return sum(losses[:10]) / len(losses[:10]), sum(losses[-10:]) / len(losses[-10:])


def _finetune(model: BertModel, head: dict[str, torch.Tensor], items: Encoded, recipe: Recipe) -> list[float]:
    """AdamW under the frozen head; the embeddings stay as they are, so that all experts share them. Losses by step."""
    torch.manual_seed(1)  # dropout
    model.train()
    model.embeddings.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.lr, weight_decay=0.0)
    batches = _batches(len(items.labels))
    losses = []
    for step in range(recipe.steps):
        rows = next(batches)
        optimizer.param_groups[0]["lr"] = recipe.lr * min(1, (step + 1) / 10) * max(0.05, 1 - step / recipe.steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
            inputs = features(model, *items.batch(rows))
        loss = F.cross_entropy(inputs @ head["weight"].T + head["bias"], items.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def _batches(count: int) -> Iterator[torch.Tensor]:
    """Rows of full batches, every epoch in a new order."""
    generator = torch.Generator().manual_seed(1)
    while True:
        yield from (b for b in torch.randperm(count, generator=generator).split(BATCH) if len(b) == min(BATCH, count))


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder to write into that takes its name only when all of it is there."""
    half = out.with_name(f".{out.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    yield half
    half.rename(out)
