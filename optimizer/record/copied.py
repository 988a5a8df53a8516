"""Is a run's folder a copy of another's, and of which? A mark beside the ledger says so: nobody drives a copy."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from optimizer.errors import RunError
from optimizer.record import files
from optimizer.wording import shown

MARK = "fetched.json"
MOST_BYTES = 16384  # of the mark, which may be somebody else's


@dataclass(frozen=True)
class Copied:
    """Of which run a folder is a copy, as of when. `address` is that of the cluster that it lives on, if on one."""

    folder: str  # of the run itself, on `host`
    name: str
    host: str
    at: str  # local time of `host`
    run: str | None = None  # the run's own id; None of one from before runs had any
    address: str | None = None

    def __str__(self) -> str:
        where = f"on the cluster {self.address}" if self.address else f"at {self.folder} on {self.host}"
        return f"a copy of {self.name} {where}, as of {self.at}"

    @property
    def resume(self) -> str:
        """The command that goes on with the run itself."""
        return (
            f"mergeopt resume {self.name} --address {self.address}"
            if self.address
            else f"mergeopt resume {self.folder}"
        )

    def write(self, folder: Path) -> None:
        files.write_new(folder / MARK, json.dumps(asdict(self)))


def mark(source: Path, folder: Path, run: str | None) -> None:
    """Say of `folder` that it holds what was copied of the run in `source`; `run` is that one's id."""
    at = time.strftime("%Y-%m-%d %H:%M:%S")
    Copied(str(source), source.name, socket.gethostname(), at, run).write(folder)


def fetched_from(folder: Path, name: str, address: str) -> None:
    """Say of a copy that its run lives on this cluster, where it goes by `name`."""
    found = copied(folder) or Copied("?", name, "?", "?")
    replace(found, name=name, address=address).write(folder)


def copied(folder: Path) -> Copied | None:
    """Of what this folder is a copy; None where it is none. A mark that cannot be read marks all the same."""
    path = folder / MARK
    try:
        said = json.loads(files.read(path, MOST_BYTES))
        texts = [said[key] for key in ("folder", "name", "host", "at")]
        more = [said.get(key) for key in ("run", "address")]
        if not all(isinstance(text, str) for text in [*texts, *(text for text in more if text is not None)]):
            raise TypeError
        return Copied(*(shown(text, 500) for text in texts), *(text and shown(text, 500) for text in more))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Copied("?", folder.name, "?", "?")


def same_run(folder: Path, other: Path) -> bool:
    """Whether both folders are copies of one and the same run."""
    ours, theirs = copied(folder), copied(other)
    return ours is not None and theirs is not None and ours.run is not None and ours.run == theirs.run


def no_copy(folder: Path) -> None:
    """Raises RunError where a folder is a copy: a second driver would take the run elsewhere than the first does."""
    found = copied(folder)
    if found is not None:
        raise RunError(
            f"{folder} is {found}; '{found.resume}' goes on with it there. A child of its own may go on here: "
            f"'mergeopt resume {folder.name} --fork NAME'; and where the run itself is lost, this copy is the run once "
            f"{MARK} is removed from it"
        )
