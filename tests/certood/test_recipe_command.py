"""`certood recipe`: what is listed, shown, described and written is what training reads."""

import re
import subprocess
import sys
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from certood.cli import main
from certood.train.recipe import known_keys, load_recipe, sections
from certood.train.recipe_keys import described_tables
from certood.train.recipes import recipe_names, recipe_text, recipe_title
from certood.train.sections import FamilySection


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("arguments", [("recipe", "list"), ("train", "--list")])
def test_every_recipe_is_listed_on_a_line_of_80_columns(arguments: tuple[str, ...]) -> None:
    lines = run(*arguments).stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    listed = {line.split()[0]: line.split()[1:] for line in lines[1:] if line.startswith("  ")}
    assert list(listed) == sorted(recipe_names(), key=lambda name: (load_recipe(name).data.id, name))
    for name, (epochs, *words) in listed.items():
        assert int(epochs) == load_recipe(name).training.epochs
        assert " ".join(words) == recipe_title(recipe_text(name)) != ""


def test_listing_and_showing_need_no_torch() -> None:
    code = (
        "import sys\nfrom certood.cli import main\n"
        "for line in ('recipe list', 'recipe show digits-ce', 'train --list', 'recipe --help'):\n"
        "    main(line.split(), standalone_mode=False)\n"
        "assert 'torch' not in sys.modules and 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_what_is_shown_is_the_recipe() -> None:
    assert run("recipe", "show", "digits-greg").stdout == recipe_text("digits-greg")
    Path("whole.toml").write_text(run("recipe", "show", "digits-greg", "--all").stdout, "utf-8")
    assert load_recipe("whole.toml") == load_recipe("digits-greg")
    assert tomllib.loads(Path("whole.toml").read_text("utf-8"))["sampler"]["candidates"] == 6


def test_the_keys_that_are_described_are_those_that_are_known() -> None:
    tables = described_tables()
    assert list(tables) == ["", *sections()]
    described = [key for _, keys in tables.values() for key in keys]
    assert {key.name for key in described} == set(known_keys())
    assert all(key.meaning.endswith(".") for key in described)


def test_defaults_and_ranges_are_those_that_are_checked() -> None:
    described = {(key.name, key.of): key for _, keys in described_tables().values() for key in keys}
    assert described["training.epochs", ""].default == "20"
    assert described["training.epochs", ""].range == "whole number ≥ 1"
    assert described["run.precision", ""].range == "one of auto, 32-true, bf16-mixed, 16-mixed"
    assert described["data.id", ""].range == "text, required"
    assert described["data.size", ""].range == "whole number ≥ 4, absent by default"
    assert described["guard.input_shape", ""].range == "list of 3: whole number, absent by default"
    assert described["sampler.band", "sampler.name diverse"].range == "number > 0, ≤ 1"
    assert described["objective.margin_in", "objective.name energy"].default == "-23.0"
    for name, section in sections().items():
        if not issubclass(section, FamilySection):
            continue
        for chooser, family in section.families.items():
            assert described[f"{name}.{chooser}", ""].range == f"one of {', '.join(family.names())}"
            for member_name, member in family.importable().items():
                for field in fields(member):
                    own = [
                        key
                        for (key_name, of), key in described.items()
                        if key_name == f"{name}.{field.name}"
                        and of.startswith(f"{name}.{chooser} ")
                        and member_name in of.removeprefix(f"{name}.{chooser} ").split(" or ")
                    ]
                    assert len(own) == 1, (name, field.name, member_name)
                    if field.default not in (MISSING, None) and isinstance(field.default, float | int):
                        assert tomllib.loads(f"value = {own[0].default}")["value"] == field.default


def test_set_help_prints_the_keys_and_trains_nothing(here: Path) -> None:
    help_of_set = run("train", "digits-ce", "--set", "help")
    assert help_of_set.exit_code == 0
    assert help_of_set.stdout == run("recipe", "keys").stdout
    assert "  training.epochs = 20\n      whole number ≥ 1. Passes over the ID training images.\n" in help_of_set.stdout
    assert list(here.iterdir()) == []


def test_the_keys_of_one_table() -> None:
    shown = run("recipe", "keys", "training").stdout
    assert set(re.findall(r"^  (\S+)", shown, re.MULTILINE)) == {
        key for key in known_keys() if key.startswith("training.")
    }
    wrong = run("recipe", "keys", "trainin")
    assert wrong.exit_code == 2
    assert "unknown recipe table 'trainin'" in wrong.stderr


def test_a_new_recipe_trains_into_a_folder_of_its_own() -> None:
    made = run("recipe", "new", "mine", "--from", "digits-greg")
    assert made.exit_code == 0
    assert "certood train mine.toml" in made.stdout
    assert Path("mine.toml").read_text("utf-8") == recipe_text("digits-greg")
    Path("named.toml").write_text('recipe = "theirs"  # a name\n' + recipe_text("digits-greg"), "utf-8")
    run("recipe", "new", "own.toml", "--from", "named.toml")
    assert load_recipe("own.toml").recipe == "own"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("there", "--from", "digits-ce"), "there.toml exists already; choose another name"),
        (("a/b", "--from", "digits-ce"), "name for a file in the current folder, got 'a/b'"),
        (("mine", "--from", "digits-c"), "did you mean 'digits-ce'"),
    ],
)
def test_a_new_recipe_never_overwrites(arguments: tuple[str, ...], message: str) -> None:
    Path("there.toml").write_text("kept", "utf-8")
    refused = run("recipe", "new", *arguments)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert Path("there.toml").read_text("utf-8") == "kept"
    assert not Path("mine.toml").exists()


@pytest.mark.parametrize(
    "name", [name for name in recipe_names() if "init" in tomllib.loads(recipe_text(name))["training"]]
)
def test_a_recipe_that_fine_tunes_says_first_that_its_start_is_missing(name: str, here: Path) -> None:
    start = Path(tomllib.loads(recipe_text(name))["training"]["init"])
    refused = run("train", name)
    assert refused.exit_code == 2
    assert f"starts from the checkpoint of {start}, which is not there" in refused.stderr
    assert f"make it with `certood train {start.name}`" in refused.stderr
    assert "--init PATH" in refused.stderr
    assert list(here.iterdir()) == []
    # The data sets, which are not here either, are named only when there is a start, or none is wanted.
    start.mkdir(parents=True)
    assert "which is not there" in run("train", name).stderr
    assert "which is not there" not in run("train", name, "--set", "training.init=").stderr
