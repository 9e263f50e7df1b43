"""Writes docs/schemas/ from the models of the files: python docs/generate_schemas.py. A test compares the files with them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from certood.checking import certificates
from certood.checkpoints import metadata
from certood.runs import schema
from certood.train.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class CertificateFile(certificates.ClaimCertificate):
    """A certificate of `certood export`: a `certood.checking.certificates.ClaimCertificate`, and its format with a version."""

    format: str
    version: int


FOLDER = Path(__file__).with_name("schemas")
# By the name of the file, or of what holds it: its model, and the version of its schema.
MODELS: Mapping[str, tuple[Any, int]] = {
    "certificate": (CertificateFile, certificates.VERSION),
    "certification": (schema.CertificationFile, schema.SCHEMA_VERSION),
    "certification_settings": (schema.CertificationSettingsFile, schema.SCHEMA_VERSION),
    "claims": (schema.ClaimsFile, 1),
    "checkpoint_metadata": (metadata.Metadata, metadata.SCHEMA_VERSION),
    "comparison": (schema.ComparisonFile, schema.SCHEMA_VERSION),
    "evaluation": (schema.EvaluationFile, schema.SCHEMA_VERSION),
    "finished": (schema.FinishedFile, schema.SCHEMA_VERSION),
    "holder": (schema.HolderFile, schema.SCHEMA_VERSION),
    "recipe": (Recipe, 1),
    "report": (schema.ReportFile, schema.SCHEMA_VERSION),
    "share": (schema.ShareFile, schema.SCHEMA_VERSION),
    "share_plan": (schema.SharePlanFile, schema.SCHEMA_VERSION),
}


def documents() -> dict[str, str]:
    """The schemas as texts of JSON, by the name of their file."""
    found = {}
    for name, (model, version) in MODELS.items():
        head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:certood:{name}:{version}"}
        found[f"{name}.json"] = json.dumps(head | TypeAdapter(model).json_schema(), indent=2, ensure_ascii=False) + "\n"
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in documents().items():
        (FOLDER / file).write_text(text, "utf-8")
