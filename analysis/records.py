"""What is known of one image, and the file of such records: certificates.csv."""

import csv
import io
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from certood.errors import RunDirectoryError

VERDICTS = ("certified", "refuted", "unknown")


@dataclass(frozen=True)
class AtRadius:
    """What is known over the ball of one ε: certified bounds of the score, the worst attacked score, the verdict.

    `attacked` is the highest score found for an ID image, the lowest for an OOD image; `lipschitz` is certified, `sampled` the
    largest gradient norm met (an estimate).
    """

    eps: float
    lower: float
    upper: float
    attacked: float
    lipschitz: float
    sampled: float
    verdict: str


@dataclass(frozen=True)
class Certificate:
    """One image: its score and decision, certified and estimated radii in pixels, and what is known at every ε.

    Estimates are `gradient_norm`, `lipschitz_sampled`, `lipschitz_clever` and `radius_gradient` (margin over gradient norm); they
    certify nothing. `radius_attack` is the distance of a changed decision that was found, infinite where none was.
    `radius_smoothing` belongs to the smoothed detector and is probabilistic. A wrong decision has the radius 0.
    `method` is what computed the bounds, also where another was asked for.
    """

    set: str
    kind: str
    index: int
    score: float
    threshold: float
    margin: float
    accepted: bool
    gradient_norm: float
    lipschitz_sampled: float
    lipschitz_clever: float
    lipschitz_certified: float
    radius_gradient: float
    radius_lipschitz: float
    radius_step: float
    radius_certified: float
    radius_attack: float
    radius_smoothing: float
    verdict: str
    violations: int
    seconds: float
    method: str = ""
    at: tuple[AtRadius, ...] = ()

    @property
    def correct(self) -> bool:
        """Whether an ID image is accepted, or an OOD image rejected."""
        return self.accepted == (self.kind == "id")


PLAIN = tuple(field for field in fields(Certificate) if field.name != "at")
PER_EPS = tuple(field for field in fields(AtRadius) if field.name != "eps")


def columns(eps: Sequence[float]) -> list[str]:
    """The header of certificates.csv."""
    return [field.name for field in PLAIN] + [column(field.name, radius) for radius in eps for field in PER_EPS]


def column(name: str, radius: float) -> str:
    """NAME@ε, with as many digits as tell ε exactly."""
    short = f"{radius:g}"
    return f"{name}@{short if float(short) == radius else repr(radius)}"


def append_certificates(path: Path, records: Sequence[Certificate], eps: Sequence[float]) -> None:
    """Append records, and the header to a new file; on disk when this returns. Raises RunDirectoryError where it cannot."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not path.exists() or not path.stat().st_size:
        writer.writerow(columns(eps))
    for record in records:
        values: list[object] = [getattr(record, field.name) for field in PLAIN]
        values += [getattr(part, field.name) for part in record.at for field in PER_EPS]
        writer.writerow([repr(value) if isinstance(value, float) else value for value in values])
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(text.getvalue())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write {path}: {error.strerror or error}; what was written before is kept"
        ) from error


def read_certificates(path: Path, eps: Sequence[float] | None = None) -> tuple[list[Certificate], tuple[float, ...]]:
    """The records of a certificates.csv and its radii ε.

    An incomplete last line, as a kill leaves it, is cut off from the file. Raises RunDirectoryError for anything else that does
    not read, naming the line, and where `eps` is given and differs.
    """
    try:
        content = path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        if complete != content:
            os.truncate(path, len(complete))
        text = complete.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunDirectoryError(f"cannot read {path}: {error}; replace the certification with --overwrite") from error
    lines = list(csv.reader(io.StringIO(text, newline="")))
    if not lines:
        return [], tuple(eps or ())
    header = lines[0]
    names = [field.name for field in PLAIN]
    found_eps = tuple(dict.fromkeys(_radius(name, path) for name in header[len(names) :]))
    if header != columns(found_eps) or (eps is not None and tuple(eps) != found_eps):
        raise RunDirectoryError(
            f"{path} has other columns than expected (written by another version or with other --eps?); "
            "replace the certification with --overwrite"
        )
    records = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            records.append(_record(line, header, found_eps))
        except (ValueError, KeyError) as error:
            raise RunDirectoryError(
                f"{path}, line {number} is damaged ({error}); delete the line, or replace all with --overwrite"
            ) from error
    return records, found_eps


def _radius(name: str, path: Path) -> float:
    try:
        return float(name.partition("@")[2])
    except ValueError as error:
        raise RunDirectoryError(f"{path} has the unknown column {name!r}; replace all with --overwrite") from error


def _record(line: Sequence[str], header: Sequence[str], eps: Iterable[float]) -> Certificate:
    if len(line) != len(header):
        raise ValueError(f"{len(line)} values for {len(header)} columns")
    cells = dict(zip(header, line, strict=True))
    at = tuple(
        AtRadius(
            eps=radius,
            **{
                field.name: cells[column(field.name, radius)]
                if field.name == "verdict"
                else float(cells[column(field.name, radius)])
                for field in PER_EPS
            },  # type: ignore[arg-type]
        )
        for radius in eps
    )
    values: dict[str, object] = {}
    for field in PLAIN:
        cell = cells[field.name]
        if field.type is bool:
            if cell not in ("True", "False"):
                raise ValueError(f"{field.name} is {cell!r}, not True or False")
            values[field.name] = cell == "True"
        elif field.type is int or field.type is float:
            values[field.name] = field.type(cell)
        else:
            values[field.name] = cell
    if values["verdict"] not in VERDICTS or not math.isfinite(float(cells["score"])):
        raise ValueError(f"verdict {values['verdict']!r}, score {cells['score']}")
    return Certificate(**values, at=at)  # type: ignore[arg-type]
