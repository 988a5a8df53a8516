"""How does text become tokens? The base model's own tokenizer, once per worker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluators.errors import DataError, OptionError
from evaluators.splits import ItemSet

FIELDS = ("input_ids", "attention_mask", "token_type_ids")
UNBOUNDED = 1_000_000  # tokenizers without a limit say 1e30

Encoded = dict[int, dict[str, list[int]]]
"""By row: token fields, each a list of the row's length."""


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a model's folder, from that folder alone; raises `OptionError` where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise OptionError(f"{folder}: expected a tokenizer beside the base model ({error}); save one there") from error


def check_texts(items: ItemSet, columns: Sequence[str]) -> None:
    """Raise `DataError` for a cell that is no text, or blank."""
    rows = items.rows
    for row in items.used:
        for column in columns:
            value = rows[row][column]
            if not isinstance(value, str):
                found = f"{type(value).__name__} {str(value)[:40]}"
                raise DataError(
                    f"{items.where(row, column)}: expected text, got {found}; correct the cell or the column"
                )
            if not value.strip():
                raise DataError(f"{items.where(row, column)}: expected text, got a blank; fill it in or drop the row")


def longest(name: str, tokenizer: Any, config: Any, asked: int | None) -> int | None:
    """Where texts are cut, in tokens: `asked`, else what tokenizer and model can take, else None (nowhere).

    Raises `OptionError` where more is asked than the model has positions.
    """
    text = config.get_text_config()
    limits = [getattr(text, "max_position_embeddings", None), tokenizer.model_max_length]
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < UNBOUNDED]
    if asked is not None and known and asked > max(known):
        raise OptionError(f"evaluator {name!r}: max_length {asked} is more than the model's {max(known)}; lower it")
    return asked if asked is not None else min(known, default=None)


def encode(tokenizer: Any, items: ItemSet, columns: Sequence[str], max_length: int | None) -> Encoded:
    """Tokens of every used row: of one column, or of two as a pair, with the tokenizer's special tokens."""
    rows, used = items.rows, items.used
    first, *second = ([rows[row][column] for row in used] for column in columns)
    tokens = tokenizer(
        first, *second, truncation=max_length is not None, max_length=max_length, return_attention_mask=True
    )
    fields = [field for field in FIELDS if field in tokens]
    return {row: {field: tokens[field][number] for field in fields} for number, row in enumerate(used)}


def pad_token(tokenizer: Any) -> int:
    """What padding is filled with. Padding is masked, so without a padding token any other will do."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
