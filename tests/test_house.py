"""Does the house keep its own rules? Who may import whom, what is light to import, and what is nowhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("optimizer", "searchspaces", "evaluators")
FILES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))

# path pattern -> what of the project it may import, and what it never imports at all
RULES = [
    (r"evaluators/.*", r"evaluators(\..*)?", r"ray|cma|optuna"),
    (r"searchspaces/.*", r"searchspaces(\..*)?", r"ray|lm_eval|cma|optuna"),
    (r"searchspaces/(errors|domain|option|composition)\.py", r"searchspaces\.errors", r"transformers"),
    (
        r"searchspaces/(methods|algebra)/.*",
        r"searchspaces\.(algebra\..*|algebra|composition|errors|facts|facts\.facts|given|method|option|row)",
        r"transformers|numba",
    ),
    (r"searchspaces/cache/.*", r"searchspaces\.(cache|cache\..*|errors|models(\.shards)?)", r"torch|transformers"),
    (r"optimizer/(driver|volume|wording)\.py", r"(?!)", r"torch|ray"),
    (
        r"optimizer/drivers/.*",
        r"optimizer\.(driver|volume|drivers(\.(shared|walks|gaussian|searches)(\..*)?)?)",
        r"torch|ray",
    ),
    (r"optimizer/drivers/shared/.*", r"optimizer\.(driver|drivers\.shared(\..*)?)", r"torch|ray|optuna|cma"),
    (r"optimizer/drivers/walks/.*", r"optimizer\.(driver|drivers\.(walks|shared)(\..*)?)", r"torch|ray|optuna|cma"),
    (r"optimizer/drivers/gaussian/.*", r"optimizer\.(driver|volume|drivers\.gaussian(\..*)?)", r"torch|ray|optuna|cma"),
    (r"optimizer/drivers/searches/.*", r"optimizer\.(driver|drivers\.(searches|shared)(\..*)?)", r"torch|ray|cma"),
    (
        r"optimizer/record/(?!results).*",
        r"optimizer\.(record(\..*)?|answer|conditions|driver|errors|wording)|evaluators\.(errors|evaluator)",
        r"torch|ray",
    ),
    (
        r"optimizer/searching/.*",
        r"optimizer\.((record|searching)(\..*)?|executors\.executor|answer|conditions|driver|errors|objectives)",
        r"torch|ray|cma|optuna",
    ),
    (r"optimizer/fidelity/.*", r"optimizer\.fidelity(\..*)?", r"torch|ray|cma|optuna"),
    (
        r"optimizer/rungs/.*",
        r"evaluators\.(evaluator|metrics)|optimizer\.((rungs|fidelity)(\..*)?|answer|conditions|driver|objectives|volume"
        r"|record\.(front|paired))",
        r"torch|ray|cma|optuna",
    ),
    (r"optimizer/executors/placement\.py", r"(?!)", r"torch|ray"),
    (r"optimizer/jobs/.*", r"(?!optimizer\.(output|views|service|remote|commands)\b).*", r"(?!)"),
    # what shows a run goes one way: service -> views -> output.plain -> record
    (
        r"optimizer/output/.*",
        r"optimizer\.(?!(views|service|remote|commands)\b).*|evaluators\..*|searchspaces(\..*)?",
        r"ray|fastapi|starlette|plotly",
    ),
    (
        r"optimizer/output/plain\.py",
        r"optimizer\.(record(\..*)?|conditions|driver|errors|output)|evaluators\.evaluator",
        r"torch|ray|rich",
    ),
    (
        r"optimizer/views/.*",
        r"optimizer\.((views|record)(\..*)?|output(\.plain)?|jobs(\.job)?|conditions|driver|errors|objectives|wording)"
        r"|evaluators\.evaluator",
        r"torch|ray|transformers|cma|numba|typer|rich|fastapi|starlette|uvicorn",
    ),
    # the service reads ledgers and starts processes: what searches, and what computes, is theirs
    (
        r"optimizer/service/.*",
        r"optimizer\.((service|views|record|remote)(\..*)?|jobs(\.(job|plain_yaml))?|answer|conditions|driver|errors)"
        r"|optimizer\.(objectives|wording)|evaluators\.evaluator|searchspaces(\.box)?",
        r"torch|ray|transformers|cma|numba|typer",
    ),
    (
        r"optimizer/importing/.*",
        r"optimizer\.(importing(\..*)?|jobs(\.(job|plain_yaml|starter|telling))?|errors|wording)"
        r"|searchspaces(\..*)?|evaluators\.options",
        r"torch|ray|transformers|cma|optuna|yaml",
    ),
    # what is asked from afar needs no models, and what is asked of this host no Ray
    (
        r"optimizer/remote/(?!orders).*",
        r"searchspaces\.errors|optimizer\.(?!run$|commands|executors\.(cluster|fleet|worker)$|searching\.search$).*",
        r"torch|transformers",
    ),
]


def imported(path: Path) -> set[str]:
    """Modules that a file imports, wherever in the file, but for what only a type checker sees."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module.split(".")[0] in ROOMS:
                home = ROOT / node.module.replace(".", "/")
                names = [a.name for a in node.names if (home / a.name).is_dir() or (home / f"{a.name}.py").exists()]
                found.update(f"{node.module}.{name}" for name in names)
    return found


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    for pattern, allowed, never in RULES:
        if not re.fullmatch(pattern, name):
            continue
        own = {m for m in imported(path) if m.split(".")[0] in ROOMS} - set(ROOMS)
        assert not {m for m in own if not re.fullmatch(allowed, m)}
        assert not {m for m in imported(path) if re.fullmatch(never, m.split(".")[0])}


def test_ray_is_imported_where_workers_are_made_and_where_orders_are_sent() -> None:
    found = [str(p.relative_to(ROOT)) for p in FILES if any(m.split(".")[0] == "ray" for m in imported(p))]
    assert found == [
        "optimizer/executors/cluster.py",
        "optimizer/executors/fleet.py",
        "optimizer/executors/ray_session.py",
        "optimizer/remote/jobs.py",
    ]


def test_nothing_pickles_and_yaml_is_read_by_the_strict_loader_alone() -> None:
    for path in FILES:
        names = {m.split(".")[0] for m in imported(path)}
        assert not names & {"pickle", "dill", "cloudpickle", "joblib", "yaml", "shelve", "marshal"}, path
        assert "torch.load(" not in path.read_text(), path


def test_every_file_says_in_its_first_line_which_question_it_answers() -> None:
    for path in FILES:
        first = path.read_text().partition("\n")[0]
        assert first.startswith('"""') and "?" in first, path


def test_scripts_of_the_page_ask_a_question_and_keep_to_120_columns() -> None:
    scripts = sorted((ROOT / "optimizer" / "views" / "page").rglob("*.js"))
    assert len(scripts) > 30
    for path in scripts:
        lines = path.read_text("utf-8").splitlines()
        assert lines[0].startswith("// ") and "?" in lines[0], path
        assert not [line for line in lines if len(line) > 120], path


@pytest.mark.parametrize(
    "module",
    [
        "optimizer",
        "searchspaces",
        "evaluators",
        "optimizer.commands.cli",
        "optimizer.drivers",
        "optimizer.service",
        "optimizer.views",
    ],
)
def test_packages_and_the_command_line_load_nothing_heavy(module: str) -> None:
    heavy = "{'torch', 'ray', 'transformers', 'numba', 'cma', 'optuna', 'pandas', 'datasets', 'plotly'}"
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {heavy}))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_what_is_told_of_methods_and_on_paper_needs_no_compiler() -> None:
    code = (
        "import sys; from optimizer import Job; from optimizer.commands import catalogue;"
        "from optimizer.jobs import checking, paper; from searchspaces import Pool, methods;"
        "[catalogue.method(name) for name in methods.METHODS];"
        "print(sorted(set(sys.modules) & {'numba', 'llvmlite'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and "compiling" not in done.stderr


def test_the_readme_lists_every_file_with_the_question_it_answers() -> None:
    readme = (ROOT / "README.md").read_text()
    for path in FILES:
        if path.name != "__init__.py":
            question = " ".join(path.read_text().partition("?")[0].removeprefix('"""').split()) + "?"
            name = "/".join(path.relative_to(ROOT).parts[1:])
            assert re.search(rf"^  {re.escape(name)} +{re.escape(question)}$", readme, re.MULTILINE), name


def test_private_names_stay_in_their_file() -> None:
    taken = [
        f"{path.relative_to(ROOT)}: {alias.name} of {node.module}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ROOMS
        for alias in node.names
        if alias.name.startswith("_")
    ]
    assert not taken
