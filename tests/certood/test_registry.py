"""Families of parts by name: members of other packages are found, imported late, and named when at fault."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from certood.errors import CertoodError
from certood.registry import Registry


@dataclass(frozen=True)
class Square:
    """A member that is built in."""

    side: float = 1.0


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[Square]:
    """A family with two packages installed that declare members of it."""
    entries = {
        "round-shapes": "circle = round_shapes:Circle\nfunction = round_shapes:circle\nbroken = round_shapes_broken:Circle",
        "more-shapes": "square = more_shapes:Square\ncircle = more_shapes:Circle\nsole = round_shapes:Circle",
    }
    for package, declared in entries.items():
        folder = tmp_path / f"{package.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[certood.shapes]\n{declared}\n")
    (tmp_path / "round_shapes.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Circle:\n    radius: float = 2.0\ndef circle():\n    pass\n"
    )
    (tmp_path / "round_shapes_broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    return Registry("shape", "certood.shapes", {"square": Square})


def test_names_come_without_imports(shapes: Registry[Square]) -> None:
    sys.modules.pop("round_shapes", None)
    assert shapes.names() == ["square", "broken", "circle", "function", "sole"]
    assert "round_shapes" not in sys.modules


def test_a_member_of_another_package_is_imported_when_asked_for(shapes: Registry[Square]) -> None:
    assert shapes.find("sole")().radius == 2.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sqare", r"unknown shape 'sqare'; did you mean 'square'\? Known: square, broken, circle"),
        ("circle", "round_shapes:Circle.* both declare a shape 'circle'; uninstall one"),
        ("square", "more-shapes .*declares a shape 'square', which certood has itself"),
        (
            "broken",
            "'broken' of round-shapes .* cannot be imported .ModuleNotFoundError: .*a_package_that_is_not_there",
        ),
        ("function", "'function' of round-shapes .* must be a dataclass"),
    ],
)
def test_what_is_wrong_with_a_member_is_named(shapes: Registry[Square], name: str, message: str) -> None:
    with pytest.raises(CertoodError, match=message):
        shapes.find(name)
    assert list(shapes.importable()) == ["sole"]


def test_members_may_be_added_for_this_process(shapes: Registry[Square]) -> None:
    shapes.register("large", Square)
    assert shapes.find("large") is Square
    for taken in ("large", "square", "sole"):
        with pytest.raises(CertoodError, match=f"there is a shape '{taken}' already"):
            shapes.register(taken, Square)
    with pytest.raises(CertoodError, match="must be a dataclass"):
        shapes.register("number", int)  # type: ignore[arg-type]
    shapes.unregister("large")
    assert "large" not in shapes.names()
