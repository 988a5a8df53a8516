"""How likely are continuations of contexts? A context goes through the model once, where that changes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluators.batches import Batch, Batches, by_length
from evaluators.causal import CHUNK, probe_head, uncached
from evaluators.errors import NonFinite
from evaluators.evaluator import Indices, Splits

MASK = 2**24
"""Entries of the masks of a batch's trees: 64 MB in float32, and less than as much while they are made."""

WORTH = 1 / 8
"""A context is read once for several continuations where that saves this share of the tokens."""

EXACT, ROUNDED = 1e-4, 0.25
"""Nats of a predicted token in which a tree and single sequences may differ by rounding: in float32 (other kernels make
8e-6 on a model of 135 M parameters); in bfloat16 and float16, where logits from 16 to 32 are 1/8 apart (0.06 there)."""

WINDOWS = re.compile(r"window(_size|_len)?$|chunk_size$|local_attention$")
"""Keys of configs under which models keep how far their attention reaches. Too many cost time, and no more."""


@dataclass(frozen=True)
class Pair:
    """Tokens of a context and of its continuation, asked for an item."""

    row: int
    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Unit:
    """Pairs of one item that share their context, by number: they go through the model as one sequence."""

    pairs: tuple[int, ...]
    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """Tokens that are read: the last of a continuation is only predicted."""
        return len(self.context) + sum(len(c) - 1 for c in self.continuations)


class Likelihoods:
    """Log-likelihoods of pairs, and whether greedy decoding would have given them, as the model is now.

    A context with several continuations is a tree: `context a1 a2 ... b1 b2 ...`, in which a continuation attends to
    the context and to itself and is placed as if it followed the context alone. Continuations of one token read one
    logit row between them. Sequences stay single where a tree saves little, is longer than a window of the model's
    attention (a tree's own mask takes its place), or gives other numbers: the shortest and the longest are tried.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        splits: Splits,
        model: Any,
        device: torch.device,
        max_length: int,
        size: int,
        softmax: torch.dtype | None = None,
    ) -> None:
        self._model, self._device, self._softmax = model, device, softmax
        # what is asked twice of an item is computed once: equal choices tie, to the last bit
        places: dict[Pair, int] = {}
        self._same = np.array([places.setdefault(pair, len(places)) for pair in pairs], dtype=np.int64)
        self._pairs, self._splits, self._size, self._dtype = list(places), splits, size, model.dtype
        first = torch.tensor([list(pairs[0].context)], device=device)
        self._apart, vocabulary = probe_head(model, {"input_ids": first})
        self._extra = uncached(model.base_model if self._apart else model)
        self._step = max(1, CHUNK // vocabulary)
        self._build(max_length, min(max_length, reach(model.config)))
        trees = sorted((unit for unit in self._units if _branches(unit) > 1), key=lambda unit: unit.length)
        if trees and not (self._agrees(trees[0]) and self._agrees(trees[-1])):
            self._build(max_length, 0)

    def _build(self, max_length: int, longest: int) -> None:
        """Units and their batches; a tree has at most `longest` tokens."""
        self._units = _units(self._pairs, max_length, longest)
        self._most = max(len(unit.pairs) for unit in self._units)
        self._rows = np.array([self._pairs[unit.pairs[0]].row for unit in self._units], dtype=np.int64)
        self._batches = Batches([Batch(c, self._inputs([self._units[i] for i in c.tolist()])) for c in self._chunks()])

    def _chunks(self) -> Iterator[Indices]:
        """Numbers of units that go through the model together: similar in length, of one split, trees or not."""
        lengths = {number: unit.length for number, unit in enumerate(self._units)}
        tree = np.array([_branches(unit) > 1 for unit in self._units])
        for kind in (~tree, tree):  # a mask for trees would switch off the model's own for others
            sides = [np.flatnonzero(np.isin(self._rows, side) & kind) for side in self._splits]
            for chunk in by_length(sides, lengths, self._size):
                if len(chunk):
                    longest = max(lengths[number] for number in chunk.tolist())
                    size = max(1, MASK // longest**2) if tree[chunk[0]] else len(chunk)
                    yield from (chunk[start : start + size] for start in range(0, len(chunk), size))

    @torch.inference_mode()
    def run(self, model: Any, rows: Indices) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Log-likelihood in nats, and greediness, of all pairs of these rows, as they were given; of others NaN and no.

        Values that are not finite are the model's: whoever asks says what becomes of them.
        """
        likelihood = np.full(len(self._pairs), np.nan)
        greedy = np.zeros(len(self._pairs), dtype=np.bool_)
        units = np.flatnonzero(np.isin(self._rows, rows))
        if len(units):
            found = self._batches.run(units, lambda batch: self._score(model, batch.inputs)).cpu().numpy()
            for number, values in zip(units.tolist(), found, strict=True):
                pairs = list(self._units[number].pairs)
                likelihood[pairs], greedy[pairs] = values[: len(pairs), 0], values[: len(pairs), 1] > 0
        return likelihood[self._same], greedy[self._same]

    def _inputs(self, units: Sequence[Unit]) -> dict[str, Tensor]:
        """A batch: `ids` (b, t) padded on the right; and of its n predicted tokens, the `target`, which of the u read
        positions of the flattened batch (`read`) predicts it (`at`), and which pair of the batch it is of (`of`)."""
        length = max(unit.length for unit in units)
        laid = [_lay(unit) for unit in units]
        ids = torch.zeros(len(units), length, dtype=torch.int64)
        depth, branch = ids.clone(), torch.full_like(ids, -1)
        of, at, targets = [], [], []
        for number, (tokens, depths, branches, predicted) in enumerate(laid):
            ids[number, : len(tokens)] = torch.tensor(tokens)
            depth[number, : len(tokens)] = torch.tensor(depths)
            branch[number, : len(tokens)] = torch.tensor(branches)
            for place, position, target in predicted:
                of.append(number * self._most + place)
                at.append(number * length + position)
                targets.append(target)
        read, where = torch.unique(torch.tensor(at), return_inverse=True)
        found = {"ids": ids, "read": read, "at": where, "of": torch.tensor(of), "target": torch.tensor(targets)}
        if any(_branches(unit) > 1 for unit in units):
            found |= {"depth": depth, "branch": branch}
        return {name: value.to(self._device) for name, value in found.items()}

    def _score(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Of each pair of a batch, summed log-likelihood and greediness (1 or 0): float64 `(b, most, 2)`."""
        output = (model.base_model if self._apart else model)(**self._asked(inputs))
        states = (output.last_hidden_state if self._apart else output.logits).flatten(0, 1)[inputs["read"]]
        head = model.get_output_embeddings() if self._apart else torch.nn.Identity()
        count = len(inputs["ids"])
        total = torch.zeros(count * self._most, dtype=torch.float64, device=states.device)
        wrong = torch.zeros_like(total)
        for start in range(0, len(states), self._step):
            logits = torch.log_softmax(head(states[start : start + self._step]), dim=-1, dtype=self._softmax)
            mine = (inputs["at"] >= start) & (inputs["at"] < start + len(logits))
            at, target = inputs["at"][mine] - start, inputs["target"][mine]
            total.index_add_(0, inputs["of"][mine], logits[at, target].double())
            wrong.index_add_(0, inputs["of"][mine], (logits.argmax(dim=-1)[at] != target).double())
        return torch.stack([total, (wrong == 0).double()], dim=1).view(count, self._most, 2)

    def _asked(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """What the model is called with for a batch."""
        return {"input_ids": inputs["ids"], **(_tree(inputs, self._dtype) if "branch" in inputs else {}), **self._extra}

    def sequences(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Batch by batch: what the model (or its base model) is called with, `input_ids` `(b, t)` and more; and which
        positions of the flattened batch the head reads."""
        return ((self._asked(batch.inputs), batch.inputs["read"]) for batch in self._batches)

    @torch.inference_mode()
    def _agrees(self, unit: Unit) -> bool:
        """Whether a tree gives what a sequence for each continuation gives."""
        self._model.eval()
        apart = [Unit((p,), unit.context, (c,)) for p, c in zip(unit.pairs, unit.continuations, strict=True)]
        # what is wrong with the model itself is raised here, one sequence at a time: little memory
        each = torch.cat([self._score(self._model, self._inputs([one]))[:, 0, 0] for one in apart])
        try:
            tree = self._score(self._model, self._inputs([unit]))[0, : len(apart), 0]
        except torch.OutOfMemoryError:
            raise
        except Exception:  # attention that takes no mask of its own says so in whatever way
            return False
        allowed = EXACT if torch.finfo(self._dtype).eps < 1e-5 else ROUNDED
        tokens = torch.tensor([len(c) for c in unit.continuations], device=each.device)
        return bool(((tree - each).abs() <= allowed * tokens).all())


def reach(config: Any) -> int:
    """How long a sequence may be at most for every token to attend to all before it, in every layer, as far as the
    model's config says: the least of its windows and chunks of attention."""
    said = config.get_text_config().to_dict()
    found = [value for key, value in said.items() if WINDOWS.search(key) and type(value) is int and value > 0]
    return min(found, default=2**31)


def finite(name: str, values: NDArray[np.float64], rows: Indices) -> None:
    """Raise `NonFinite` where log-likelihoods `(n,)`, each asked for an item of `rows` `(n,)`, are not finite."""
    bad = ~np.isfinite(values)
    if bad.any():
        raise NonFinite(
            f"evaluator {name!r}: {len(np.unique(rows[bad]))} of {len(np.unique(rows))} items have a log-likelihood "
            "that is NaN or infinite; the candidate has failed"
        )


def _units(pairs: Sequence[Pair], max_length: int, longest: int) -> list[Unit]:
    """The pairs of each item by their context, cut from the left where they are too long, as the harness does."""
    grouped: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for number, pair in enumerate(pairs):
        kept = (pair.context + pair.continuation)[-(max_length + 1) :][: -len(pair.continuation)]
        grouped.setdefault((pair.row, kept), []).append(number)
    found = []
    for (_, context), numbers in grouped.items():
        held = _packed(len(context), {n: len(pairs[n].continuation) - 1 for n in numbers}, longest)
        found += [Unit(tuple(pack), context, tuple(pairs[n].continuation for n in pack)) for pack in held]
    return found


def _packed(context: int, more: Mapping[int, int], longest: int) -> list[list[int]]:
    """Which pairs share a sequence, by how many tokens each reads beyond their context of `context` tokens."""
    packs: list[list[int]] = []
    length = 0
    for number in (n for n in more if more[n]):
        if not packs or length + more[number] > longest:
            packs.append([])
            length = context
        packs[-1].append(number)
        length += more[number]
    branches = sum(map(len, packs))
    if (branches - len(packs)) * context < WORTH * (branches * context + sum(more.values())):
        packs = [[number] for pack in packs for number in pack]
    single = [n for n in more if not more[n]]  # these read no token of their own: any sequence of the context will do
    return [packs[0] + single, *packs[1:]] if packs else [single]


def _branches(unit: Unit) -> int:
    """Continuations of which something is read: with one or none, a sequence is an ordinary one."""
    return sum(len(continuation) > 1 for continuation in unit.continuations)


def _lay(unit: Unit) -> tuple[list[int], list[int], list[int], list[tuple[int, int, int]]]:
    """Tokens of a unit's sequence, how deep each stands, its branch (0: the context), and what is predicted: pair,
    position that predicts, target."""
    tokens, count = list(unit.context), len(unit.context)
    depths, branches = list(range(count)), [0] * count
    predicted = []
    for place, continuation in enumerate(unit.continuations):
        predicted.append((place, count - 1, continuation[0]))
        predicted += [(place, len(tokens) + i, target) for i, target in enumerate(continuation[1:])]
        tokens += continuation[:-1]
        depths += range(count, count + len(continuation) - 1)
        branches += [place + 1] * (len(continuation) - 1)
    return tokens, depths, branches, predicted


def _tree(inputs: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Positions (b, t), and an additive mask (b, 1, t, t): a token reads the context and its own branch before it."""
    branch = inputs["branch"]
    same = (branch[:, None, :] == branch[:, :, None]) | (branch[:, None, :] == 0)
    earlier = torch.ones(branch.shape[1], branch.shape[1], dtype=torch.bool, device=branch.device).tril()
    mask = torch.zeros(same.shape, dtype=dtype, device=branch.device)
    mask.masked_fill_(~(same & earlier), torch.finfo(dtype).min)
    return {"attention_mask": mask[:, None], "position_ids": inputs["depth"]}
