"""CITATION.cff says of the package what pyproject.toml says."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("field", "key"), [("title", "name"), ("version", "version"), ("license", "license"), ("abstract", "description")]
)
def test_citation_agrees_with_the_package(field: str, key: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"{field}: {project[key]}" in (ROOT / "CITATION.cff").read_text().splitlines()
