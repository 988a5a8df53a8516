"""Which id means which token? What a tokenizer's files say, and how it splits sample texts; never its cosmetics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from searchspaces.errors import PoolError
from searchspaces.models.checkpoint import read_json

FILE = "tokenizer.json"
UNKNOWN = "unknown"  # older files do not say which model they are of
MAX_BYTES = 200_000_000  # of a tokenizer.json; the largest known have some 40 MB
OLDER = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


SETTINGS = "tokenizer_config.json"
SAMPLES = (
    *("Hello World", "naïve café ÀÉÎ", "e\u0301 ﬁ ² Ⅷ ｆｕｌｌ", "don't it's we'll", "a  b\tc\n\nd", "3.14 12345678"),
    *("x=y+1; foo_bar(baz)", "北京 東京", "a-b...c!?", "so 🙂 on"),
)
"""Texts on which normalizers and pre-tokenizers are compared: case, accents, compatibility forms, contractions, spaces,
digits, code, scripts without spaces, punctuation, emoji."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """What a folder's tokenizer says of itself.

    `kind` is the model's in tokenizer.json; empty where there is none. `trained` is the vocabulary that it was trained
    with, token -> id; empty where only a file says it that is not read here (tokenizer.model).
    `added` are the tokens added later, token -> entry as in tokenizer.json, with its `id`. `merges` are a BPE's rules,
    in order, `scores` a unigram model's by id; `files` are digests of the older formats' files, which count where there
    is no tokenizer.json. `rules` are its normalizer and pre-tokenizer, as tokenizer.json has them.
    """

    label: str
    kind: str
    trained: Mapping[str, int] = field(repr=False)
    added: Mapping[str, Mapping[str, Any]]
    merges: tuple[str, ...] = field(repr=False)
    files: Mapping[str, str]
    scores: tuple[float, ...] = field(default=(), repr=False)
    rules: Mapping[str, Any] = field(default_factory=dict, repr=False)

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
        try:
            return cls._older(folder, files, label)
        except (TypeError, ValueError, AttributeError) as error:
            raise PoolError(
                f"{label}: the tokenizer's files in {folder} cannot be read ({type(error).__name__}: {error}); fetch "
                "or save them again"
            ) from error

    @classmethod
    def _older(cls, folder: Path, files: Mapping[str, str], label: str) -> Tokens:
        """Of the formats from before tokenizer.json: what their texts say; what a binary one says is not known."""
        trained: dict[str, int] = {}
        if "vocab.json" in files:
            trained = {t: i for t, i in read_json(folder / "vocab.json", label, MAX_BYTES).items() if type(i) is int}
        elif "vocab.txt" in files:
            trained = {token: i for i, token in enumerate(_lines(folder / "vocab.txt"))}
        merges: tuple[str, ...] = ()
        if "merges.txt" in files:
            merges = tuple(line for line in _lines(folder / "merges.txt") if line and not line.startswith("#version"))
        added: dict[str, int] = {}
        if trained and (folder / SETTINGS).is_file():  # which repeats trained ones, so these must be known
            entries = read_json(folder / SETTINGS, label).get("added_tokens_decoder") or {}
            found = {str(entry["content"]): int(i) for i, entry in entries.items()}
            added = {token: i for token, i in found.items() if token not in trained}
        if (folder / "added_tokens.json").is_file():
            added |= {str(t): int(i) for t, i in read_json(folder / "added_tokens.json", label).items()}
        return cls(label, "", trained, {t: {"id": i, "content": t} for t, i in added.items()}, merges, files)

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
        scores = tuple(float(entry[1]) for entry in vocabulary) if isinstance(vocabulary, list) else ()
        rules = {part: data.get(part) for part in ("normalizer", "pre_tokenizer")}
        return cls(label, str(model.get("type") or UNKNOWN), trained, added, merges, files, scores, rules)

    @property
    def ids(self) -> dict[str, int]:
        """Every token's id that is known: see `trained`."""
        return {**self.trained, **self._later}

    def beside(self, other: Tokens) -> dict[str, int]:
        """The ids of those tokens that can be looked for in another tokenizer: where the vocabulary that one of the two
        was trained with is not known, only those that were added to it."""
        if self.trained and other.trained:
            return self.ids
        return {token: i for token, i in self._later.items() if token not in self.trained}

    @property
    def _later(self) -> dict[str, int]:
        return {token: int(entry["id"]) for token, entry in self.added.items()}

    def by_id(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The added tokens and their entries, in the order of their ids."""
        return sorted(self.added.items(), key=lambda item: int(item[1]["id"]))

    def check(self, base: Tokens) -> None:
        """Raise PoolError, saying what differs, where this tokenizer was not trained as the base's was, where it splits
        text otherwise, and where nothing of the two can be compared."""
        older = not (self.kind and base.kind) and not (self.trained and base.trained)
        if older and not self.files.keys() & base.files.keys():
            ours, theirs = (" and ".join([FILE] if t.kind else t.files) for t in (self, base))
            raise PoolError(
                f"{self.label} has its tokenizer in {ours}, the base in {theirs}, which cannot be compared; load one "
                "with transformers and save it with save_pretrained(), or remove the expert's if it is the base's"
            )
        if why := self._difference(base):
            raise PoolError(
                f"{self.label} has another tokenizer than the base: {why}; the rows of its embeddings mean other "
                "tokens, so drop it, or save the right tokenizer beside it"
            )
        if why := self._splits(base):
            raise PoolError(
                f"{self.label} reads text otherwise than the base: {why}; drop it, or copy the base's tokenizer beside "
                "it if the merge is to read as the base does"
            )

    def _difference(self, base: Tokens) -> str | None:
        if not (self.kind and base.kind):  # one of them is of an older format
            odd = [name for name, digest in self.files.items() if base.files.get(name, digest) != digest]
            if odd or self.files.keys() & base.files.keys():
                return f"{odd[0]} is not the base's" if odd else None
            return self._conflict(base) or (self._merges(base) if self.merges and base.merges else None)
        if self.kind != base.kind and UNKNOWN not in (self.kind, base.kind):
            return f"it is a {self.kind} model (base: {base.kind})"
        if self.trained != base.trained:
            ours, theirs = ({i: t for t, i in tokens.items()} for tokens in (self.trained, base.trained))
            i = min(i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i))
            return f"id {i} is {ours.get(i)!r} (base: {theirs.get(i)!r})"
        for token, ours_, theirs_ in zip(self.trained, self.scores, base.scores, strict=False):
            if abs(ours_ - theirs_) > 1e-5 * (1 + abs(theirs_)):
                return f"the score of {token!r} is {ours_:.6g} (base: {theirs_:.6g})"
        return self._merges(base)

    def _conflict(self, base: Tokens) -> str | None:
        """An id that is another token; what only one of two formats has is no conflict."""
        ours, theirs = ({i: t for t, i in tokens.trained.items()} for tokens in (self, base))
        odd = [i for i in ours.keys() & theirs.keys() if ours[i] != theirs[i]]
        return f"id {min(odd)} is {ours[min(odd)]!r} (base: {theirs[min(odd)]!r})" if odd else None

    def _merges(self, base: Tokens) -> str | None:
        if self.merges != base.merges:
            n = next((n for n, (a, b) in enumerate(zip(self.merges, base.merges, strict=False)) if a != b), None)
            n = min(len(self.merges), len(base.merges)) if n is None else n
            ours_, theirs_ = (repr(m[n]) if n < len(m) else "not there" for m in (self.merges, base.merges))
            return f"its merge rule {n} is {ours_} (base: {theirs_})"
        return None

    def _splits(self, base: Tokens) -> str | None:
        """A sample that the two normalise and split into other pieces."""
        if self.rules == base.rules or not (self.kind and base.kind):
            return None
        for sample, ours, theirs in zip(SAMPLES, self._pieces(), base._pieces(), strict=True):
            if ours != theirs:
                return f"of {sample!r} it makes {ours} (base: {theirs})"
        return None

    def _pieces(self) -> list[list[str]]:
        """Each sample as it comes to the model. A space that is put before the first word is left out: whether there is
        one differs between versions of the same tokenizer."""
        from tokenizers import Tokenizer

        bare = {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {}, "unk_token": ""}}
        try:
            made = Tokenizer.from_str(json.dumps({**bare, **self.rules}))
        except Exception as error:  # the library raises no narrower one
            raise PoolError(
                f"{self.label}: the normalizer or pre-tokenizer in its {FILE} cannot be read ({error}); update the "
                "package tokenizers, or save it again"
            ) from error
        found = []
        for sample in SAMPLES:
            text = made.normalizer.normalize_str(sample) if made.normalizer else sample
            pieces = [p for p, _ in made.pre_tokenizer.pre_tokenize_str(text)] if made.pre_tokenizer else [text]
            found.append([piece for piece in (pieces[0].lstrip("▁Ġ "), *pieces[1:]) if piece])
        return found


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").removesuffix("\n").split("\n")


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
