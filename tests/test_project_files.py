"""What the files around the package say of it: versions, checks, and commands that are there."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_the_changes_begin_with_the_version_of_the_package() -> None:
    newest = re.search(r"^## (\S+?),", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == PROJECT["version"]


def test_the_public_tests_run_every_python_that_is_announced_and_the_lowest_torch() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text("utf-8"))
    matrix = workflow["jobs"]["versions"]["strategy"]["matrix"]
    announced = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert matrix["python"] == announced
    lowest = {line.partition(">=")[0]: line.partition(">=")[2] for line in PROJECT["dependencies"]}
    packages = matrix["torch"][0]["packages"].split()
    assert packages == [f"{name}=={lowest[name]}.*" for name in ("torch", "torchvision")]
    assert any(step.get("run") == ".ci/run" for step in workflow["jobs"]["check"]["steps"])


def test_what_is_checked_before_a_commit_is_what_is_checked_after_it() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]["hooks"]
    checks = [line.removesuffix(" .") for line in (ROOT / ".ci/run").read_text("utf-8").splitlines()]
    for hook in hooks:
        assert hook["entry"].replace(" --no-sync", "") in checks


def test_publishing_needs_no_password() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/publish.yml").read_text("utf-8"))["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets" not in (ROOT / ".github/workflows/publish.yml").read_text("utf-8")


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_files_that_are_linked_are_there(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text("utf-8")):
        assert (ROOT / target).is_file(), target
