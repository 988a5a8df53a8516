"""Which folder is a run's, and which does a name mean?"""

from __future__ import annotations

from pathlib import Path

from optimizer.errors import RunError

LEDGER, SPOOL = "ledger.db", "spool.jsonl"
ELSEWHERE = ".json"  # ending of the note beside a ledger's path that says which server keeps it


def found(ledger: Path) -> bool:
    """Whether there is a ledger: the file itself, or beside it the note of the server that keeps it."""
    return ledger.is_file() or ledger.with_suffix(ELSEWHERE).is_file()


def run_folder(name: str, runs: Path) -> Path:
    """The folder that a run's name or folder means: itself where it is one, else that of this name under `runs`."""
    folder = Path(name)
    return (folder if found(folder / LEDGER) else runs / name).absolute()


def runs_in(home: Path) -> list[str]:
    """The names of the runs that a folder holds; none where it cannot be read."""
    try:
        return sorted(path.name for path in home.glob("*") if found(path / LEDGER))
    except OSError:
        return []


def there(folder: Path) -> None:
    """Raises RunError where the folder is none of a run."""
    if not found(folder / LEDGER):
        raise RunError(f"no run at {folder}; name a run, or its folder")
