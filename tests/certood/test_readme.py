"""The README keeps what it promises: its commands exist, its Python runs."""

import re
from pathlib import Path

import pytest

from certood.cli import COMMANDS
from certood.train.loop import fit
from certood.train.recipe import known_keys, load_recipe, recipe_names

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")


def test_commands_recipes_and_keys_exist() -> None:
    assert {name for name in re.findall(r"certood ([a-z]+)", README) if name in ("train", "evaluate", "data")} <= set(
        COMMANDS
    )
    for name in re.findall(r"`((?:digits|mnist|cifar10)-[a-z-]+)`", README):
        assert name in recipe_names() or name.startswith("digits-near"), name
    for key in re.findall(r'--set "?([a-z_]+\.[a-z_]+)=', README):
        assert key in known_keys(), key


def test_no_placeholder_is_left() -> None:
    assert not re.search(r"^(SPEED|RESULTS|TODO)", README, re.MULTILINE)


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(load_recipe("digits-greg-plus", ["training.epochs=1", "run.device=cpu"]), progress=False)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict[str, object] = {}
    exec(code, scope)
    found = scope["found"]
    assert (found.lower <= found.upper).all()  # type: ignore[attr-defined]
