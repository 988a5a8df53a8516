"""What is sent to a cluster, and what comes back? An order as a file, and lines in the log of what carries it out.

An order travels as a package of its own, of two files at most: it is on no command line and in no variable, where
others on the machine, or Ray's own logs, would show it, and it may be as large as a job file. An answer is the last
line of the order's log; files come back as lines of base64 before it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import IO, Any, Literal

from optimizer.errors import ClusterError

ORDER, JOB = "order.json", "job.yaml"
ANSWER, DATA = "mergeopt-answer: ", "mergeopt-data: "
LINE = 3 << 14  # bytes of a file in one line; a multiple of 3, so that lines are base64 by themselves

Verb = Literal["run", "resume", "status", "cancel", "fetch"]


@dataclass(frozen=True)
class Order:
    """What the cluster's side is to do. `job` is a job file's text, for `run` alone; `runs` a folder of the cluster."""

    verb: Verb
    name: str
    runs: str
    version: str = field(default_factory=lambda: version())
    job: str | None = None
    allow_code: bool = False
    evaluations: int | None = None
    what: str = "ledger"  # of `fetch`: ledger, report or export
    candidate: str = "best"
    out: str = "merged"  # the name that an export is to have where it is fetched to, which its card says

    @property
    def export_name(self) -> str:
        """`out`. Raises ClusterError where it is more than the name of one folder."""
        if (
            Path(self.out).name != self.out
            or self.out in ("", "..")
            or "\0" in self.out
            or len(self.out.encode()) > 255
        ):
            raise ClusterError(f"an export's name is that of one folder, got {self.out!r}; name another with --out")
        return self.out

    def write(self, folder: Path) -> None:
        """As the files of a package."""
        texts = {ORDER: json.dumps({**asdict(self), "job": None}), JOB: self.job}
        for name, text in texts.items():
            if text is not None:
                (folder / name).touch(mode=0o600)
                (folder / name).write_text(text)

    @classmethod
    def read(cls, folder: Path) -> Order:
        """The order of this folder. Raises ClusterError where it is none that this version knows."""
        try:
            job = (folder / JOB).read_text() if (folder / JOB).is_file() else None
            return cls(**{**json.loads((folder / ORDER).read_text()), "job": job})
        except (OSError, ValueError, TypeError) as error:
            raise ClusterError(f"{folder} holds no order that this version of mergeopt knows: {error}") from error


def version() -> str:
    """Of the mergeopt that is installed here."""
    try:
        return version_of("mergeopt")
    except PackageNotFoundError:
        return "not installed"


def answered(log: str) -> dict[str, Any] | None:
    """What the last answer in a log says; None where there is none yet."""
    for line in reversed(log.splitlines()):
        if line.startswith(ANSWER):
            try:
                found = json.loads(line.removeprefix(ANSWER))
            except ValueError:
                return None  # it is just being written
            return found if isinstance(found, dict) else None
    return None


def said(log: str) -> str:
    """A log without the lines that are for us alone."""
    return "".join(line for line in log.splitlines(keepends=True) if not line.startswith((ANSWER, DATA)))


def encode(file: IO[bytes], note: str = "") -> Iterator[str]:
    """A file as lines; the last is its answer, with its size and sha256, and what is to be said of it."""
    digest, size = hashlib.sha256(), 0
    while block := file.read(LINE):
        digest.update(block)
        size += len(block)
        yield DATA + base64.b64encode(block).decode()
    yield ANSWER + json.dumps({"bytes": size, "sha256": digest.hexdigest(), "note": note})


def decode(lines: Iterable[bytes], into: IO[bytes]) -> int:
    """Write what `encode` made of a file, from a log's lines; its size. Raises ClusterError where it is not whole."""
    digest, size, mark = hashlib.sha256(), 0, DATA.encode()
    last: dict[str, Any] | None = None
    for line in lines:
        if line.startswith(mark):
            try:
                block = base64.b64decode(line.removeprefix(mark).strip(), validate=True)
            except binascii.Error as error:
                raise ClusterError(
                    f"what the cluster sent is damaged after {size} bytes: {error}; fetch it again"
                ) from None
            digest.update(block)
            size += len(block)
            into.write(block)
        elif line.startswith(ANSWER.encode()):
            last = answered(line.decode(errors="replace"))
    if last is None or last.get("bytes") != size or last.get("sha256") != digest.hexdigest():
        raise ClusterError(f"what the cluster sent is not whole: {size} bytes arrived, expected {last}; fetch it again")
    return size
