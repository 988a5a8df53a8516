"""Is what was made once kept within its limit, whole, and there while it is used? The user's cache."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
import worlds

from optimizer import Job, Run
from searchspaces.cache import holds, limit
from searchspaces.cache.once import cache, made_once, writable
from searchspaces.errors import CacheError, CacheFull, PoolError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MERGEOPT_CACHE_GB", raising=False)
    return tmp_path / "cache"


def home_of(name: str, kind: str = "things") -> Path:
    return cache(kind) / sha256(name.encode()).hexdigest()[:32]


def make(name: str, size: int = 1000) -> Path:
    home = home_of(name)
    made_once(home, "the things", size, lambda folder: void((folder / "data").write_bytes(name.encode() * size)))
    return home


def void(_: object) -> None:
    pass


PREAMBLE = """
import sys, time
from hashlib import sha256
from searchspaces.cache.once import cache, made_once, writable
def home_of(name): return cache("things") / sha256(name.encode()).hexdigest()[:32]
def fill(folder):
    (folder / "data").write_bytes(b"a" * 1000)
"""


def start(code: str) -> subprocess.Popen[str]:
    """A process of its own, with `fill` and `home_of`."""
    return subprocess.Popen([sys.executable, "-c", PREAMBLE + code], stdin=-1, stdout=-1, stderr=-1, text=True)


@pytest.fixture
def user() -> Iterator[subprocess.Popen[str]]:
    """Another process that uses `a` until its standard input ends."""
    process = start("made_once(home_of('a'), 'things', 0, fill); print('in use', flush=True); sys.stdin.read()")
    assert process.stdout is not None and process.stdout.readline() == "in use\n"
    yield process
    process.communicate()


def aged(*homes: Path) -> None:
    """Make them used long ago, the first first."""
    for i, home in enumerate(homes):
        os.utime(home, (1000 + i, 1000 + i))


def test_the_least_recently_used_leaves_first(monkeypatch: pytest.MonkeyPatch) -> None:
    homes = [make(n) for n in "abc"]
    holds.release()
    aged(homes[1], homes[2], homes[0])
    monkeypatch.setenv("MERGEOPT_CACHE_GB", "3.3e-6")
    new = make("d")
    assert [h.is_dir() for h in homes] == [True, False, True] and new.is_dir()
    holds.release()
    make("c")  # use counts, not only making
    holds.release()
    make("e")
    assert [h.is_dir() for h in homes] == [False, False, True] and new.is_dir()


def test_what_this_process_has_made_stays_whatever_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEOPT_CACHE_GB", "0")
    homes = [make(n) for n in "abc"]
    assert all(h.is_dir() for h in homes)
    holds.release()
    last = make("d")
    assert not any(h.is_dir() for h in homes) and last.is_dir()


def test_what_another_process_uses_stays_until_it_ends(
    user: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEOPT_CACHE_GB", "0")
    make("b")
    assert home_of("a").is_dir() and not limit.discard(home_of("a"))
    user.send_signal(signal.SIGKILL)
    user.wait()
    make("c")
    assert not home_of("a").is_dir()


def test_a_full_disk_is_a_reason_to_remove_unless_it_would_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    old = make("a", 5000)
    holds.release()

    total = 10**9
    monkeypatch.setattr("shutil.disk_usage", lambda path: DiskUsage(total, 0, 6000 - (5000 if old.is_dir() else 0)))
    with pytest.raises(PoolError, match=r"free, the things need"):
        make("b", 7000)
    assert old.is_dir()
    assert make("c", 2000).is_dir() and not old.is_dir()


class DiskUsage:
    """As `shutil.disk_usage` gives it."""

    def __init__(self, total: int, used: int, free: int) -> None:
        self.total, self.used, self.free = total, used, free


def test_the_limit_is_a_quarter_of_the_disk_100_gb_or_what_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: DiskUsage(10**11, 0, 0))
    assert limit.limit() == 25 * 10**9
    monkeypatch.setattr("shutil.disk_usage", lambda path: DiskUsage(10**13, 0, 0))
    assert limit.limit() == 10**11
    monkeypatch.setenv("MERGEOPT_CACHE_GB", "1.5")
    assert limit.limit() == 1_500_000_000
    for wrong in ("much", "-1", "nan", "inf", "1e300"):
        monkeypatch.setenv("MERGEOPT_CACHE_GB", wrong)
        with pytest.raises(PoolError, match="expected how many gigabytes"):
            make("a")


def test_a_path_that_no_folder_can_have_is_an_empty_cache_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/tmp/" + "a" * 300)
    assert limit.limit() > 0 and limit.sizes() == limit.clear() == {}
    with pytest.raises(CacheError, match=r"cannot be written to.* set XDG_CACHE_HOME"):
        make("a")
    with pytest.raises(CacheError, match=r"cannot be written to.* set XDG_CACHE_HOME"):
        writable("things")


@pytest.mark.parametrize("said", ["here", "./here", "~/here", ""])
def test_a_path_that_is_not_absolute_is_as_if_none_were_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", said)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make("a").is_relative_to(tmp_path / ".cache" / "mergeopt" / "things")


def test_other_files_of_the_cache_are_not_touched(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEOPT_CACHE_GB", "0")
    others = [own_cache / "mergeopt" / "hashes.json", own_cache / "mergeopt" / "harness" / "requests" / "x"]
    for other in others:
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_text("kept")
    make("a")
    holds.release()
    make("b")
    assert not home_of("a").is_dir() and all(o.read_text() == "kept" for o in others)


ODD = (
    '{"data": 10', "[]", "null", "{}", '{"data": 1000}', '{"data": [1000]}', '{"data": ["1000", ""]}', "[" * 100_000,
    '{"\\u0000": [1000, ""]}', '{"other/data": [1000, ""]}', '{"data": [1000, "00"]}',
)  # fmt: skip


@pytest.mark.parametrize("damage", ["cut", "file", "list", "folder", *ODD])
def test_what_is_damaged_or_removed_by_hand_is_made_again(damage: str) -> None:
    home = make("a")
    if damage == "cut":
        os.truncate(home / "data", 999)
    elif damage == "file":
        (home / "data").unlink()
    elif damage == "list":
        (home / "files.json").unlink()
    elif damage in ODD:
        (home / "files.json").write_text(damage)
    else:
        for file in home.iterdir():
            file.unlink()
        home.rmdir()
    assert make("a") == home and (home / "data").read_bytes() == b"a" * 1000
    made_once(home, "things", 0, lambda folder: pytest.fail("whole, and made again"))


def test_a_flipped_bit_is_seen_when_a_process_first_asks_and_made_again(caplog: pytest.LogCaptureFixture) -> None:
    home = make("a")
    stamps = (home / "data").stat()
    with (home / "data").open("r+b") as stream:
        stream.seek(500)
        stream.write(b"b")
    os.utime(home / "data", ns=(stamps.st_atime_ns, stamps.st_mtime_ns))  # no time tells of a disk's fault
    process = start("""
import logging
logging.basicConfig()
made_once(home_of("a"), "things", 0, fill)
assert (home_of("a") / "data").read_bytes() == b"a" * 1000
made_once(home_of("a"), "things", 0, lambda folder: sys.exit("made twice"))
""")
    _, said = process.communicate()
    assert process.returncode == 0 and f"{home / 'data'} is not as it was written, and made again" in said
    with (home / "data").open("r+b") as stream:
        stream.write(b"b")
    assert make("a") == home and (home / "data").read_bytes() == b"a" * 1000
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_mapped_files_stay_readable_when_their_folder_is_made_again() -> None:
    home = make("a")
    with (home / "data").open("rb") as stream:
        (home / "files.json").unlink()
        make("a")
        assert stream.read() == b"a" * 1000


def test_processes_that_start_together_make_it_once(tmp_path: Path) -> None:
    code = f"""
def slowly(folder):
    open({str(tmp_path / "made")!r}, "a").write("x")
    time.sleep(0.3)
    fill(folder)
made_once(home_of("a"), "things", 0, slowly)
assert (home_of("a") / "data").read_bytes() == b"a" * 1000
"""
    processes = [start(code) for _ in range(3)]
    said = [p.communicate()[1] for p in processes]
    assert [p.returncode for p in processes] == [0] * 3, said
    assert (tmp_path / "made").read_text() == "x"


def test_what_a_killed_process_left_behind_is_not_read_and_leaves() -> None:
    process = start("""
def never(folder):
    fill(folder)
    print("making", flush=True)
    time.sleep(100)
made_once(home_of("a"), "things", 0, never)
""")
    assert process.stdout is not None and process.stdout.readline() == "making\n"
    torn = cache("things") / f".{home_of('a').name}.partial"
    make("b")  # while it is being made
    assert torn.is_dir() and not home_of("a").is_dir()
    process.kill()
    process.communicate()
    make("c")
    assert not torn.exists() and not home_of("a").is_dir()
    assert (make("a") / "data").stat().st_size == 1000


def test_processes_that_use_and_remove_at_once_never_miss_a_file() -> None:
    """Each holds what it asked for while the limit of 0 makes every other one remove whatever nobody holds."""
    code = """
import os, random
os.environ["MERGEOPT_CACHE_GB"] = "0"
random.seed(int(sys.argv[1]) if len(sys.argv) > 1 else os.getpid())
from searchspaces.cache import holds
for _ in range(60):
    name = random.choice("abcd")
    made_once(home_of(name), "things", 0, fill)
    assert (home_of(name) / "data").read_bytes() == b"a" * 1000
    time.sleep(random.random() / 200)
    assert (home_of(name) / "data").read_bytes() == b"a" * 1000
    holds.release()
"""
    processes = [start(code) for _ in range(3)]
    deadline = time.monotonic() + 120
    said = [p.communicate(timeout=max(1.0, deadline - time.monotonic()))[1] for p in processes]
    assert [p.returncode for p in processes] == [0] * 3, said


def test_a_forked_child_neither_has_nor_ends_its_parents_holds() -> None:
    process = start("""
import os
made_once(home_of("a"), "things", 0, fill)
child = os.fork()
if child:
    os.waitpid(child, 0)
    print("in use", flush=True)
    sys.stdin.read()
""")
    assert process.stdout is not None and process.stdout.readline() == "in use\n"
    assert not limit.discard(home_of("a"))
    process.communicate()
    assert limit.discard(home_of("a")) and not home_of("a").is_dir()


def test_a_child_holds_what_it_uses_itself() -> None:
    process = start("""
import os
made_once(home_of("a"), "things", 0, fill)
if not os.fork():
    made_once(home_of("a"), "things", 0, fill)
    print("in use", flush=True)
    sys.stdin.read()
""")
    assert process.stdout is not None and process.stdout.readline() == "in use\n"
    process.wait()
    assert not limit.discard(home_of("a"))
    process.communicate()


def test_making_one_may_need_another(own_cache: Path) -> None:
    def outer(folder: Path) -> None:
        (folder / "data").write_bytes((make("inner") / "data").read_bytes())

    home = home_of("outer")
    made_once(home, "the things", 0, outer)
    assert (home / "data").read_bytes() == b"inner" * 1000


def test_threads_that_ask_at_once_have_it_made_once() -> None:
    made: list[Path] = []

    def slowly(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.1)
        (folder / "data").write_text("x")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda name: made_once(home_of(name), "things", 0, slowly), "abab"))
    assert len(made) == 2 and all((home_of(n) / "data").read_text() == "x" for n in "ab")


def test_what_is_larger_than_the_limit_alone_removes_nothing_for_its_sake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEOPT_CACHE_GB", "0.000005")
    old = make("a")
    holds.release()
    assert make("b", 7000).is_dir() and old.is_dir()
    assert make("c", 4500).is_dir() and not old.is_dir()


@pytest.mark.parametrize(("number", "kind", "code"), [(errno.ENOSPC, CacheFull, 74), (errno.EROFS, CacheError, 2)])
def test_a_disk_that_does_not_take_it_is_the_hosts_fault(number: int, kind: type[CacheError], code: int) -> None:
    def full(folder: Path) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(kind, match=r"the things cannot be written to .*; make room there, or set XDG") as refused:
        made_once(home_of("a"), "the things", 0, full)
    assert refused.value.exit_code == code


def test_a_cache_that_cannot_be_written_ends_a_run_and_fails_no_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = worlds.classification(tmp_path, evaluations=6)
    path.write_text(path.read_text().replace("{granularity: layer}", "{method: [task_arithmetic, tsv_m]}"))
    job = Job.load(path)
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", "/dev/null/x")
        with pytest.raises(CacheError, match=r"the cache /dev/null/x/mergeopt/\w+ cannot be written to"):
            Run.create(job, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    run = Run.create(job, tmp_path / "runs")
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", "/dev/null/x")
        with pytest.raises(CacheError, match="cannot be written to"):
            run.search()
    assert not run.results().failures
    run.search()
    results = run.results()
    assert len(results.scored) == 6 and not results.failures
    assert {results.recipe(c).method for c in results.scored} == {"task_arithmetic", "tsv_m"}
