"""How likely are continuations of contexts? Each distinct context goes through the model once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluators.batches import Batch, Batches, by_length
from evaluators.causal import CHUNK, probe_head
from evaluators.errors import NonFinite
from evaluators.evaluator import Indices, Splits


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

    A context with several continuations is one sequence: `context a1 a2 ... b1 b2 ...`, in which a continuation attends
    to the context and to itself and is placed as if it followed the context alone. Continuations of one token read one
    logit row between them. An architecture that gives other numbers this way (probed once) is asked pair by pair.
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
        self._pairs, self._splits, self._size = pairs, splits, size
        first = torch.tensor([list(pairs[0].context)], device=device)
        self._apart, vocabulary = probe_head(model, {"input_ids": first})
        self._step = max(1, CHUNK // vocabulary)
        self._build(max_length, shared=True)
        trees = [unit for unit in self._units if _branches(unit) > 1]
        if trees and not self._agrees(min(trees, key=lambda unit: unit.length)):
            self._build(max_length, shared=False)

    def _build(self, max_length: int, shared: bool) -> None:
        self._units = _units(self._pairs, max_length, shared)
        self._most = max(len(unit.pairs) for unit in self._units)
        rows = np.array([self._pairs[unit.pairs[0]].row for unit in self._units], dtype=np.int64)
        lengths = {number: unit.length for number, unit in enumerate(self._units)}
        sides = Splits(*(np.flatnonzero(np.isin(rows, side)) for side in self._splits))
        chunks = [chunk for chunk in by_length(sides, lengths, self._size) if len(chunk)]
        self._batches = Batches([Batch(c, self._inputs([self._units[i] for i in c.tolist()])) for c in chunks])
        self._rows = rows

    @torch.inference_mode()
    def run(self, model: Any, rows: Indices) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Log-likelihood in nats, and greediness, of all pairs of these rows; both `(len(pairs),)`, others NaN and no.

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
        return likelihood, greedy

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
        ids = inputs["ids"]
        extra = _tree(inputs, model.dtype) if "branch" in inputs else {}
        whole = model.base_model if self._apart else model
        output = whole(input_ids=ids, use_cache=False, **extra)
        states = (output.last_hidden_state if self._apart else output.logits).flatten(0, 1)[inputs["read"]]
        head = model.get_output_embeddings() if self._apart else torch.nn.Identity()
        total = torch.zeros(len(ids) * self._most, dtype=torch.float64, device=ids.device)
        wrong = torch.zeros_like(total)
        for start in range(0, len(states), self._step):
            logits = torch.log_softmax(head(states[start : start + self._step]), dim=-1, dtype=self._softmax)
            mine = (inputs["at"] >= start) & (inputs["at"] < start + len(logits))
            at, target = inputs["at"][mine] - start, inputs["target"][mine]
            total.index_add_(0, inputs["of"][mine], logits[at, target].double())
            wrong.index_add_(0, inputs["of"][mine], (logits.argmax(dim=-1)[at] != target).double())
        return torch.stack([total, (wrong == 0).double()], dim=1).view(len(ids), self._most, 2)

    @torch.inference_mode()
    def _agrees(self, unit: Unit) -> bool:
        """Whether one sequence for a context with several continuations gives what one for each gives."""
        self._model.eval()
        exact = torch.finfo(self._model.dtype).eps < 1e-5
        tolerance = 1e-4 if exact else 2e-2
        apart = [Unit((p,), unit.context, (c,)) for p, c in zip(unit.pairs, unit.continuations, strict=True)]
        each = self._score(self._model, self._inputs(apart))[
            :, 0, 0
        ]  # what is wrong with the model itself is raised here
        try:
            one = self._score(self._model, self._inputs([unit]))[0, : len(apart), 0]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, NotImplementedError):  # attention that takes no mask of its own
            return False
        return torch.allclose(one, each, rtol=tolerance, atol=tolerance)


def finite(name: str, values: NDArray[np.float64], rows: Indices) -> None:
    """Raise `NonFinite` where log-likelihoods `(n,)`, each asked for an item of `rows` `(n,)`, are not finite."""
    bad = ~np.isfinite(values)
    if bad.any():
        raise NonFinite(
            f"evaluator {name!r}: {len(np.unique(rows[bad]))} of {len(np.unique(rows))} items have a log-likelihood "
            "that is NaN or infinite; the candidate has failed"
        )


def _units(pairs: Sequence[Pair], max_length: int, shared: bool) -> list[Unit]:
    """The pairs of each item by their context, cut from the left where they are too long, as the harness does."""
    grouped: dict[tuple[int, tuple[int, ...], int], list[int]] = {}
    for number, pair in enumerate(pairs):
        kept = (pair.context + pair.continuation)[-(max_length + 1) :][: -len(pair.continuation)]
        grouped.setdefault((pair.row, kept, -1 if shared else number), []).append(number)
    found = []
    for (_, context, _), numbers in grouped.items():
        held: list[int] = []
        for number in numbers:
            # one sequence is at most as long as what the model reads, but for a single continuation it always fits
            more = sum(len(pairs[n].continuation) - 1 for n in [*held, number])
            if held and len(context) + more > max_length:
                found.append(_unit(pairs, held, context))
                held = []
            held.append(number)
        found.append(_unit(pairs, held, context))
    return found


def _unit(pairs: Sequence[Pair], numbers: Sequence[int], context: tuple[int, ...]) -> Unit:
    return Unit(tuple(numbers), context, tuple(pairs[number].continuation for number in numbers))


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
