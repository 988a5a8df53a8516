"""What does an adapter_config.json promise? A LoRA that is a low-rank task vector, or a clear refusal."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchspaces.errors import PoolError
from searchspaces.models.checkpoint import read_json

# options of PEFT under which the merged weights are no `W + scale * B A`, and why
_REFUSED = {
    "use_dora": "DoRA scales every row by its norm",
    "use_qalora": "QALoRA pools its inputs",
    "alora_invocation_tokens": "activated LoRA acts on some tokens only",
    "layer_replication": "it makes layers that the base does not have",
    "trainable_token_indices": "it replaces single rows of the embeddings",
    "lora_bias": "its factors have biases of their own",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "Arrow routes every token to other adapters",
    "kasa_config": "KaSA changes the base's weights",
    "monteclora_config": "MonteCLoRA draws its factors at random",
}
# how PEFT made the factors; other ways begin by changing the base's weights
_STARTS = (True, False, "gaussian", "eva", "orthogonal")
# what changes training, names or nothing; anything else that is set may change what the adapter means
_HARMLESS = frozenset(
    [
        *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying"),
        *("eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"),
        *("layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core"),
        *("modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision"),
        *("runtime_config", "target_modules", "target_parameters", "task_type", "use_rslora", "velora_config"),
    ]
)
_GREEDY = re.compile(r"[*+{?]")
_NESTED = re.compile(r"\)\s*[*+{?]|\(\?")


@dataclass(frozen=True)
class LoraConfig:
    """The part of PEFT's config that says what the stored factors mean."""

    label: str
    raw: Mapping[str, Any]
    rank: int
    alpha: float
    by_root: bool  # alpha is divided by the root of the rank
    turned: bool  # layers store their weights (in, out)
    ranks: Mapping[re.Pattern[str], int]
    alphas: Mapping[re.Pattern[str], float]

    @classmethod
    def read(cls, file: Path, label: str) -> LoraConfig:
        """Read and check the file; raises PoolError for another kind of adapter, and for what is no low-rank sum."""
        raw = read_json(file, label)
        kind = raw.get("peft_type")
        if kind != "LORA":
            raise PoolError(
                f"{label}: {file} is an adapter of the type {kind!r}, expected LORA; other kinds are no low-rank task "
                "vectors: merge it into its base with merge_and_unload() and save that"
            )
        for option, why in _REFUSED.items():
            if raw.get(option):
                raise refused(label, f"{option} is set, and {why}")
        start = raw.get("init_lora_weights", True)
        if start is not None and start not in _STARTS:
            raise PoolError(
                f"{label}: init_lora_weights is {start!r}, which begins by changing the base's weights; save the "
                "adapter with path_initial_model_for_weight_conversion, or merge it into its own base"
            )
        if odd := sorted(k for k, v in raw.items() if v and k not in _HARMLESS):
            raise refused(label, f"its option {odd[0]!r} is not known here and may change what it means")
        return cls(
            label,
            raw,
            _whole(label, "r", raw.get("r")),
            _number(label, "lora_alpha", raw.get("lora_alpha")),
            _flag(label, raw, "use_rslora"),
            _flag(label, raw, "fan_in_fan_out"),
            {p: _whole(label, "rank_pattern", v) for p, v in _patterns(label, raw, "rank_pattern")},
            {p: _number(label, "alpha_pattern", v) for p, v in _patterns(label, raw, "alpha_pattern")},
        )

    def rank_of(self, module: str) -> int:
        """The rank that a module's factors should have."""
        return next((r for pattern, r in self.ranks.items() if pattern.match(module)), self.rank)

    def scale_of(self, module: str) -> float:
        """What the product of a module's factors is multiplied with."""
        alpha = next((a for pattern, a in self.alphas.items() if pattern.match(module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.by_root else rank)


def refused(label: str, why: str) -> PoolError:
    """The error for an adapter that is no low-rank task vector."""
    return PoolError(
        f"{label}: this adapter cannot be read as a low-rank task vector: {why}; merge it into its base with "
        "merge_and_unload() and give the folder of that model"
    )


def _whole(label: str, key: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= 1_000_000:
        raise PoolError(
            f"{label}: {key} must be a whole number of at least 1, got {value!r:.80}; save the adapter again"
        )
    return value


def _number(label: str, key: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise PoolError(f"{label}: {key} must be a finite number, got {value!r:.80}; save the adapter again")
    return float(value)


def _flag(label: str, raw: Mapping[str, Any], key: str) -> bool:
    value = raw.get(key)
    if value is not None and type(value) is not bool:
        raise PoolError(f"{label}: {key} must be true or false, got {value!r:.80}; save the adapter again")
    return bool(value)


def _patterns(label: str, raw: Mapping[str, Any], key: str) -> list[tuple[re.Pattern[str], Any]]:
    """PEFT's patterns as it matches them: regular expressions for the end of a module's name, from a component on."""
    table = raw.get(key) or {}
    if not isinstance(table, dict):
        raise PoolError(f"{label}: {key} must map patterns to numbers, got {table!r:.80}; save the adapter again")
    found = []
    for text, value in table.items():
        # a file from elsewhere must not keep us busy for ever: no repetition of repetitions
        if len(text) > 256 or _NESTED.search(text) or len(_GREEDY.findall(text)) > 4:
            raise PoolError(f"{label}: the pattern {text[:80]!r} of {key} is too complex; write the modules' names out")
        try:
            found.append((re.compile(rf"(.*\.)?({text})$"), value))
        except re.error as error:
            raise PoolError(
                f"{label}: the pattern {text!r} of {key} is no regular expression: {error}; correct it"
            ) from error
    return found
