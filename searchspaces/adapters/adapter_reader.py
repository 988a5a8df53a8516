"""What does each tensor of an adapter's file mean? Factors and whole tensors, under the base's names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from searchspaces.adapters.adapter_config import LoraConfig, refused
from searchspaces.errors import PoolError
from searchspaces.models.align import EMBEDDING, OUTPUTS, aligned
from searchspaces.models.checkpoint import Checkpoint
from searchspaces.models.headers import MERGEABLE, TensorInfo
from searchspaces.models.skeleton import Skeleton
from searchspaces.models.stacked import Piece, Stack, stacks

_FACTOR = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B)")
# architectures with an output layer, which is tied to the embeddings where it is not stored
_WITH_OUTPUT = ("LMHead", "ForCausalLM", "ForMaskedLM", "ForConditionalGeneration", "ForPreTraining")


@dataclass(frozen=True)
class Factors:
    """Where the factors of one tensor lie in the file: `a` is (r, in ...), `b` is (out, r)."""

    a: str
    b: str
    rank: int
    scale: float
    turned: bool  # the tensor is (in, out), so that its task vector is the transpose of `b a`
    piece: Piece | None = None  # which part of both is the tensor's, where they are of a stacked parameter


@dataclass(frozen=True)
class Meaning:
    """Every tensor of the adapted model, where the factors of some lie, and which ones are stored whole."""

    tensors: Mapping[str, TensorInfo]
    low: Mapping[str, Factors]
    full: Mapping[str, str]  # name -> its name in the file


class Reader:
    """Sorts one file's tensors into factors and whole tensors under the base's names."""

    def __init__(self, label: str, config: LoraConfig, file: Checkpoint, base: Checkpoint) -> None:
        self._label, self._config, self._file, self._base = label, config, file, base
        self._modules: dict[str, dict[str, str]] = {}  # module -> A, B and, repeated beside them, W: names in the file
        self._whole: dict[str, str] = {}  # tensor -> name in the file

    def read(self) -> Meaning:
        """All of the file; raises PoolError for what is no task vector of low rank (see `Adapter.open`)."""
        for stored in self._file.tensors:
            self._sort(stored)
        if not self._modules and not self._whole:
            raise PoolError(f"{self._label}: {self._file.folder} holds no tensors; save the adapter again")
        low = self._stacked() if self._config.raw.get("target_parameters") else {}
        names = self._resolved([*(f"{m}.weight" for m in self._modules), *self._whole])
        for module, parts in self._modules.items():
            name = names[f"{module}.weight"]
            if name in low:
                raise refused(
                    self._label, f"two modules share the base's tensor {name!r}, and each has its own factors"
                )
            low[name] = self._factors(module, name, parts)
            if "W" in parts and not self._is_bases(name, parts["W"]):
                raise refused(self._label, f"{parts['W']!r}, on which its factors build, is not the base's {name!r}")
        full = {names[name]: stored for name, stored in self._whole.items()}
        if len(full) < len(self._whole):
            raise refused(self._label, "two of its whole tensors are the same tensor of the base")
        if both := sorted(low.keys() & full.keys()):
            raise refused(self._label, f"tensor {both[0]!r} is stored whole beside its factors")
        full = self._untied(low, full)
        own = {n: TensorInfo(n, self._base.tensors[n].shape, torch.float32) for n in low}
        own |= {n: self._file.tensors[stored]._replace(name=n) for n, stored in full.items()}
        every = {**self._base.tensors, **own}
        return Meaning(every, low, full)

    def _sort(self, stored: str) -> None:
        name = stored.removeprefix("base_model.model.").replace(".modules_to_save.", ".")
        dtype = self._file.tensors[stored].dtype
        if factor := _FACTOR.fullmatch(name):
            if dtype not in MERGEABLE:
                raise PoolError(
                    f"{self._label}: tensor {stored!r} is {dtype}, which cannot be merged; convert it first"
                )
            table, key = self._modules.setdefault(factor[1], {}), factor[2].removesuffix(".weight")[-1]
        elif "lora_magnitude" in name:
            raise refused(self._label, f"it holds {stored!r}, and DoRA scales every row by its norm")
        elif "lora_" in name or ".original_module." in name or ".token_adapter." in name:
            raise refused(self._label, f"it holds {stored!r}, which is neither a factor nor a tensor of the model")
        elif name.endswith(".base_layer.weight"):  # PEFT stores an embedding again when it adapts it
            table, key = self._modules.setdefault(name.removesuffix(".base_layer.weight"), {}), "W"
        else:
            table, key = self._whole, name.replace(".base_layer.", ".")
        if table.setdefault(key, stored) != stored:
            raise refused(self._label, f"{table[key]!r} and {stored!r} are the same tensor")

    def _stacked(self) -> dict[str, Factors]:
        """Factors of stacked parameters by the base's tensors, their modules taken out of `_modules`.

        PEFT wraps a module once for each parameter, and does not say in which order: shapes do.
        """
        found: dict[str, Factors] = {}
        homes = stacks(self._base.folder, self._base.tensors)
        bare = {module: module.replace(".base_layer", "") for module in self._modules}
        own = {old: new for new, old in aligned(list(bare.values()), homes).items()}
        for module in [m for m, name in bare.items() if own[name] in homes]:
            parts = self._modules.pop(module)
            a, b = (self._file.tensors[parts[key]].shape if key in parts else () for key in "AB")
            fitting = [s for s in homes[own[bare[module]]] if (*b[:1], *a[1:]) == s.shape[1:]]
            if len(a) != 2 or len(b) != 2 or len(fitting) != 1:
                raise refused(self._label, f"module {module!r} has factors {a} and {b}, which do not say of what")
            made = self._factors_of(fitting[0], parts)
            if found.keys() & made.keys():
                raise refused(self._label, f"{fitting[0].name!r} has two pairs of factors")
            found |= made
        return found

    def _factors_of(self, stack: Stack, parts: Mapping[str, str]) -> dict[str, Factors]:
        if not stack.pieces:
            why = f"{stack.name!r} holds a layer's experts and is not stored as one matrix an expert"
            raise refused(self._label, why)
        rank, count = self._config.rank_of(stack.name), stack.shape[0]
        a, b = (self._file.tensors[parts[key]].shape for key in "AB")
        if a[0] != rank * count or b[1] != rank * count:
            raise PoolError(
                f"{self._label}: parameter {stack.name!r} of {count} experts has factors {a} and {b}, expected rank "
                f"{rank} for each as its config says; save the adapter again"
            )
        scale = self._config.scale_of(stack.name)
        return {n: Factors(parts["A"], parts["B"], rank, scale, False, piece) for n, piece in stack.pieces.items()}

    def _resolved(self, names: Iterable[str]) -> dict[str, str]:
        """From names in the file to the base's: by themselves, with another prefix, or as transformers renames them."""
        wanted = list(names)
        found = {old: new for new, old in aligned(wanted, self._base.tensors).items()}
        missing = {old for old, new in found.items() if new not in self._base.tensors}
        if missing and self._skeleton is not None:
            placed = self._skeleton.placed(self._base.tensors)
            for own, old in aligned(wanted, self._skeleton.names).items():
                if old in missing and own in placed:
                    found[old] = placed[own]
        for module in self._modules:
            name = found[f"{module}.weight"]
            if name not in self._base.tensors:
                tied = name.endswith(OUTPUTS) and any(w in n for n in self._base.tensors for w in EMBEDDING)
                why = (
                    "the base's output layer is tied to its embeddings, and one cannot change without the other"
                    if tied
                    else f"the base's tensors are named like {next(iter(self._base.tensors))!r}"
                )
                raise PoolError(
                    f"{self._label} adapts {module!r}, but the base has no tensor {name!r}: {why}; give the base that "
                    "the adapter was trained on, or drop it"
                )
        return found

    @cached_property
    def _skeleton(self) -> Skeleton | None:
        return Skeleton.of(self._base.folder)

    def _factors(self, module: str, name: str, parts: Mapping[str, str]) -> Factors:
        if not parts.keys() >= {"A", "B"}:
            raise refused(self._label, f"module {module!r} does not have two factors")
        a, b, weight = self._file.tensors[parts["A"]], self._file.tensors[parts["B"]], self._base.tensors[name]
        rank = self._config.rank_of(module)
        if not a.shape or not len(b.shape) > 1 or (a.shape[0], b.shape[1]) != (rank, rank):
            raise PoolError(
                f"{self._label}: module {module!r} has factors {a.shape} and {b.shape}, expected rank {rank} as its "
                "config says; save the adapter again"
            )
        straight = weight.shape == (b.shape[0], *a.shape[1:]) and all(n == 1 for n in b.shape[2:])
        crossed = len(a.shape) == len(b.shape) == 2 and weight.shape == (a.shape[1], b.shape[0])
        if "lora_embedding" in parts["A"]:
            straight = False
        elif straight and crossed:  # a square says nothing by itself
            crossed = name in self._turned if self._turned is not None else self._config.turned
        if not straight and not crossed:
            raise PoolError(
                f"{self._label}: module {module!r} has factors {a.shape} and {b.shape}, which do not make the base's "
                f"tensor {name!r} {weight.shape}; give the base that the adapter was trained on, or drop it"
            )
        return Factors(parts["A"], parts["B"], rank, self._config.scale_of(module), crossed)

    @cached_property
    def _turned(self) -> frozenset[str] | None:
        """The base's tensors whose layers store them (in, out); None where transformers does not know the model."""
        if self._skeleton is None:
            return None
        placed = self._skeleton.placed(self._base.tensors)
        return frozenset(placed[own] for own in self._skeleton.turned if own in placed)

    def _is_bases(self, name: str, stored: str) -> bool:
        ours, theirs = self._base.tensor(name), self._file.tensor(stored)
        return ours.shape == theirs.shape and torch.equal(ours.float(), theirs.float())

    def _untied(self, low: Mapping[str, Factors], full: Mapping[str, str]) -> dict[str, str]:
        """`full` without an output layer that repeats the embedding to which the base ties it.

        A merge changes both of tied weights, where PEFT changes one of them: that is refused.
        """
        kinds = [str(kind) for kind in self._base.config.get("architectures") or []]
        tied = any(part in kind for kind in kinds for part in _WITH_OUTPUT) and not any(
            name.endswith(OUTPUTS) for name in self._base.tensors
        )
        outputs = {n for n in full if n.endswith(OUTPUTS) and n not in self._base.tensors}
        for name in [n for n in (*low, *full) if tied and self._is_input(n)]:
            copies = (
                name in full
                and outputs
                and all(torch.equal(self._file.tensor(full[name]), self._file.tensor(full[o])) for o in outputs)
            )
            if copies:
                return {n: stored for n, stored in full.items() if n not in outputs}
            if name in low or not self._is_bases(name, full[name]):
                why = f"{name!r} is tied to the output layer, and the adapter changes only one of the two"
                raise refused(self._label, why)
        return dict(full)

    def _is_input(self, name: str) -> bool:
        shape = self._base.tensors[name].shape if name in self._base.tensors else ()
        rows = self._base.config.get("vocab_size")
        return len(shape) == 2 and any(w in name for w in EMBEDDING) and rows in (None, shape[0])
