"""docs/schemas/: the committed schemas are those of the models, and what commands write satisfies them."""

import ast
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

from certood.analysis.shares import write_plan
from certood.cli import main
from certood.errors import RunDirectoryError
from certood.evaluation import read_evaluation
from certood.runs.directory import RunDirectory
from certood.runs.lock import HOLDER_FILE, locked

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "docs" / "schemas"
# Every function that makes JSON: the schema of the file that it is for, or why it is for none.
WRITERS = {
    ("analysis/certify_run.py", "write_json"): "certification, certification_settings",
    ("analysis/certify_run.py", "_prepare"): "to compare settings",
    ("analysis/claims/export_run.py", "_write_manifest"): "claims",
    ("analysis/reporting/comparison_formats.py", "comparison_as_json"): "comparison",
    ("analysis/reporting/drawing.py", "_hovered"): "in a page",
    ("analysis/reporting/formats.py", "tables_as_json"): "report",
    ("analysis/reporting/kinds.py", "_key"): "a key",
    ("analysis/shares.py", "__call__"): "share",
    ("analysis/shares.py", "identity_of"): "to be hashed",
    ("analysis/shares.py", "write_plan"): "share_plan",
    ("certood/checking/certificates.py", "text"): "certificate",
    ("certood/checkpoints/own.py", "save_checkpoint"): "checkpoint_metadata",
    ("certood/cli/demo.py", "_certified_before"): "to compare settings",
    ("certood/evaluation.py", "write_evaluation"): "evaluation",
    ("certood/runs/directory.py", "adopt"): "finished",
    ("certood/runs/identity.py", "detector_identity"): "to be hashed",
    ("certood/runs/lock.py", "locked"): "holder",
    ("train/recipe_keys.py", "_toml"): "a value in TOML",
}


def test_every_json_that_is_made_is_known_and_has_a_schema_where_it_is_a_file() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), function.name)
        for part in ("analysis", "certood", "train")
        for path in (ROOT / part).rglob("*.py")
        if "json" in (text := path.read_text("utf-8"))
        for function in ast.walk(ast.parse(text))
        if isinstance(function, ast.FunctionDef)
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(("json.dumps", "json.dump", "dump_json"))
    }
    assert found == WRITERS.keys(), "a file of JSON needs a model in certood.runs.schema, and a line here"
    named = {name for names in WRITERS.values() for name in names.split(", ") if (SCHEMAS / f"{name}.json").is_file()}
    # A recipe is TOML.
    assert named == {path.stem for path in SCHEMAS.iterdir()} - {"recipe"}


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
    run("report", out, "--format", "json", "--out", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["summary"]
    validate("report", report)
    run("export", out, "--limit", "1")
    claims = json.loads((out / "claims" / "claims.json").read_text("utf-8"))
    assert claims["claims"]
    validate("claims", claims)
    certificates = list((out / "claims").rglob("certificates/*.json"))
    assert certificates
    for path in certificates:
        validate("certificate", json.loads(path.read_text("utf-8")))
    with safe_open(out / "checkpoint.safetensors", framework="pt") as file:
        validate("checkpoint_metadata", json.loads(file.metadata()["certood"]))
    recipe = tomllib.loads((out / "recipe.toml").read_text("utf-8"))
    assert recipe.pop("record")["certood"]
    validate("recipe", recipe)


def test_what_is_written_while_a_command_works_satisfies_the_schemas(tmp_path: Path) -> None:
    files = RunDirectory(tmp_path)
    write_plan(files, "ab", {"digits": [0, 3]})
    plan = json.loads(files.share_plan.read_text("utf-8"))
    assert plan == {"schema_version": 1, "identity": "ab", "wanted": {"digits": [0, 3]}}
    validate("share_plan", plan)
    with locked(tmp_path, "certify"):
        validate("holder", json.loads((tmp_path / HOLDER_FILE).read_text("utf-8")))
    with pytest.raises(jsonschema.ValidationError):
        validate("share_plan", {"identity": "ab", "wanted": {"digits": [-1]}})


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
