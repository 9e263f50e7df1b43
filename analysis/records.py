"""What is known of one image, and the file of such records: certificates.csv."""

import csv
import io
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from certood.analysis.evidence.quantities import EMPTY, column
from certood.analysis.evidence.registry import quantities
from certood.analysis.evidence.verdicts import VERDICTS
from certood.errors import RunDirectoryError


@dataclass(frozen=True)
class AtRadius:
    """What is known over the ball of one ε: the verdict, and `values` by the names of the quantities.

    Every quantity that has a value for each ε is an attribute as well, e.g. `lower`, `attacked` or `lipschitz`; it is not a
    number where it was not computed.
    """

    eps: float
    verdict: str
    values: Mapping[str, float] = field(default_factory=dict)

    def __getattr__(self, name: str) -> float:
        return _quantity(self, name)


@dataclass(frozen=True)
class Certificate:
    """One image: its score and decision, `values` by the names of the quantities, and what is known at every ε.

    Every quantity of `certood.analysis.evidence` is an attribute as well, e.g. `radius_certified` in pixels or `gradient_norm`;
    it is not a number where it was not computed. A wrong decision has the radius 0; `radius_attack` is infinite where no attack
    succeeded. `float32_difference` is how far the score lies from what the network as given computes, `violations` how many
    inequalities between the quantities do not hold. `method` is what computed the bounds, also where another was asked for.
    """

    set: str
    kind: str
    index: int
    score: float
    threshold: float
    margin: float
    accepted: bool
    float32_difference: float = 0.0
    values: Mapping[str, float] = field(default_factory=dict)
    verdict: str = "unknown"
    violations: int = 0
    seconds: float = 0.0
    method: str = ""
    at: tuple[AtRadius, ...] = ()

    def __getattr__(self, name: str) -> float:
        return _quantity(self, name)

    @property
    def correct(self) -> bool:
        """Whether an ID image is accepted, or an OOD image rejected."""
        return self.accepted == (self.kind == "id")


def _quantity(record: AtRadius | Certificate, name: str) -> float:
    # Copies and pickles look for attributes before there are any.
    values = record.__dict__.get("values", {})
    if name in values:
        return float(values[name])
    known = _per_eps_columns() if isinstance(record, AtRadius) else _plain_columns()
    if name.startswith("_") or name not in known:
        raise AttributeError(f"{type(record).__name__} has no {name!r}; quantities are {', '.join(known)}")
    return EMPTY


def _boolean(cell: str) -> bool:
    if cell not in ("True", "False"):
        raise ValueError(f"expected True or False, got {cell!r}")
    return cell == "True"


def _verdict(cell: str) -> str:
    if cell not in VERDICTS:
        raise ValueError(f"verdict {cell!r}")
    return cell


def _finite(cell: str) -> float:
    if not math.isfinite(float(cell)):
        raise ValueError(f"score {cell}")
    return float(cell)


# The columns around those of the quantities, and how their cells are read.
BEFORE: dict[str, Callable[[str], Any]] = {
    "set": str, "kind": str, "index": int, "score": _finite, "threshold": float, "margin": float, "accepted": _boolean,
    "float32_difference": float,
}  # fmt: skip
AFTER: dict[str, Callable[[str], Any]] = {"verdict": _verdict, "violations": int, "seconds": float, "method": str}


def _plain_columns() -> list[str]:
    """Columns of quantities that belong to an image; of those that have a value for every ε the one at the first."""
    return [quantity.title for quantity in quantities() if quantity.first or not quantity.per_eps]


def _per_eps_columns() -> list[str]:
    return [quantity.name for quantity in quantities() if quantity.per_eps]


def columns(eps: Sequence[float]) -> list[str]:
    """The header of certificates.csv."""
    per_eps = [column(name, radius) for radius in eps for name in (*_per_eps_columns(), "verdict")]
    return [*BEFORE, *_plain_columns(), *AFTER, *per_eps]


def row(record: Certificate) -> dict[str, str | bool | int | float]:
    """The values of a record by the columns of certificates.csv, in their order; not a number where none was computed."""
    found = {name: getattr(record, name) for name in (*BEFORE, *_plain_columns(), *AFTER)}
    for part in record.at:
        found |= {column(name, part.eps): getattr(part, name) for name in (*_per_eps_columns(), "verdict")}
    return found


def append_certificates(path: Path, records: Sequence[Certificate], eps: Sequence[float]) -> None:
    """Append records, and the header to a new file; on disk when this returns. Raises RunDirectoryError where it cannot."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not path.exists() or not path.stat().st_size:
        writer.writerow(columns(eps))
    for record in records:
        writer.writerow([repr(value) if isinstance(value, float) else value for value in row(record).values()])
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(text.getvalue())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write {path}: {error.strerror or error}; what was written before is kept"
        ) from error


def read_certificates(
    path: Path, eps: Sequence[float] | None = None, *, continued: bool = False
) -> tuple[list[Certificate], tuple[float, ...]]:
    """The records of a certificates.csv and its radii ε; quantities that are not registered here are read as well.

    An incomplete last line, as a kill or a writer at work leaves it, is not read, and cut off from the file where that is to be
    `continued`. Raises RunDirectoryError for anything else that does not read, naming the line, where `eps` is given and
    differs, and where the file is to be `continued` and other quantities are registered now.
    """
    try:
        content = path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        if continued and complete != content:
            os.truncate(path, len(complete))
        text = complete.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunDirectoryError(f"cannot read {path}: {error}; replace the certification with --overwrite") from error
    lines = list(csv.reader(io.StringIO(text, newline="")))
    if not lines:
        return [], tuple(eps or ())
    header = lines[0]
    found_eps = tuple(dict.fromkeys(_radius(name, path) for name in header if "@" in name))
    fixed = {*BEFORE, *AFTER, *(column("verdict", radius) for radius in found_eps)}
    differs = header != columns(found_eps) if continued else not fixed <= set(header)
    if differs or (eps is not None and tuple(eps) != found_eps):
        raise RunDirectoryError(
            f"{path} has other columns than expected (written by another version, or with other --eps or evidence?); "
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
    fixed = {name: read(cells.pop(name)) for name, read in (BEFORE | AFTER).items()}
    at = []
    for radius in eps:
        verdict = _verdict(cells.pop(column("verdict", radius)))
        ending = column("", radius)
        own = {name.removesuffix(ending): cells.pop(name) for name in list(cells) if name.endswith(ending)}
        at.append(AtRadius(radius, verdict, _numbers(own)))
    return Certificate(**fixed, values=_numbers(cells), at=tuple(at))


def _numbers(cells: Mapping[str, str]) -> dict[str, float]:
    """The values that are known."""
    values = {name: float(cell) for name, cell in cells.items()}
    return {name: value for name, value in values.items() if not math.isnan(value)}
