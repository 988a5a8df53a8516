"""Which models does another tool's file name? Folders of this host, or names on the hub, each called something."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from evaluators.options import expanded
from optimizer.errors import JobError
from optimizer.importing.documents import HUB, Reference

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Found:
    """A model as a job names it; `folder` where it is on this host, `unpinned` where the hub's name has no commit."""

    text: str
    folder: Path | None = None
    unpinned: bool = False


@dataclass(frozen=True)
class Models:
    """The base and the experts by name, with the references that they came from."""

    base: Found
    experts: Mapping[str, Found]
    names: Mapping[Reference, str]  # expert by reference
    notes: Sequence[str]

    @property
    def here(self) -> bool:
        """Whether all of them are on this host."""
        return all(one.folder is not None for one in (self.base, *self.experts.values()))


def found(base: Reference, experts: Sequence[Reference], at: Mapping[str, str], beside: Path, home: Path) -> Models:
    """Where the models are: as `at` says (a reference, or its path -> where), as they are called, or in `beside`.

    Folders that the file does not name from the root are told as a job in the folder `home` has them.

    An expert with an adapter (`model+adapter`) is that adapter, where the model is the base. Raises JobError where it
    is another, and for keys of `at` that no model has.
    """
    asked: set[str] = set()

    def place(one: Reference) -> Found:
        for key in (str(one), one.path):
            if key in at:
                asked.add(key)
                return _place(Reference(*_split(at[key])), beside, home)
        return _place(one, beside, home)

    if base.lora is not None:
        raise JobError(f"base_model {str(base)!r} has an adapter; save it merged into its model, and name that")
    named_ = named(experts)
    wheres = {}
    for one in experts:
        if one.lora is not None and one.whole != base:
            raise JobError(
                f"{str(one)!r}: an adapter is an expert of the base that it was trained on, and the base is "
                f"{str(base)!r}; save it merged into its model (merge_and_unload() of PEFT), and name that"
            )
        wheres[named_[one]] = place(one.lora or one)
    made = place(base)
    if unasked := sorted(at.keys() - asked):
        raise JobError(f"--at names {unasked[0]!r}, which the file does not; it names {', '.join(map(str, experts))}")
    return Models(made, wheres, named_, _notes((made, *wheres.values())))


def stand_in(experts: Sequence[Reference]) -> Reference:
    """What is taken for the base where a file names none: the first model, or that of which there are adapters.

    Raises JobError for adapters of several models, which have no base in common.
    """
    adapted = list(dict.fromkeys(one.whole for one in experts if one.lora is not None))
    if len(adapted) > 1:
        raise JobError(
            f"the file names no base, and has adapters of different models ({', '.join(map(str, adapted))}); save "
            "each merged into its model (merge_and_unload() of PEFT), and name those"
        )
    return adapted[0] if adapted else experts[0]


def _notes(models: Sequence[Found]) -> list[str]:
    """What has to be mended before a check: names that are not pinned, and folders that are not here."""
    loose = list(dict.fromkeys(one.text for one in models if one.unpinned))
    notes = (
        []
        if not loose
        else [
            f"not pinned, so that 'check' refuses {'it' if len(loose) == 1 else 'them'}: {', '.join(loose)}; write "
            "org/name@ and the 40 digits of a commit, because branches and tags move, or a folder"
        ]
    )
    missing = [one.text for one in models if one.folder is None and not _on_hub(one.text)]
    notes += [f"no folder {text} here; name the right one" for text in dict.fromkeys(missing)]
    return notes


def _place(one: Reference, beside: Path, home: Path) -> Found:
    for folder in (expanded(one.path), beside / one.path):
        if one.revision is None and folder.is_dir():
            return Found(one.path if Path(one.path).is_absolute() else told(home, folder), folder.absolute())
    return Found(str(one), unpinned=_on_hub(one.path) and COMMIT.fullmatch(one.revision or "") is None)


def told(home: Path, folder: Path) -> str:
    """A path as a job in the folder `home` has it."""
    return Path(os.path.relpath(folder, home)).as_posix()


def _split(text: str) -> tuple[str, str | None]:
    path, _, revision = (
        text.rpartition("@") if HUB.fullmatch(text.partition("@")[0]) and "@" in text else (text, "", "")
    )
    return path, revision or None


def _on_hub(text: str) -> bool:
    return HUB.fullmatch(text.partition("@")[0]) is not None


def named(experts: Sequence[Reference]) -> dict[Reference, str]:
    """A name for each: the last part of its path."""
    names: dict[Reference, str] = {}
    for one in experts:
        names[one] = plain((one.lora or one).path.rstrip("/").rpartition("/")[2], names.values())
    return names


def plain(text: str, taken: Collection[str]) -> str:
    """A name as jobs have them, like `text`, and numbered where it is taken."""
    made = re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip("._-")[:60] or "one"
    there = {*taken, "base"}
    if made not in there:
        return made
    first = sum(one.startswith(made[:56]) for one in there)  # so many are numbered already, at most
    return next(name for n in count(max(2, first)) if (name := f"{made[:56]}-{n}") not in there)
