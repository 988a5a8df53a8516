"""How do several adapters become one? Their factors side by side, or the best ones of a smaller rank."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from searchspaces.adapters.adapter import CONFIG, WEIGHTS, Adapter
from searchspaces.errors import Inexpressible
from searchspaces.models import shards
from searchspaces.models.pool import Pool
from searchspaces.models.skeleton import Skeleton
from searchspaces.recipe import Recipe
from searchspaces.weights.compositions import Compositions

ROUNDING = 1e-6  # relative; cut factors are stored in float32, whose own rounding is 6e-8 of each entry
_TASKS = {"ForCausalLM": "CAUSAL_LM", "LMHead": "CAUSAL_LM", "ForConditionalGeneration": "SEQ_2_SEQ_LM"}


@dataclass(frozen=True)
class OneAdapter:
    """What was written: its largest rank, that of the factors side by side (a sum of ranks), and what was lost.

    `error` is `|task vector written - task vector merged| / |task vector merged|` in the Frobenius norm over all
    tensors, and `worst` the largest of single tensors; both are 0 where factors were only put side by side.
    """

    rank: int
    joined_rank: int
    error: float
    worst: float

    @property
    def exact(self) -> bool:
        """Whether nothing was lost but rounding: the merge's true rank may be far below the sum of its parts'."""
        return self.error <= ROUNDING

    def describe(self) -> str:
        """In a sentence without its full stop, for people."""
        if self.rank >= self.joined_rank:
            return f"one adapter of rank {self.rank}, which is the merge exactly"
        lost = f"relative error {self.error:.2e} of the task vector, {self.worst:.2e} of the worst tensor"
        if self.exact:
            return f"one adapter of rank {self.rank}, which is the merge up to rounding: {lost}"
        return (
            f"one adapter of rank {self.rank}, the nearest to the merge, whose factors side by side have rank "
            f"{self.joined_rank}: {lost}"
        )


Scales: TypeAlias = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class _Module:
    """One adapted module: its name in the model, and both factors, `a` (R, in ...) and `b` (out, R ...), scaled."""

    name: str
    embedding: bool
    turned: bool
    a: torch.Tensor
    b: torch.Tensor


def write_adapter(folder: Path, pool: Pool, recipe: Recipe, rank: int | None, base_name: str) -> OneAdapter:
    """Write a recipe as one adapter of the base, as PEFT reads it, in float32; `rank` None puts factors side by side.

    Modules have ranks of their own, up to `rank`. Where side by side is more, a tensor's task vector is cut to its
    largest singular values, by a QR of both factors and an SVD of what is between them: nothing of a tensor's size is
    made; the factors are in memory, in float32. Raises Inexpressible where the merge is no sum of
    adapters: another method, a base that is scaled, a whole model with a coefficient, tensors that are stored whole.
    """
    scales = _adapters_only(pool, recipe)
    modules = list(_modules(pool, scales))
    if not modules:
        raise Inexpressible("all coefficients are 0: the merge is the base, and needs no adapter")
    joined = max(len(m.a) for m in modules)
    used = joined if rank is None else min(rank, joined)
    lost = kept = worst = 0.0
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for module in modules:
        a, b = module.a, module.b
        if len(a) > used:
            a, b, dropped, total = _nearest(a, b, used)
            lost, kept, worst = lost + dropped, kept + total, max(worst, math.sqrt(dropped / total) if total else 0.0)
        else:
            kept += _squares(a, b)
        tensors |= _named(module, a, b)
        ranks[module.name] = len(a)
    names = sorted(tensors)
    specs = [shards.Spec(n, tuple(tensors[n].shape), tensors[n].dtype) for n in names]
    shards.write_file(folder / WEIGHTS, specs, ((n, tensors[n]) for n in names))
    shards.write_text(folder / CONFIG, json.dumps(_config(pool, modules, ranks, base_name), indent=2))
    return OneAdapter(used, joined, math.sqrt(lost / kept) if kept else 0.0, worst)


def _adapters_only(pool: Pool, recipe: Recipe) -> Scales:
    """The recipe's scales by tensor, `(K,)`; raises Inexpressible where it is no sum of adapters."""
    hint = "; export the merged weights instead"
    if pool.processing:
        raise Inexpressible(f"method {recipe.method} changes task vectors, which then have no low rank{hint}")
    if pool.base.opened is not None:
        raise Inexpressible(f"models.vocabulary gave the merge rows of tokens that no adapter of the base holds{hint}")
    found = Compositions.of(pool, recipe).found
    if not all(c.plain for c in found.values()):
        raise Inexpressible(f"method {recipe.method} merges entry by entry, which no adapter can{hint}")
    if any(c.sums[0] != 1 for c in found.values()):
        raise Inexpressible(f"method {recipe.method} scales the base itself, which no adapter can{hint}")
    scales = {name: c.sums[1] for name, c in found.items()}
    for k, (name, expert) in enumerate(pool.experts.items()):
        if not any(s[k] for s in scales.values()):
            continue
        if not isinstance(expert, Adapter):
            raise Inexpressible(f"expert {name!r} has a coefficient that is not 0, and is no adapter{hint}")
        whole = [t.name for t in pool.merged if t.name in expert.full and scales[t.name][k]]
        stacked = [n for n, f in expert.low.items() if f.piece and n in scales and scales[n][k]]
        if stacked:
            why = f"adapter {name!r} adapts a parameter of which {stacked[0]!r} is a part, all of it at once"
            raise Inexpressible(f"{why}{hint}")
        if whole:
            raise Inexpressible(f"adapter {name!r} stores {whole[0]!r} whole, not as factors{hint}")
    return scales


def _modules(pool: Pool, scales: Scales) -> Iterator[_Module]:
    """Factors side by side. Scaled is the one that a merge scales, so that exactly its bits come out again."""
    skeleton = Skeleton.of(pool.base.folder)
    own = {} if skeleton is None else {name: o for o, name in skeleton.placed(pool.base.tensors).items()}
    for info in pool.merged:
        a, b, last = [], [], None
        for expert, scale in zip(pool.experts.values(), scales[info.name].tolist(), strict=True):
            if scale and isinstance(expert, Adapter) and info.name in expert.low:
                last, by = expert.low[info.name], expert.low[info.name].scale * scale
                one, two = (factor.float() for factor in expert.factors(info.name))
                a.append(one * by if last.turned else one)
                b.append(two if last.turned else two * by)
        if last is not None:
            name = own.get(info.name, info.name).removesuffix(".weight")
            yield _Module(name, "lora_embedding" in last.a, last.turned, torch.cat(a), torch.cat(b, 1))


def _nearest(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """Factors of the best approximation of `b a` of a rank (Eckart, Young), the squares it drops, and all squares."""
    left, middle_left = torch.linalg.qr(b.reshape(len(b), -1).double())
    right, middle_right = torch.linalg.qr(a.flatten(1).double().T)
    u, s, v = torch.linalg.svd(middle_left @ middle_right.T, full_matrices=False)
    root = s[:rank].sqrt()
    b_cut = (left @ u[:, :rank]) * root
    a_cut = root[:, None] * (right @ v[:rank].T).T
    squares = s.square()
    shaped_b = b_cut.float().reshape(len(b), -1, *b.shape[2:])
    return a_cut.float().reshape(-1, *a.shape[1:]), shaped_b, float(squares[rank:].sum()), float(squares.sum())


def _squares(a: torch.Tensor, b: torch.Tensor) -> float:
    """`|b a|^2` from two small products."""
    wide, tall = a.flatten(1).double(), b.reshape(len(b), -1).double()
    return float(((tall.T @ tall) * (wide @ wide.T)).sum())


def _named(module: _Module, a: torch.Tensor, b: torch.Tensor) -> Mapping[str, torch.Tensor]:
    kinds = ("lora_embedding_A", "lora_embedding_B") if module.embedding else ("lora_A.weight", "lora_B.weight")
    return {f"base_model.model.{module.name}.{kind}": f.contiguous() for kind, f in zip(kinds, (a, b), strict=True)}


def _config(pool: Pool, modules: Sequence[_Module], ranks: Mapping[str, int], base_name: str) -> dict[str, object]:
    """Ranks by module: padding all to the largest would make a file many times as large."""
    rank = max(ranks.values())
    others = {f"^{re.escape(name)}": own for name, own in ranks.items() if own != rank}
    kinds = [str(kind) for kind in pool.base.config.get("architectures") or []]
    return {
        "peft_type": "LORA",
        "task_type": next((task for part, task in _TASKS.items() for kind in kinds if part in kind), None),
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": rank,  # so that the factors' product is the task vector itself, as it is with each module's own
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": [m.name for m in modules],
        "fan_in_fan_out": any(m.turned and not m.embedding for m in modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
