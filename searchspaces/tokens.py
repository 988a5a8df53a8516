"""Which id means which token? A tokenizer's files, compared by what they make of text, never by cosmetics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from searchspaces.checkpoint import read_json
from searchspaces.errors import PoolError

FILE = "tokenizer.json"
UNKNOWN = "unknown"  # older files do not say which model they are of
MAX_BYTES = 200_000_000  # of a tokenizer.json; the largest known have some 40 MB
OLDER = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


@dataclass(frozen=True, eq=False)
class Tokens:
    """What a folder's tokenizer makes of text.

    `kind` is the model's in tokenizer.json; empty where there is none. `trained` is the vocabulary that it was trained
    with, token -> id.
    `added` are the tokens added later, token -> entry as in tokenizer.json, with its `id`. `merges` are a BPE's rules,
    in order; `files` are digests of the older formats' files, which count where there is no tokenizer.json.
    """

    label: str
    kind: str
    trained: Mapping[str, int] = field(repr=False)
    added: Mapping[str, Mapping[str, Any]]
    merges: tuple[str, ...] = field(repr=False)
    files: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path, label: str) -> Tokens | None:
        """Of the files in a folder; None where there are none. Raises PoolError for malformed ones."""
        files = {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in OLDER
            if (folder / name).is_file()
        }
        if (folder / FILE).is_file():
            try:
                return cls._parsed(read_json(folder / FILE, label, MAX_BYTES), files, label)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise PoolError(
                    f"{label}: {folder / FILE} is no tokenizer that is known ({type(error).__name__}: {error}); fetch "
                    "or save it again"
                ) from error
        if not files:
            return None
        more = folder / "added_tokens.json"
        added = read_json(more, label) if more.is_file() else {}
        return cls(label, "", {}, {t: {"id": int(i), "content": t} for t, i in added.items()}, (), files)

    @classmethod
    def _parsed(cls, data: Mapping[str, Any], files: Mapping[str, str], label: str) -> Tokens:
        model = data["model"]
        vocabulary = model.get("vocab", {})
        if isinstance(vocabulary, list):  # a unigram model's: token and score by id
            trained = {str(entry[0]): i for i, entry in enumerate(vocabulary)}
        else:
            trained = {str(token): int(i) for token, i in vocabulary.items()}
        # a rule was "a b" in older files, and is ["a", "b"] in newer ones
        merges = tuple(rule if isinstance(rule, str) else " ".join(rule) for rule in model.get("merges") or ())
        added = {str(entry["content"]): dict(entry) for entry in data.get("added_tokens") or ()}
        if not all(type(entry["id"]) is int and entry["id"] >= 0 for entry in added.values()):
            raise ValueError("the id of an added token is no whole number")
        return cls(label, str(model.get("type") or UNKNOWN), trained, added, merges, files)

    @property
    def ids(self) -> dict[str, int]:
        """Every token's id; those of the older formats' trained vocabulary are not known."""
        return {**self.trained, **{token: int(entry["id"]) for token, entry in self.added.items()}}

    def by_id(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The added tokens and their entries, in the order of their ids."""
        return sorted(self.added.items(), key=lambda item: int(item[1]["id"]))

    def check(self, base: Tokens) -> None:
        """Raise PoolError, saying what differs, where this tokenizer was not trained as the base's was."""
        if why := self._difference(base):
            raise PoolError(
                f"{self.label} has another tokenizer than the base: {why}; the rows of its embeddings mean other "
                "tokens, so drop it, or save the right tokenizer beside it"
            )

    def _difference(self, base: Tokens) -> str | None:
        if not (self.kind and base.kind):  # one of them is of an older format
            odd = [name for name, digest in self.files.items() if base.files.get(name, digest) != digest]
            return f"{odd[0]} is not the base's" if odd else None
        if self.kind != base.kind and UNKNOWN not in (self.kind, base.kind):
            return f"it is a {self.kind} model (base: {base.kind})"
        if self.trained != base.trained:
            ours, theirs = ({i: t for t, i in tokens.items()} for tokens in (self.trained, base.trained))
            i = min(i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i))
            return f"id {i} is {ours.get(i)!r} (base: {theirs.get(i)!r})"
        if self.merges != base.merges:
            n = next((n for n, (a, b) in enumerate(zip(self.merges, base.merges, strict=False)) if a != b), None)
            n = min(len(self.merges), len(base.merges)) if n is None else n
            ours_, theirs_ = (repr(m[n]) if n < len(m) else "not there" for m in (self.merges, base.merges))
            return f"its merge rule {n} is {ours_} (base: {theirs_})"
        return None


def extend(folder: Path, target: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write to `target` the tokenizer files of `folder` with these tokens added, each with the `id` in its entry."""
    data = read_json(folder / FILE, "base", MAX_BYTES)
    fresh = [dict(entry) for entry in entries]
    data["added_tokens"] = [*(data.get("added_tokens") or ()), *fresh]
    (target / FILE).write_text(json.dumps(data, ensure_ascii=False, indent=2), encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        config = read_json(settings, "base")
        if isinstance(decoder := config.get("added_tokens_decoder"), dict):  # transformers 4 repeats them here
            decoder.update({str(e["id"]): {k: v for k, v in e.items() if k != "id"} for e in fresh})
            (target / settings.name).write_text(json.dumps(config, ensure_ascii=False, indent=2), encoding="utf-8")
    table = folder / "added_tokens.json"
    if table.is_file():
        ids = {**read_json(table, "base"), **{e["content"]: e["id"] for e in fresh}}
        (target / table.name).write_text(json.dumps(ids, ensure_ascii=False, indent=2), encoding="utf-8")
