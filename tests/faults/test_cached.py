"""Is what is made once on a host kept, or made again, whatever is killed, cut short or flipped on the way?"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from optimizer.training.sums import Work, worked_once
from searchspaces.cache.once import cache
from searchspaces.errors import CacheError, CacheFull, RecipeError
from searchspaces.facts.known_facts import KnownFacts
from searchspaces.facts.process import processed
from searchspaces.models import headers, shards
from searchspaces.models.pool import Pool


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


NAMES = ["a", "b"]
TORN = """
import os, sys, torch
from pathlib import Path
from optimizer.training.sums import Work, worked_once

def make(work, partial):
    work = Work(work, ["a", "b"])
    while (names := work.next(lambda left: left[:1])) is not None:
        work.finish({names[0]: (2,)}, [(names[0], torch.ones(2))])
    work.give(partial)

event, at, times = sys.argv[2], sys.argv[3], [None] * int(sys.argv[4])

def die(happens, args):
    if happens == event and any(at in str(arg) for arg in args):
        times.pop()
        if not times:
            os.kill(os.getpid(), 9)

sys.addaudithook(die)
worked_once(Path(sys.argv[1]), "the statistics", make)
"""


def gathered(passes: list[str]) -> Path:
    """Statistics of two passes; adds to `passes` what is done for them."""
    home = cache("statistics") / ("a" * 32)

    def make(folder: Path, partial: Path) -> None:
        work = Work(folder, NAMES)
        while (names := work.next(lambda left: left[:1])) is not None:
            passes.extend(names)
            work.finish({names[0]: (2,)}, [(names[0], torch.ones(2))])
        work.give(partial)

    worked_once(home, "the statistics", make)
    found = {name: tensor for file in home.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert sorted(found) == NAMES and all(bool((tensor == 1).all()) for tensor in found.values())
    assert [path.name for path in home.parent.iterdir() if path.suffix != ".lock"] == [home.name]
    return home


@pytest.mark.parametrize(
    ("event", "at", "times", "again"),
    [
        ("open", "model-00001", 1, ["b"]),
        ("os.link", "model-00000", 1, []),
        ("os.link", "model-00001", 1, []),
        ("open", ".partial/files.json", 1, []),
        ("os.rename", ".partial", 2, []),  # the first clears the place
        ("shutil.rmtree", ".work", 2, []),
    ],
)
def test_statistics_that_were_gathered_outlive_a_kill_at_the_end(
    event: str, at: str, times: int, again: list[str]
) -> None:
    home = cache("statistics") / ("a" * 32)
    command = [sys.executable, "-c", TORN, str(home), event, at, str(times)]
    killed = subprocess.run(command, env=dict(os.environ), check=False)
    assert killed.returncode == -signal.SIGKILL
    passes: list[str] = []
    gathered(passes)
    assert passes == again


def test_statistics_that_were_gathered_outlive_a_full_disk_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        if path.name == "files.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    write, passes = shards.write_text, list[str]()
    with monkeypatch.context() as patch, pytest.raises(CacheFull, match="the statistics cannot be written"):
        patch.setattr(shards, "write_text", full)
        gathered(passes)
    gathered(passes)
    assert passes == NAMES


def test_a_disk_without_links_has_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    gathered([])


@pytest.mark.parametrize("fault", ["cut", "gone", "flipped"])
@pytest.mark.parametrize(("number", "left"), [(0, ["a", "b"]), (1, ["b"])])
def test_a_pass_whose_file_is_not_whole_is_not_done(tmp_path: Path, fault: str, number: int, left: list[str]) -> None:
    work = Work(tmp_path / "work", NAMES)
    while (names := work.next(lambda left: left[:1])) is not None:
        work.finish({names[0]: (2,)}, [(names[0], torch.ones(2))])
    file = work.folder / f"model-{number:05d}.safetensors"
    if fault == "cut":
        os.truncate(file, file.stat().st_size - 1)
    elif fault == "flipped":
        kept = bytearray(file.read_bytes())
        kept[-1] ^= 64
        file.write_bytes(kept)
    else:
        file.unlink()
    assert work.left == [] and Work(work.folder, NAMES).left == left


def pool_of(folder: Path, tensors: int = 1, shape: tuple[int, ...] = (20, 30)) -> Pool:
    stream = torch.Generator().manual_seed(1)
    base = {f"layers.{i}.w": torch.randn(shape, generator=stream) for i in range(tensors)}
    models = {"base": base}
    models |= {f"e{k}": {n: t + torch.randn(shape, generator=stream) for n, t in base.items()} for k in range(2)}
    for name, found in models.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
        save_file(found, folder / name / "model.safetensors")
    return Pool.open(folder / "base", {name: folder / name for name in models if name != "base"})


def test_more_arrays_than_a_file_may_have_are_kept_in_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(tmp_path, 7)
    monkeypatch.setattr(shards, "MOST", 10)
    monkeypatch.setattr(headers, "MAX_TENSORS", 10)
    facts = KnownFacts(pool)
    for info in pool.merged:
        tau = (pool.experts["e1"].tensor(info.name) - pool.base.tensor(info.name)).abs()
        assert facts.of(info.name).magnitude(1, 1) == tau.max()
        assert facts.of(info.name).spread(0.5)[0] > 0
    once = processed(pool, "ties_once", {"density": 1.0})
    assert len(once.experts["e0"].files) == 2
    again = processed(pool, "ties_once", {"density": 1.0})
    for info in pool.merged:
        assert torch.equal(once.experts["e1"].tensor(info.name), again.experts["e1"].tensor(info.name))


def test_a_flipped_bit_of_a_table_changes_no_answer(tmp_path: Path) -> None:
    pool = pool_of(tmp_path)

    def ask() -> list[float]:
        facts = KnownFacts(pool).of("layers.0.w")
        return [facts.magnitude(0, rank) for rank in range(1, facts.size + 1)]

    wanted = ask()
    (file,) = (f for home in cache("magnitudes").iterdir() for f in home.glob("*.safetensors"))
    for at in (1, 12, -8):
        damaged = bytearray(file.read_bytes())
        damaged[at] ^= 64
        file.write_bytes(damaged)
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1_000_000))  # clocks of disks may be coarse
        assert ask() == wanted


def test_what_cannot_be_read_of_the_cache_names_the_folder_to_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of(tmp_path)
    KnownFacts(pool).of("layers.0.w").magnitude(0, 1)
    processed(pool, "ties_once", {"density": 0.5})
    homes = {kind: next(h for h in cache(kind).iterdir() if h.is_dir()) for kind in ("magnitudes", "processed")}
    for home in homes.values():
        (file,) = home.glob("*.safetensors")
        file.write_bytes(b"x" * file.stat().st_size)
    # as where it is damaged between the look at it and the reading
    monkeypatch.setattr("searchspaces.cache.once.whole", lambda home, tell=False: True)
    for ask, home in (
        (lambda: KnownFacts(pool).of("layers.0.w").magnitude(0, 1), homes["magnitudes"]),
        (lambda: processed(pool, "ties_once", {"density": 0.5}), homes["processed"]),
    ):
        with pytest.raises(CacheError, match=rf"its header .*; remove the folder {home}, and it is made again"):
            ask()


def test_a_recipe_that_lacks_a_models_hash_is_refused_by_name(tmp_path: Path) -> None:
    pool = pool_of(tmp_path)
    with pytest.raises(RecipeError, match="no content hash of 'e1', only of base, e0; a recipe's are those of base"):
        KnownFacts(pool, {"base": "x", "e0": "y"}).of("layers.0.w").spread(0.5)
