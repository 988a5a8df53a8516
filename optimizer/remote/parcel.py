"""What of a run is brought elsewhere, and how does it arrive?"""

from __future__ import annotations

import errno
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from optimizer.errors import ClusterError, RunError
from optimizer.record import copied
from optimizer.record.folders import LEDGER, there
from optimizer.record.ledger import Ledger
from optimizer.wording import printable

TEXTS = ("job.yaml", "splits.json")
RUN = (*TEXTS, LEDGER, copied.MARK)  # all that `copy_run` copies
MOST_ENTRIES = 10_000  # of an archive
NO_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ)


def copy_run(folder: Path, target: Path) -> None:
    """A run's ledger, job and splits as they are at one moment, while the run may go on: all that is read of a run.

    The ledger is copied as a file, also where a server keeps it: who gets it needs no way to that server. The copy is
    marked as one. An earlier copy of the same run gives way to it, as with `place`.

    Raises RunError where `target` is anything else, or there is no run.
    """
    there(folder)
    may_be_made(target, of_run=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as partial:
        made = Path(partial) / "run"
        made.mkdir()
        for name in TEXTS:
            shutil.copy(folder / name, made / name)
        with closing(Ledger.open(folder / LEDGER, readonly=True)) as ledger:
            ledger.copy(made / LEDGER)
            copied.mark(folder, made, ledger.meta("id", None))
        place(made, target)


def may_be_made(target: Path, of_run: bool) -> None:
    """Raises RunError where there is something already that a fetch may not replace: all but a copy of a run."""
    if target.exists() and not (of_run and copied.copied(target)):
        raise RunError(f"{target} exists already; name another with --out")


def place(made: Path, target: Path) -> None:
    """Give a copy of a run its name. An earlier copy of the same run gives way; what was made beside it is kept.

    Raises RunError where there is anything else.
    """
    if not target.exists():
        made.rename(target)
        return
    if not copied.same_run(made, target):
        raise RunError(f"{target} exists already, and is no copy of this run; name another folder with --out")
    old = made.with_name("old")
    target.rename(old)  # whole: who reads it goes on with what it has opened
    for one in old.iterdir():
        if not one.name.startswith((".", LEDGER, "driver.")) and not (made / one.name).exists():
            one.rename(made / one.name)  # a report, exports
    try:
        made.rename(target)
    except BaseException:
        old.rename(target)
        raise


def pack(source: Path, archive: Path) -> None:
    """A file, or all files of a folder, as an uncompressed archive."""
    files = sorted(f for f in source.rglob("*") if f.is_file()) if source.is_dir() else [source]
    origin = source if source.is_dir() else source.parent
    with zipfile.ZipFile(archive, "w") as out:
        for file in files:
            out.write(file, file.relative_to(origin).as_posix())


def unpack(archive: Path, target: Path, single: bool = False, run: tuple[str, str] | None = None) -> None:
    """What `pack` made of a folder, as a new folder; with `single`, of a file. Raises ClusterError for anything else.

    `run`: it is a copy of the run of that name, which lives on the cluster at that address; it may take the place of an
    earlier one, and holds nothing but what `copy_run` copies.

    Names that lead out of the folder, or are an order to a terminal, links, and compressed entries are refused: the
    cluster's disk may be anybody's.
    """
    may_be_made(target, of_run=run is not None)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as partial,
        _whole(),
        zipfile.ZipFile(archive) as found,
    ):
        made = Path(partial) / "made"
        made.mkdir()
        entries = found.infolist()
        if len(entries) > MOST_ENTRIES or sum(e.file_size for e in entries) > archive.stat().st_size:
            raise ClusterError(f"what the cluster sent has {len(entries)} entries of more bytes than arrived")
        for entry in entries:
            if _odd(entry, None if run is None else RUN) or (made / entry.filename).exists():
                raise ClusterError(f"what the cluster sent has an entry {entry.filename!r}, which is refused")
            found.extract(entry, made)
        files = list(made.iterdir())
        if single and (len(files) != 1 or not files[0].is_file()):
            raise ClusterError(f"the cluster was asked for one file, and sent {len(files)}")
        if run is None:
            (files[0] if single else made).rename(target)
            return
        copied.fetched_from(made, *run)
        place(made, target)


def _odd(entry: zipfile.ZipInfo, only: Collection[str] | None) -> bool:
    """Whether an entry is none that `pack` makes."""
    name = entry.filename
    path = Path(name)
    leads_out = not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name
    unknown = not name.isprintable() or (only is not None and name not in only)
    return leads_out or unknown or entry.is_dir() or entry.compress_type != zipfile.ZIP_STORED


@contextmanager
def _whole() -> Iterator[None]:
    """Turns what zipfile raises over an archive that is damaged, or was made to do harm, into a ClusterError."""
    try:
        yield
    except (ClusterError, RunError):
        raise
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, OverflowError, struct.error) as error:
        raise _damaged(error) from error
    except OSError as error:
        if error.errno not in NO_NAMES:
            raise  # this host's disk
        raise _damaged(error) from error


def _damaged(error: Exception) -> ClusterError:
    said = (error.strerror or "") if isinstance(error, OSError) else printable(str(error))[:200]
    return ClusterError(f"what the cluster sent is no whole parcel: {said or type(error).__name__}; fetch it again")
