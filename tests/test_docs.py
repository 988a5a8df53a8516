"""Is every command and every snippet of README and docs true? Each is run, or says here why it cannot be."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docs_world
import pytest
import typer
from jsonschema import Draft202012Validator
from program import Program
from served import TOKEN, Served, serving, until
from snippets import ALL, PAGES, ROOT, Block, blocks, links, places, spoken

from benchmarks.minilm import methods
from optimizer import Job, drivers
from optimizer.commands import cli
from optimizer.jobs import demo
from optimizer.jobs.assemble import driver_options
from optimizer.jobs.plain_yaml import read_yaml
from optimizer.jobs.problem import Problem, space_of
from optimizer.jobs.schema import job_schema
from optimizer.service.serving import token_file

LANGUAGES = ("bash", "yaml", "python", "toml", "text")
"""What a block may be; `text` are pictures, which nobody runs, and `toml` is read by tests/test_extending.py."""

NOT_RUN = {
    "make demo": "makes a venv; the command in it, `mergeopt demo`, is run",
    "make test": "makes a venv, and is what runs this",
    "make debian": "installs packages of the system",
    "python3 -m venv .venv": "makes a venv",
    ". .venv/bin/activate": "is of the shell that says it",
    "pip install torch==2.13.0 -c constraints.txt": "installs",
    "pip install -e . -c constraints.txt": "installs",
    "pip install -e '.[demo]' -c constraints.txt": "installs",
    "pip install 'mergeopt[serve]'": "installs",
    "pip install 'mergeopt[tensorboard]'": "installs",
    "pip install optuna-dashboard": "installs",
    "optuna-dashboard sqlite:///optuna.db": "another's server; tests/test_mirror.py reads what it would",
    "tensorboard --logdir runs": "another's server; tests/test_loggers.py reads what it would",
    "mergeopt serve": "serves until it is stopped; tests/test_service.py",
    "mergeopt serve --runs runs": "serves until it is stopped; tests/test_service.py",
    "mergeopt cluster up": "starts a Ray head that outlives the test; tests/test_remote.py",
    "mergeopt cluster down": "of that head; tests/test_remote.py",
    "mergeopt launch job.yaml --address auto --root /shared/me": "needs a cluster; tests/test_remote_cluster.py",
    "mergeopt watch first --address auto": "needs a cluster",
    "mergeopt status first --address auto": "needs a cluster",
    "mergeopt fetch first --address auto": "needs a cluster",
    "mergeopt fetch first report --address auto": "needs a cluster",
    "mergeopt fetch first export --candidate best --address auto --out merged": "needs a cluster",
    "RAY_AUTH_MODE=token ray start --head ...": "Ray's own command, on every machine of a cluster",
    "RAY_AUTH_TOKEN_PATH=~/.ray/their-token mergeopt launch job.yaml --address http://head:8265": "needs a cluster",
    "mergeopt doctor --address http://head:8265": "needs a cluster; tests/test_remote.py",
    "python benchmarks/search.py --problems --problem-from my_surrogate:two_tasks --drivers auto cma": (
        "a benchmark of minutes; tests/test_surrogates.py"
    ),
}
"""Commands that no test can run, whole, and why. Their options are checked all the same."""

MAY_END_WITH = {"mergeopt doctor": (0, 1)}
"""Exit codes beside 0: 1 where something is wrong with the host that this runs on."""

NOT_OPENED = {
    "gsm8k": "the data set is on the hub; tests/test_harness_run.py",
    "law-loss": "no pico base is a classifier and a causal language model at once; tests/test_statistic_methods.py",
}
"""Evaluators whose data or models are not in the docs' world: the job is parsed, and nothing is opened."""

SERVICE = "http://127.0.0.1:8421"
"""Where pages say that a service is. A snippet that speaks to it has one of its own, on a port that is free."""


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return docs_world.texts(tmp_path_factory.mktemp("docs"))


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return docs_world.adapters(tmp_path_factory.mktemp("docs-adapters"))


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """The world that a page speaks of, a copy for each test; what the page makes by itself is not there yet."""

    def made(page: Path) -> Path:
        commands = [command for block in blocks(page) for command in block.commands if block.language == "bash"]
        home = request.getfixturevalue("adapters" if page.name == "adapters.md" else "texts")
        shutil.copytree(home, tmp_path, dirs_exist_ok=True)
        if any(command.startswith("mergeopt init") and "--out" not in command for command in commands):
            (tmp_path / "job.yaml").unlink()
        launched = any(".launch(" in block.text for block in blocks(page) if block.language == "python")
        if launched or any("--name first" in command for command in commands):
            shutil.rmtree(tmp_path / "runs")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(home.parent / "docs-cache"))
        return tmp_path

    return made


def of(language: str) -> Any:
    """The blocks of a language, as cases of a test."""
    found = [block for block in ALL if block.language == language]
    return pytest.mark.parametrize("block", found, ids=[block.name for block in found])


@pytest.mark.parametrize("block", ALL, ids=[block.name for block in ALL])
def test_every_block_says_what_it_is_of_what_is_tested_here(block: Block) -> None:
    assert block.language in LANGUAGES, f"{block.name}: begin it with one of {LANGUAGES}, and see that it is tested"


DOING = [page for page in PAGES if any(block.language in ("bash", "python") for block in blocks(page))]


@pytest.mark.parametrize("page", DOING, ids=[page.name for page in DOING])
def test_commands_and_snippets_do_what_a_page_says_from_its_beginning_to_its_end(
    page: Path, world: Callable[[Path], Path], mergeopt: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    world(page)
    for name in ("BASE_STEPS", "EXPERT_STEPS"):  # the demo's models, hardly trained
        monkeypatch.setattr(demo, name, 2)
    for block in blocks(page):
        if block.language == "bash":
            assert block.commands, f"{block.name}: a block of commands has some"
            for command in block.commands:
                if command not in NOT_RUN:
                    _run(command, mergeopt)
        elif block.language == "python":
            _execute(block)


def _run(command: str, mergeopt: Program) -> None:
    words = shlex.split(command)
    assert words[0] == "mergeopt", f"{command!r} is no command of ours: it cannot be run, and NOT_RUN says why"
    said = mergeopt(*words[1:])
    assert said.code in MAY_END_WITH.get(command, (0,)), f"{command}: {said.err}"
    if words[1] == "demo":  # it ends with what to do next
        advice = [line.partition("#")[0].strip() for line in said.out.partition("next:\n")[2].splitlines()]
        next_ones = [line for line in advice if line.startswith("mergeopt ") and "..." not in line]
        assert len(next_ones) == 2 and "docs/start.md" in advice[-1]
        for one in next_ones:
            _run(one, mergeopt)
    if words[1] == "init":  # a job of fewer candidates, in this process
        job = Path(words[words.index("--out") + 1] if "--out" in words else "job.yaml")
        job.write_text(docs_world.smaller(job.read_text()))


def _execute(block: Block) -> None:
    with _spoken_to(block) as text:
        exec(compile(text, block.name, "exec"), {"__name__": "snippet"})


@contextmanager
def _spoken_to(block: Block) -> Iterator[str]:
    """A snippet's text, and while this is open the service that it names, of the runs of the folder it is run in.

    What it started has ended, and well, when this is over.
    """
    if SERVICE not in block.text:
        yield block.text
        return
    with serving(Path("runs")) as served:
        opens = token_file(urlsplit(served.url).port or 0)
        opens.parent.mkdir(parents=True)
        opens.write_text(TOKEN)
        yield block.text.replace(SERVICE, served.url)
        exports = until(lambda: all_of(served, "exports", "state", {"running"}), "what the snippet exports is written")
        assert exports == {"done"}
        assert all_of(served, "runs", "status") == {"finished"}


def all_of(served: Served, what: str, key: str, unlike: Set[str] = frozenset()) -> Set[str]:
    """What each of the service's runs, or exports, has there; nothing while any is as it should not stay."""
    found = {str(one[key]) for one in served.told(f"/api/{what}")[what]}
    return frozenset() if found & unlike else found


def _command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words mean, and the words that are left for it. Raises KeyError where there is none."""
    found: Any = typer.main.get_command(cli.app)
    while words and hasattr(found, "commands") and not words[0].startswith("-"):
        found, words = found.commands[words[0]], words[1:]
    return found, words


def test_what_is_not_run_is_in_the_docs() -> None:
    there = {command for block in ALL if block.language == "bash" for command in block.commands}
    assert not set(NOT_RUN) - there, "rows of NOT_RUN that no page says any more"


@pytest.mark.parametrize("command", [c for c in NOT_RUN if "mergeopt " in c and not c.startswith("pip")])
def test_what_is_not_run_is_understood(command: str) -> None:
    words = shlex.split(command)
    found, rest = _command(words[words.index("mergeopt") + 1 :])
    found.make_context("mergeopt", rest)  # parses, and calls nothing


def test_targets_of_make_are_there() -> None:
    targets = {line.partition(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if ":" in line}
    said = [c.split()[1] for block in ALL if block.language == "bash" for c in block.commands if c.startswith("make ")]
    assert said and set(said) <= targets


@pytest.mark.parametrize("command", [c for c in NOT_RUN if c.startswith("python ")])
def test_options_of_benchmarks_are_there(command: str) -> None:
    _, script, *options = command.split()
    told = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(option in told for option in options if option.startswith("--"))


def test_the_table_of_methods_is_of_the_cells_that_were_measured() -> None:
    cells = methods.kept(ROOT / "benchmarks" / "minilm" / "methods.jsonl")
    assert "\n".join(methods.table(list(cells.values()))) in (ROOT / "docs" / "methods.md").read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_commands_in_running_text_are_commands(page: Path) -> None:
    for words in spoken(page):
        said = f"{page.name}: mergeopt {' '.join(words)}"
        found, rest = _command(words)
        known = {option for parameter in found.params for option in parameter.opts} | {"--help"}
        assert {word for word in rest if re.match(r"--[a-z]", word)} <= known, said


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for file, place in links(page):
        assert file.exists(), f"{page.name}: {file}"
        assert not place or place in places(file), f"{page.name}: {file.name}#{place}"


def test_every_page_is_in_the_list_of_pages() -> None:
    index = ROOT / "docs" / "README.md"
    assert {page for page in PAGES if page.parent == index.parent} - {index} <= {file for file, _ in links(index)}


@of("yaml")
def test_a_job_or_a_part_of_one_is_a_job(block: Block, world: Callable[[Path], Path]) -> None:
    home = world(ROOT / block.page)
    (home / "part.yaml").write_text(block.text)
    part = read_yaml(home / "part.yaml")
    assert isinstance(part, dict), "a part of a job has its keys, from the top"
    whole = {} if "models" in part and "evaluators" in part else read_yaml(home / "job.yaml")
    data = {**whole, **part}
    schema = Draft202012Validator(job_schema(installed=False))
    assert not [error.message for error in schema.iter_errors(data)]
    job = Job.parse(data, home)
    drivers.find(job.driver.name)
    driver_options(job)
    if not any(e.name in NOT_OPENED for e in job.evaluators):
        space_of(job, Problem.open(job).pool, {})
