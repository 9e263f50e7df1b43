"""The pages of docs/: their Python runs, and the reference of the command line is what the commands say."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

import certood
from certood.analysis.bounds.decompositions import DECOMPOSITIONS
from certood.analysis.bounds.translation import TRANSLATORS
from certood.analysis.evidence.registry import EVIDENCE
from certood.scores import SCORES
from certood.train.objectives import OBJECTIVES
from certood.train.samplers import SAMPLERS

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
# Pages that are made from the code, and pages of words and tables, hold no examples; those of your-own.md need a run, which
# test_readme.py makes.
WITHOUT = (
    "api.md",
    "benchmarks.md",
    "cli.md",
    "commands.md",
    "concepts.md",
    "measured.md",
    "tools.md",
    "training.md",
    "your-own.md",
)
# Pages whose examples take seconds.
LONG = ("adding-an-evidence.md", "adding-an-operation.md", "guards.md", "index.md", "onnx.md", "studies.md")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page.name, marks=pytest.mark.slow) if page.name in LONG else page.name
        for page in PAGES
        if page.name not in WITHOUT
    ],
)
def test_the_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # What an example registers is gone after it.
    evidence = list(EVIDENCE)
    known = TRANSLATORS.keys() | DECOMPOSITIONS.keys()
    families = {family: family.names() for family in (SAMPLERS, OBJECTIVES, SCORES)}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text("utf-8"), re.DOTALL)
    assert blocks
    try:
        namespace = {"__name__": page}
        for block in blocks:
            exec(compile(block, page, "exec"), namespace)
    finally:
        EVIDENCE[:] = evidence
        for registry in (TRANSLATORS, DECOMPOSITIONS):
            for name in set(registry) - known:
                del registry[name]
        for family, names in families.items():
            for name in set(family.names()) - set(names):
                family.unregister(name)


def test_the_reference_of_the_command_line_is_up_to_date() -> None:
    specification = importlib.util.spec_from_file_location("generate_cli", ROOT / "docs" / "generate_cli.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert module.PAGE.read_text("utf-8") == module.reference(), "run: python docs/generate_cli.py"


def test_the_site_has_every_page_and_the_reference_every_name(tmp_path: Path) -> None:
    site = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert sorted(re.findall(r": ([\w-]+\.md)$", site, re.MULTILINE)) == [page.name for page in PAGES]
    described = re.findall(r"^::: (\S+)\.(\w+)$", (ROOT / "docs" / "api.md").read_text("utf-8"), re.MULTILINE)
    for module, name in described:
        assert getattr(importlib.import_module(module), name).__doc__, (module, name)
    assert {name for name in certood.__all__ if callable(getattr(certood, name))} <= {name for _, name in described}


def test_files_that_the_pages_name_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:analysis|train|certood|tests|docs)/[\w/]+\.(?:py|md))`", page.read_text("utf-8")):
            assert (ROOT / name).is_file(), (page.name, name)
