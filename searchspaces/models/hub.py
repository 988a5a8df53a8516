"""Where do a model's files lie? In a folder of this machine, or on the hub at one commit."""

from __future__ import annotations

import re
from pathlib import Path

from searchspaces.errors import PoolError, first_line

_HUB = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)@([0-9a-f]{40})")
_UNPINNED = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@\S*)?")
# weights, configs, tokenizers: no code, no pickles
_FETCHED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


def folder_of(where: str | Path, label: str) -> Path:
    """A local folder, or the snapshot of a hub id `org/name@commit`, fetched now.

    Raises PoolError, beginning with `label`, for a hub id without a commit, or one that cannot be fetched.
    """
    path = _expanded(Path(where))
    if isinstance(where, Path) or path.exists():
        return path
    pinned = _HUB.fullmatch(where)
    if pinned is None:
        if _UNPINNED.fullmatch(where):
            if "@" not in where and path.parent.is_dir():  # who begins a path of this host means one
                raise PoolError(f"{label}: no folder {where!r}; in {path.parent} there {_folders(path.parent)}")
            raise PoolError(
                f"{label}: no folder {where!r}, and as a hub id it is not pinned: write org/name@ and the 40 "
                "hexadecimal digits of a commit, because branches and tags move"
            )
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = snapshot_download(pinned[1], revision=pinned[2], allow_patterns=_FETCHED, ignore_patterns=["*/*"])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise PoolError(
            f"{label}: {where} cannot be fetched: {first_line(error)}; check id, commit and network"
        ) from error
    return Path(found)


def _expanded(path: Path) -> Path:
    """`~` being this user's home; as it stands where it begins with a user that there is not."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _folders(home: Path, most: int = 10) -> str:
    """Which folders there are in one."""
    there = sorted(p.name for p in home.iterdir() if p.is_dir() and not p.name.startswith("."))
    more = f" and {len(there) - most} more" if len(there) > most else ""
    return f"{'are' if there[1:] else 'is'}: {', '.join(there[:most])}{more}" if there else "is none"
