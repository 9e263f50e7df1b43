"""docs/schemas/: the committed schemas are those of the models, and what commands write satisfies them."""

import importlib.util
import json
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from safetensors import safe_open

from certood.cli import main
from certood.errors import RunDirectoryError
from certood.evaluation import read_evaluation

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"


def generator() -> ModuleType:
    specification = importlib.util.spec_from_file_location("generate_schemas", SCHEMAS.parent / "generate_schemas.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_committed_schemas_are_those_of_the_models() -> None:
    committed = {path.name: path.read_text("utf-8") for path in SCHEMAS.iterdir()}
    assert committed == generator().documents(), "run: python docs/generate_schemas.py"
    for text in committed.values():
        jsonschema.Draft202012Validator.check_schema(json.loads(text))


def validate(name: str, content: Any) -> None:
    jsonschema.validate(content, json.loads((SCHEMAS / f"{name}.json").read_text("utf-8")))


def run(*arguments: str | Path) -> None:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_what_commands_write_satisfies_the_schemas(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run("train", "digits-ce", "--out", out, "--set", "training.epochs=1", "--set", "model.options.width=4")
    run("evaluate", out, "--near", "digits-near", "--bootstrap", "5", "--overwrite")
    run("certify", out, "--limit", "2")
    run("compare", out, "--json", tmp_path / "comparison.json")
    for name in ("evaluation", "certification", "certification_settings"):
        content = json.loads((out / f"{name}.json").read_text("utf-8"))
        assert content["schema_version"] == 1
        validate(name, content)
    comparison = json.loads((tmp_path / "comparison.json").read_text("utf-8"))
    assert comparison["schema_version"] == 1
    validate("comparison", comparison)
    with safe_open(out / "checkpoint.safetensors", framework="pt") as file:
        validate("checkpoint_metadata", json.loads(file.metadata()["certood"]))
    recipe = tomllib.loads((out / "recipe.toml").read_text("utf-8"))
    assert recipe.pop("record")["certood"]
    validate("recipe", recipe)


def test_a_file_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    score = {"threshold": 0.0, "sets": {}}
    content: dict[str, Any] = {"accuracy": 0.5, "scores": {"energy": score}, "schema_version": 1}
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    assert read_evaluation(tmp_path / "evaluation.json") == content
    (tmp_path / "evaluation.json").write_text(json.dumps(content | {"schema_version": 2}))
    with pytest.raises(RunDirectoryError, match=r"of a newer certood \(schema version 2\); this one reads 1"):
        read_evaluation(tmp_path / "evaluation.json")
    with pytest.raises(jsonschema.ValidationError, match="'accuracy' is a required property"):
        validate("evaluation", {"scores": {"energy": score}})
