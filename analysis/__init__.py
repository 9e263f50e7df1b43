"""Bounds, certificates, attacks, certified metrics, figures and the report."""

from collections.abc import Sequence
from pathlib import Path

FORMATS = ("html", "json", "csv", "latex")


def report(runs: Sequence[Path | str], out: Path | str | None = None, *, format: str = "html") -> str:  # noqa: A002
    """The report of some run directories: one HTML file, or its tables alone as json, csv or latex; the text.

    `html` needs `out` and returns its path. Nothing is computed again: all numbers come from the files of the runs. Raises
    RunDirectoryError where a folder is no run, CertoodError for an unknown format.
    """
    from certood.analysis.reporting.page import write_page  # noqa: PLC0415 (importing certood.analysis stays light)
    from certood.analysis.reporting.runs import read_runs  # noqa: PLC0415
    from certood.analysis.reporting.tables import tables_as_csv, tables_as_json, tables_as_latex  # noqa: PLC0415
    from certood.errors import CertoodError  # noqa: PLC0415

    if format not in FORMATS:
        raise CertoodError(f"unknown format {format!r}; expected one of {', '.join(FORMATS)}")
    if not runs:
        raise CertoodError("a report needs at least one run directory")
    found = read_runs([Path(run) for run in runs])
    if format == "html":
        if out is None:
            raise CertoodError("an HTML report needs a file to be written to")
        write_page(found, Path(out))
        return str(out)
    text = {"json": tables_as_json, "csv": tables_as_csv, "latex": tables_as_latex}[format](found)
    if out is not None:
        Path(out).write_text(text, "utf-8")
    return text
