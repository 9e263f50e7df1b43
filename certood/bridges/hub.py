"""Hugging Face's hub: a run as a repository with a model card, and the detector of such a repository."""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from certood.checkpoints import HUB_PREFIX
from certood.checkpoints.own import stored_identity
from certood.errors import CheckpointError, RunDirectoryError
from certood.evaluation import METRICS
from certood.files import write_atomically
from certood.optional import optional
from certood.runs.directory import RunDirectory
from certood.runs.identity import certificates_hash, differences, differences_of_certification
from certood.runs.schema import CertificationFile, EvaluationFile, read_checked

NAME = re.compile(re.escape(HUB_PREFIX) + r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")

_FILES = RunDirectory(Path())
# The files of a run that a repository has; the last three only where the certification was finished.
PUSHED = tuple(
    path.name
    for path in (
        _FILES.checkpoint,
        _FILES.recipe,
        _FILES.evaluation,
        _FILES.certificates,
        _FILES.certification,
        _FILES.certification_settings,
    )
)


def fetch_checkpoint(name: str) -> Path:
    """The checkpoint of a repository, downloaded to the hub's cache; it is data, and no code of the repository is run.

    Raises CheckpointError where the name is none, huggingface_hub is not installed, or the file cannot be had.
    """
    repository, revision = _parsed(name)
    hub = _library()
    with _reported(f"cannot fetch {name}"):
        return Path(hub.hf_hub_download(repository, _FILES.checkpoint.name, revision=revision))


def is_repository(run: Path | str) -> bool:
    """Whether a run is named as a repository of the hub."""
    return str(run).startswith(HUB_PREFIX)


def local_run(run: Path | str) -> Path:
    """Where the files of a run lie: a path itself; of a repository what a run has, in the hub's cache, which is only read.

    Raises CheckpointError as `fetch_checkpoint` does, and where the repository holds no run of certood.
    """
    if not is_repository(run):
        return Path(run)
    repository, revision = _parsed(str(run))
    hub = _library()
    with _reported(f"cannot fetch {run}"):
        found = RunDirectory(Path(hub.snapshot_download(repository, revision=revision, allow_patterns=[*PUSHED])))
    if not found.checkpoint.is_file():
        raise CheckpointError(f"{run} is no run of certood: expected {found.checkpoint.name} in the repository")
    return found.folder


def require_out(run: Path | str, out: Path | str | None) -> None:
    """Raise CheckpointError where results would go into the folder of a run, and that is a repository."""
    if out is None and is_repository(run):
        raise CheckpointError(f"{run} is only read: say with --out where the results go")


def run_and_results(run: Path | str, out: Path | str | None) -> Path:
    """Where the files of a run lie, whose results go to `out`; raises CheckpointError as `require_out` and `local_run` do."""
    require_out(run, out)
    return local_run(run)


def push(run: Path | str, name: str, *, private: bool = True) -> str:
    """Upload a run as the repository `hf:OWNER/NAME`, which is made if need be, with a model card; the address of the commit.

    Uploaded are the files of the detector, its evaluation, its certification and its recipe, whose data.root is a path of this
    machine. Raises CheckpointError where the hub refuses, and as `prepare` does.
    """
    repository, revision = _parsed(name)
    if revision is not None:
        raise CheckpointError(
            f"{name}: a run is pushed to a repository, not to a revision of it; leave @{revision} out"
        )
    hub = _library()
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(run), Path(folder), name)
        with _reported(f"cannot push to {name}"):
            api = hub.HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            # A certification of the run that was there before is none of this one.
            gone = [name for name in PUSHED if not (Path(folder) / name).exists()]
            return str(
                api.upload_folder(
                    repo_id=repository, folder_path=folder, commit_message="A run of certood", delete_patterns=gone
                )
            )


def prepare(run: Path, folder: Path, name: str) -> None:
    """Write what a repository of a run holds to a folder: its files, and README.md, the model card.

    Raises RunDirectoryError where the run has no checkpoint, or results of another detector than that, and where certificates
    have changed since they were made. A certification may be about another score than the detector's.
    """
    files = RunDirectory(run)
    if not files.checkpoint.is_file():
        raise RunDirectoryError(f"{run} is no run directory: expected {files.checkpoint.name} in it")
    identity = stored_identity(files.checkpoint)
    evaluation = read_checked(files.evaluation, EvaluationFile)
    certification = read_checked(files.certification, CertificationFile)
    for path, content, differing in (
        (files.evaluation, evaluation, differences),
        (files.certification, certification, differences_of_certification),
    ):
        other = differing((content or {}).get("detector", {}), identity)
        if other:
            raise RunDirectoryError(
                f"{path} is about another detector than the checkpoint ({', '.join(other)}): make it anew"
            )
    recorded = (certification or {}).get("certificates_sha256")
    if recorded and recorded != certificates_hash(files.certificates):
        raise RunDirectoryError(
            f"{files.certificates} has changed since {files.certification.name} was written: "
            "certify the run again with --overwrite"
        )
    for path in map(run.joinpath, PUSHED if certification is not None else PUSHED[:3]):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    write_atomically(folder / "README.md", model_card(name, identity, evaluation, certification))


def model_card(
    name: str,
    identity: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
    certification: Mapping[str, Any] | None,
) -> str:
    """The model card: what the detector is, how it is used, and what was measured and certified; as Markdown."""
    shape = "×".join(map(str, identity["input_shape"]))
    lines = [
        "---",
        "library_name: certood",
        "pipeline_tag: image-classification",
        "tags: [out-of-distribution-detection, certified-robustness]",
        "---",
        f"# {name.removeprefix(HUB_PREFIX)}",
        "",
        f"An out-of-distribution detector: {identity['architecture']}, images {shape} in [0, 1] (the network normalises them), "
        f"{len(identity['classes'])} classes, score {identity['score']['name']}, γ = {identity['threshold']}. An image is "
        "accepted as in-distribution where its score is at most γ.",
        "",
        "```python",
        "import certood",
        "",
        f'detector = certood.load("{name}")',
        "detector.accepts(images)  # (N, C, H, W), floats in [0, 1] or uint8",
        "```",
    ]
    return "\n".join([*lines, *_measured(evaluation), *_certified(certification), ""])


def _measured(evaluation: Mapping[str, Any] | None) -> Iterator[str]:
    if evaluation is None or evaluation.get("score") not in evaluation["scores"]:
        return
    yield f"\n## Measured\n\nAccuracy {100 * evaluation['accuracy']:.2f} %; in %, by the score {evaluation['score']}:\n"
    rows = evaluation["scores"][evaluation["score"]]["sets"].items()
    yield from _table(
        ("OOD set", "images", *METRICS.values()),
        [(one, str(part["n"]), *(f"{100 * part[key]:.2f}" for key in METRICS)) for one, part in rows],
    )


def _certified(certification: Mapping[str, Any] | None) -> Iterator[str]:
    if certification is None:
        return
    smoothed = any("smoothed_fraction" in part for part in certification["sets"].values())
    yield from (_smoothed if smoothed else _bounded)(certification)
    if certification["violations"]:
        yield f"\n{certification['violations']} inequalities that must hold do not: these radii are not sound."


def _smoothed(certification: Mapping[str, Any]) -> Iterator[str]:
    eps, about = _question(certification)
    noise = certification["settings"]["smoothing"]
    yield (
        f"\n## Smoothed (probabilistic)\n\nThe smoothed detector ({about}; σ {noise['sigma']:g}, {noise['samples']} samples "
        f"an image), not the network itself: each radius, in l2 and pixels, holds with probability {noise['confidence']:g}:\n"
    )
    yield from _table(
        ("set", "kind", "images", f"smoothed radius at least {eps:g}, %", "median smoothed radius"),
        [
            (
                one,
                part["kind"],
                str(part["n"]),
                _number((part.get("smoothed_fraction") or [None])[0], 100),
                _number(part.get("median_radius_smoothing")),
            )
            for one, part in certification["sets"].items()
        ],
    )


def _bounded(certification: Mapping[str, Any]) -> Iterator[str]:
    eps, about = _question(certification)
    yield (
        f"\n## Certified\n\nBy {certification['method']} ({about}), for balls in l{certification['norm']} of radius {eps:g} "
        "around images; radii in pixels. A certified radius is a lower bound of the distance to the nearest image with the other "
        "decision, and that of an attack is an upper bound:\n"
    )
    rows = []
    for one, part in certification["sets"].items():
        share = part.get("certified_fraction") or [None]
        median, attack = part.get("median_radius_certified"), part.get("median_radius_attack")
        gauc = (part.get("gauc") or [None])[0]
        rows.append(
            (
                one,
                part["kind"],
                str(part["n"]),
                _number(share[0], 100),
                _number(gauc, 100),
                _number(median),
                _number(attack),
            )
        )
    yield from _table(
        ("set", "kind", "images", "certified, %", "GAUC, %", "median certified radius", "median attack radius"), rows
    )


def _question(certification: Mapping[str, Any]) -> tuple[float, str]:
    """The first ε, and what is asked of which score."""
    return certification["eps"][0], f"score {certification['score']}, γ = {certification['threshold']}"


def _number(value: float | None, factor: float = 1) -> str:
    return "" if value is None else f"{factor * value:.4g}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "| " + " | ".join("---" for _ in heads) + " |"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def _parsed(name: str) -> tuple[str, str | None]:
    """The repository and the revision of a name."""
    found = NAME.fullmatch(name)
    if found is None:
        raise CheckpointError(f"expected hf:OWNER/NAME, or hf:OWNER/NAME@REVISION, found {name!r}")
    return found[1], found[2]


def _library() -> ModuleType:
    return optional("huggingface_hub", CheckpointError("hf: needs huggingface_hub: pip install 'certood[hub]'"))


@contextmanager
def _reported(failure: str) -> Iterator[None]:
    """Make one error of whatever the library raises: errors of its own, and those of its transport."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{failure} ({type(error).__name__}: {error})") from error
