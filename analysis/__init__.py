"""Bounds, certificates, attacks, certified metrics, figures and the report.

`certify`, `read_certificates`, `report` and `compare` are the entry points; `certood.analysis.bounds` bounds logits, scores and
gradients of any network over a ball; `certood.analysis.certification` computes the record of an image,
`certood.analysis.summary` the metrics of a run.
"""

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from certood.analysis.certificates import Certificates
    from certood.analysis.reporting.comparison import Comparison
    from certood.detector import Detector

__all__ = ["FORMATS", "certify", "compare", "read_certificates", "report"]

FORMATS = ("html", "json", "csv", "latex")


def certify(
    detector: "Detector | Path | str",
    images: "Tensor | NDArray[np.generic] | None" = None,
    *,
    eps: float | Sequence[float] = 0.01,
    norm: float = math.inf,
    method: str = "crown",
    kind: str = "id",
    limit: int | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
    device: str | None = None,
    **effort: Any,
) -> "Certificates":
    """Certificates of images, or of the test images of a run: one record per image, and `to_frame()` for pandas.

    `images` (N, C, H, W) are floats in [0, 1] or uint8, tensors or NumPy arrays; `kind` says whether they are "id" or "ood" (a
    wrong decision has the radius 0). Without `images`, `detector` is a run directory whose own ID and OOD test images are
    certified, at most `limit` a set, as `certood certify` does: certificates.csv, certification.json and figures are written to
    `out` (default: the run), and what is there already is not done again unless `overwrite`. A repository hf:OWNER/NAME is
    only read, and needs `out`.

    `eps` are radii in pixels, the first being the one of the verdict; `norm` is inf, 2 or 1; `method` is interval, crown-ibp,
    crown, alpha-crown or smoothing; `effort` are further fields of `certood.analysis.certification.Settings`, e.g. `seed` or
    `attack_steps`. All is computed on `device` (auto, cpu, cuda, cuda:N), without one where the detector is. Raises
    CannotCertify for a detector without γ or with an operation that cannot be bounded, DeviceError for a device that is not
    there or has no float64, and CertoodError for images or settings that make no sense.
    """
    from certood.analysis.certificates import Certificates  # noqa: PLC0415 (importing certood.analysis stays light)
    from certood.analysis.certification import certify as certify_images  # noqa: PLC0415
    from certood.analysis.certify_run import certify_sets  # noqa: PLC0415
    from certood.analysis.settings import Settings, require_applicable, with_fast_rows  # noqa: PLC0415
    from certood.bridges.hub import run_and_results  # noqa: PLC0415
    from certood.checkpoints import load  # noqa: PLC0415
    from certood.errors import CertoodError  # noqa: PLC0415
    from certood.inference import as_pixels  # noqa: PLC0415
    from certood.runs import RunDirectory, load_run_data  # noqa: PLC0415

    radii = (float(eps),) if isinstance(eps, (int, float)) else tuple(float(radius) for radius in eps)
    try:
        settings = Settings(eps=radii, norm=float(norm), method=method, **effort)
    except TypeError as error:
        raise CertoodError(f"unknown setting of a certification: {error}") from error
    require_applicable(effort.keys(), settings)
    loaded = load(detector) if isinstance(detector, (str, Path)) else detector
    if device is not None:
        loaded = loaded.to(device)
    if "dtype" not in effort:
        settings = with_fast_rows(settings, loaded.device)
    if images is not None:
        pixels = as_pixels(images, loaded.input_shape)
        return Certificates(certify_images(loaded, pixels, kind=kind, settings=settings))
    if not isinstance(detector, (str, Path)):
        raise CertoodError("give images, or the run directory whose own test images are to be certified")
    run = run_and_results(detector, out)
    splits, sets = load_run_data(run, recorded=loaded.split)
    files = RunDirectory.of(run) if out is None else RunDirectory(Path(out))
    certify_sets(loaded, splits.test, sets, files.folder, settings, limit=limit, overwrite=overwrite)
    return Certificates.read(files.certificates, settings.eps)


def read_certificates(run: Path | str) -> "Certificates":
    """The certificates of a run directory, of a folder that `certood certify --out` wrote, or of a certificates.csv.

    One record per image, as `certify` gives them, and `to_frame()` for pandas. Raises RunDirectoryError where nothing was
    certified, or the file does not read.
    """
    from certood.analysis.certificates import Certificates  # noqa: PLC0415 (importing certood.analysis stays light)
    from certood.bridges.hub import local_run  # noqa: PLC0415
    from certood.errors import RunDirectoryError  # noqa: PLC0415
    from certood.runs import RunDirectory  # noqa: PLC0415

    path = Path(run) if Path(run).suffix == ".csv" else RunDirectory.of(local_run(run)).certificates
    if not path.exists():
        raise RunDirectoryError(f"there is no {path}: certify the run first, with `certood certify {run}`")
    return Certificates.read(path)


def report(
    runs: Path | str | Sequence[Path | str],
    out: Path | str | None = None,
    *,
    format: str = "html",  # noqa: A002 (the command line's name)
    near: Sequence[str] = (),
) -> str:
    """The report of some run directories: one HTML file, or its tables alone as json, csv or latex; the text.

    `html` needs `out` and returns its path; the others return the text, and write it where `out` is given. `near` names OOD
    sets that are near the ID set (default: as evaluated, else those whose name ends in "-near"). Nothing is computed again: all
    numbers come from the files of the runs; a LeftOutWarning says what of a run is not shown. Raises RunDirectoryError where a
    folder is no run, CertoodError for an unknown format or set.
    """
    from certood.analysis.reporting.formats import tables_as_csv, tables_as_json, tables_as_latex  # noqa: PLC0415
    from certood.analysis.reporting.page import write_page  # noqa: PLC0415 (importing certood.analysis stays light)
    from certood.analysis.reporting.rendering import is_page  # noqa: PLC0415
    from certood.analysis.reporting.runs import read_runs  # noqa: PLC0415
    from certood.errors import CertoodError, LeftOutWarning  # noqa: PLC0415
    from certood.files import refuse_foreign, write_atomically  # noqa: PLC0415

    if format not in FORMATS:
        raise CertoodError(f"unknown format {format!r}; expected one of {', '.join(FORMATS)}")
    paths = [Path(runs)] if isinstance(runs, (str, Path)) else [Path(run) for run in runs]
    if not paths:
        raise CertoodError("a report needs at least one run directory")
    found = read_runs(paths)
    for run in found:
        for why in run.left_out:
            warnings.warn(f"{run.name}: {why}", LeftOutWarning, stacklevel=2)
    if format == "html":
        if out is None:
            raise CertoodError("an HTML report needs a file to be written to")
        refuse_foreign(Path(out), is_page)
        write_page(found, Path(out), near)
        return str(out)
    text = {"json": tables_as_json, "csv": tables_as_csv, "latex": tables_as_latex}[format](found, near)
    if out is not None:
        refuse_foreign(Path(out), lambda content: _same_kind(content, text, format))
        write_atomically(Path(out), text)
    return text


def compare(
    runs: Sequence[Path | str], *, against: str | None = None, near: Sequence[str] = (), score: str | None = None
) -> "Comparison":
    """Evaluated runs, those of one recipe and several seeds as one arm: means, deviations, paired differences with intervals.

    `against` is the arm that the others are compared with (default: the first), `near` names OOD sets that are near the ID set
    (default: those that the evaluations call so, else those whose name ends in "-near"), and `score` the one by which all are
    compared (default: each arm by its detector's own). Nothing is computed again. Raises RunDirectoryError where a run was not
    evaluated, or on other images than the others, CertoodError for an unknown name.
    """
    from certood.analysis.reporting.arms import arms_of  # noqa: PLC0415 (importing certood.analysis stays light)
    from certood.analysis.reporting.comparison import compare_arms  # noqa: PLC0415
    from certood.analysis.reporting.runs import read_runs  # noqa: PLC0415
    from certood.errors import CertoodError  # noqa: PLC0415

    if not runs:
        raise CertoodError("a comparison needs at least one run directory")
    return compare_arms(arms_of(read_runs([Path(run) for run in runs]), score), against, near)


def _same_kind(content: bytes, text: str, kind: str) -> bool:
    """Whether a file is a report of this format: the same keys, header or title as the new one."""
    if kind != "json":
        return content.splitlines()[:1] == text.encode().splitlines()[:1]
    try:
        found = json.loads(content)
    except ValueError:
        return False
    return isinstance(found, dict) and found.keys() | {"schema_version", "left_out"} == json.loads(text).keys()
