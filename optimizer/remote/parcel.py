"""What of a run is brought elsewhere, and how does it arrive?"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from contextlib import closing
from pathlib import Path

from optimizer.errors import ClusterError, RunError
from optimizer.record.folders import LEDGER, there
from optimizer.record.ledger import Ledger

TEXTS = ("job.yaml", "splits.json")


def copy_run(folder: Path, target: Path) -> None:
    """A run's ledger, job and splits as they are at one moment, while the run may go on: all that is read of a run.

    The ledger is copied as a file, also where a server keeps it: who gets it needs no way to that server.

    Raises RunError where `target` exists, or there is no run.
    """
    there(folder)
    if target.exists():
        raise RunError(f"{target} exists already; name another folder with --out")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as partial:
        made = Path(partial) / "run"
        made.mkdir()
        for name in TEXTS:
            shutil.copy(folder / name, made / name)
        with closing(Ledger.open(folder / LEDGER, readonly=True)) as ledger:
            ledger.copy(made / LEDGER)
        made.rename(target)


def pack(source: Path, archive: Path) -> None:
    """A file, or all files of a folder, as an uncompressed archive."""
    files = sorted(f for f in source.rglob("*") if f.is_file()) if source.is_dir() else [source]
    origin = source if source.is_dir() else source.parent
    with zipfile.ZipFile(archive, "w") as out:
        for file in files:
            out.write(file, file.relative_to(origin).as_posix())


def unpack(archive: Path, target: Path, single: bool = False) -> None:
    """What `pack` made of a folder, as a new folder; with `single`, of a file. Raises ClusterError for anything else.

    Names that lead out of the folder, links, and compressed entries are refused: the cluster's disk may be anybody's.
    """
    if target.exists():
        raise RunError(f"{target} exists already; name another folder with --out")
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as partial,
        zipfile.ZipFile(archive) as found,
    ):
        made = Path(partial) / "made"
        made.mkdir()
        for entry in found.infolist():
            parts = Path(entry.filename).parts
            odd = not parts or Path(entry.filename).is_absolute() or ".." in parts or "\\" in entry.filename
            if odd or entry.is_dir() or entry.compress_type != zipfile.ZIP_STORED:
                raise ClusterError(f"what the cluster sent has an entry {entry.filename!r}, which is refused")
            found.extract(entry, made)
        files = list(made.iterdir())
        if single and (len(files) != 1 or not files[0].is_file()):
            raise ClusterError(f"the cluster was asked for one file, and sent {len(files)}")
        (files[0] if single else made).rename(target)
