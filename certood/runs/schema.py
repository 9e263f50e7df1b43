"""What the JSON files of a run must hold for whoever reads them; more is allowed, less or other types are not.

`docs/schemas/` holds these models as JSON schemas.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from certood.errors import RunDirectoryError
from certood.runs.directory import read_json

# Of all these files. A change that a reader of the old files would misread makes it higher.
SCHEMA_VERSION = 1

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
# What is infinite or not a number is null in these files.
Number = Annotated[float, Field(allow_inf_nan=False)] | None
Interval = Annotated[list[Share], Field(min_length=2, max_length=2)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _File(_Part):
    schema_version: Annotated[int, Field(ge=1)] = SCHEMA_VERSION


class Means(_Part):
    """The clean benchmark, mean over OOD sets."""

    auroc: Share
    fpr95: Share
    aupr_in: Share
    aupr_out: Share


class OpenOODNumbers(_Part):
    """FPR@95 and both AUPR of one OOD set by OpenOOD's definitions."""

    fpr95: Share
    aupr_in: Share
    aupr_out: Share


class MeasuredSet(Means):
    """The clean benchmark of one OOD set."""

    n: Count
    auroc_interval: Interval | None = None
    fpr95_interval: Interval | None = None
    openood: OpenOODNumbers | None = None


class MeasuredScore(_Part):
    """The clean benchmark by one score."""

    threshold: Number
    certifiable: bool = True
    sets: dict[str, MeasuredSet]
    mean: Means | None = None
    near: Means | None = None
    far: Means | None = None


class EvaluationFile(_File):
    """evaluation.json."""

    accuracy: Share
    n_id: Count | None = None
    scores: dict[str, MeasuredScore] = Field(min_length=1)
    score: str | None = None
    near: list[str] = Field(default_factory=list)
    detector: dict[str, Any] = Field(default_factory=dict)
    image_sets: dict[str, str | dict[str, str]] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)


class Smoothing(_Part):
    """The noise of a smoothed detector."""

    sigma: float
    samples: Count
    confidence: float


class Effort(_Part):
    """How images were certified."""

    method: str
    norm: str
    engine: str = "certood"
    seed: int
    iterations: Count
    parts: Count
    dtype: str
    attack_steps: Count
    restarts: Count
    samples: Count
    second_attack: str | None = None
    smoothing: Smoothing


class CertifiedSet(_Part):
    """The certificates of one set in numbers: one, one per ε, or named ones per ε."""

    __pydantic_extra__: dict[str, Number | list[Number] | dict[str, list[Number]]]
    kind: Literal["id", "ood"]
    n: Count


class CertificationFile(_File):
    """certification.json."""

    norm: Literal["inf", "2", "1"]
    method: str
    eps: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(min_length=1)
    sets: dict[str, CertifiedSet]
    violations: Count
    nearest_attack: dict[str, Count] = Field(default_factory=dict)
    settings: Effort
    score: str
    threshold: float
    detector: dict[str, Any] = Field(default_factory=dict)
    image_sets: dict[str, str] = Field(default_factory=dict)
    certificates_sha256: str = ""
    versions: dict[str, str] = Field(default_factory=dict)


class CertificationSettingsFile(_File):
    """certification_settings.json: what certificates.csv is about, and how it is made."""

    detector: dict[str, Any]
    sets: dict[str, str]
    limit: Annotated[int, Field(ge=1)] | None


class ComparedArm(_Part):
    """The runs of an arm by seed, and the score by which they are compared."""

    score: str
    runs: dict[str, str]


class ComparedLine(_Part):
    """A metric of an arm on some OOD sets, in per cent: by seed, its mean, its deviation, and the difference."""

    arm: str
    metric: str
    group: str
    mean: float
    values: list[float]


class ComparisonFile(_File):
    """What `certood compare --json` writes."""

    kind: str
    against: str
    confidence: Share
    interval: str
    groups: dict[str, list[str]]
    arms: dict[str, ComparedArm]
    lines: list[ComparedLine]


class ReportFile(_File):
    """What `certood report --format json` writes: the rows of every table by its name, their cells by the names of columns."""

    __pydantic_extra__: dict[str, list[dict[str, str | bool | Number]]]


class SharePlanFile(_File):
    """shares/plan.json: which images of which sets jobs that run elsewhere certify, and the hash of how."""

    identity: str
    wanted: dict[str, list[Count]]


class ShareFile(_File):
    """shares/NNNN/certification_settings.json: the hash of how the certificates beside it were made."""

    identity: str


class HolderFile(_File):
    """.certood.lock.json: which process writes in a run directory."""

    host: str
    pid: Count
    command: str
    since: str


class FinishedFile(RootModel[list[str]]):
    """finished.json of a hidden folder that is about to replace files of a run: their names, relative to the folder."""


class ComparedNetwork(_Part):
    """How far an exported network is from the module, the largest relative difference over so many images."""

    images: Count
    onnxruntime_float32: Number
    float64: Number


class ExportedClaim(_Part):
    """A claim: a decision about an image that is certified at a radius, and what files it has."""

    name: str
    set: str
    kind: Literal["id", "ood"]
    index: Count
    accepted: bool
    score: float
    eps: float
    exported_box: str
    condition: str | None
    condition_proved: bool | None
    certificate: str | None
    no_certificate: str | None


class ClaimsFile(_Part):
    """claims.json: what `certood export` wrote. `version` is that of the schema."""

    format: str
    version: Annotated[int, Field(ge=1)]
    detector: dict[str, Any]
    norm: Literal["inf", "2", "1"]
    method: str
    versions: dict[str, str]
    networks: dict[str, ComparedNetwork]
    claims: list[ExportedClaim]
    files: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]


def read_checked(path: Path, schema: type[_File]) -> dict[str, Any] | None:
    """The object in a JSON file of this schema, or None where there is no file; raises RunDirectoryError."""
    required = [name for name, field in schema.model_fields.items() if field.is_required()]
    content = read_json(path, required)
    if content is None:
        return None
    version = content.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise RunDirectoryError(
            f"{path} is of a newer certood (schema version {version}); this one reads {SCHEMA_VERSION}: update certood"
        )
    try:
        schema.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RunDirectoryError(f"{path} is damaged: {place}: {first['msg']}, found {first['input']!r:.80}") from error
    return content
