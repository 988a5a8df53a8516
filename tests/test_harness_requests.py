"""Are prompts made once, and made again where anything that they depend on is another?"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from own_task import TASK, own, setting
from pico import base

from evaluators.harness.requests import plain


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("model") / "base", "chat", initializer_range=0.3)


def test_prompts_are_made_once_and_kept_by_content(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.api.task import ConfigurableTask

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made: list[int] = []
    real = ConfigurableTask.construct_requests
    monkeypatch.setattr(
        ConfigurableTask, "construct_requests", lambda self, *a, **k: made.append(1) or real(self, *a, **k)
    )

    def built(**options: Any) -> tuple[int, dict[str, Any]]:
        made.clear()
        one, at = own(tmp_path, **options), setting(model)
        one.prepare(at)
        return len(made), dict(one.score(at.model, one.splits.heldout).measures)

    first = built()
    assert first[0] == 20 and built() == (0, first[1])
    kept = list((tmp_path / "cache").rglob("*.safetensors"))
    assert len(kept) == 1 and not list((tmp_path / "cache").rglob("*.pickle"))
    assert built(system_instruction="Be good.")[0] == 20, "another option is another prompt"
    kept[0].write_bytes(kept[0].read_bytes()[:100])
    assert built() == first, "half a file is made again"
    whole = kept[0].read_bytes()
    kept[0].write_bytes(whole[:-200] + bytes(200))
    assert built() == first, "and so is one with a hole"
    assert built() == (0, first[1])
    kept[0].parent.chmod(0o500)
    try:
        assert built(system_instruction="Be bad.")[0] == 20, "a disk that keeps nothing is no reason to stop"
    finally:
        kept[0].parent.chmod(0o700)


CODE = "def helper(text): return text.upper()\ndef text(doc): return 'say ' + helper(doc['text'])\n"
NAMED = TASK.replace('"{{text}}"', "!function MODULE.text")


@pytest.mark.parametrize("module", ["code", "inner.code"])
def test_another_helper_in_the_user_s_code_is_another_prompt(
    module: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "mine" / f"{module.replace('.', '/')}.py"
    file.parent.mkdir(parents=True)
    items = [{"text": f"Word {i}", "label": 0} for i in range(8)]

    def asked(code: str) -> Any:
        file.write_text(code)
        one = own(tmp_path, items, NAMED.replace("MODULE", module))
        assert file in one.files, "a resumed run must notice it too"
        one.prepare(setting(model))
        return [request.pairs for row in range(8) for request, _ in one.answers(row)]

    first = asked(CODE)
    assert asked(CODE.replace("upper", "lower")) != first
    assert asked(CODE) == first


DRAWS = "import random\nimport numpy as np\nimport torch\ndef text(doc): return f'{doc[\"text\"]} {DRAW}'\n"


@pytest.mark.parametrize(
    ("seed", "draw"),
    [("random", "random.random()"), ("numpy", "np.random.rand()"), ("torch", "torch.rand(1).item()")],
)
def test_another_seed_of_the_task_s_functions_is_another_prompt(
    seed: str, draw: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "code.py").write_text(DRAWS.replace("DRAW", draw))

    def asked(value: int) -> Any:
        one = own(tmp_path, text=NAMED.replace("MODULE", "code"), seeds={seed: value})
        one.prepare(setting(model))
        return [request.pairs for row in range(20) for request, _ in one.answers(row)]

    first = asked(1)
    assert asked(2) != first and asked(1) == first


def test_functions_are_told_by_name_and_by_what_they_are_bound_to() -> None:
    """`functools.partial` prints with an address: MMLU-Pro's prompts are made by one."""
    bound = [functools.partial(sorted, key=key) for key in (len, str, len)]
    assert plain(bound[0])[0] == "builtins.sorted" and not any("0x" in str(plain(one)[0]) for one in bound)
    names = [[plain(one)[0], {k: plain(v) for k, v in plain(one)[2].items()}] for one in bound]
    assert names[0] == names[2] != names[1]
    assert plain(functools.partial(sorted, "a")) != plain(functools.partial(sorted, "b"))
    assert plain({"b", "a"}) == plain({"a", "b"})


def test_a_bound_function_s_prompts_are_kept_by_another_process_too(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "mine").mkdir()
    code = (
        "from functools import partial\ndef say(doc, word): return doc['text'] + word\ntext = partial(say, word='x')\n"
    )
    for _ in range(2):  # a module that was written again is read again: the partial lies elsewhere in memory
        (tmp_path / "mine" / "code.py").write_text(code)
        own(tmp_path, text=NAMED.replace("MODULE", "code")).prepare(setting(model))
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1
