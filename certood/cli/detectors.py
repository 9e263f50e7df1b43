"""The detector that a command is about: a run of certood's own, or somebody else's weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from certood.data import IdSplits
    from certood.detector import Detector

Command = Callable[..., Any]


def foreign_options(command: Command) -> Command:
    """Add the options that say what a foreign checkpoint holds."""
    for option in (
        click.option("--architecture", help="For foreign weights: a name, torchvision:NAME, or module:factory."),
        click.option("--classes", type=click.IntRange(1), help="Number of classes of foreign weights."),
        click.option("--input-shape", help="C,H,W of foreign weights, e.g. 3,32,32."),
        click.option("--mean", help="Their normalisation, a number a channel, e.g. 0.49,0.48,0.45."),
        click.option("--std", help="Their normalisation, a number a channel."),
    ):
        command = option(command)
    return command


def open_detector(path: Path, foreign: Mapping[str, str | int | None]) -> "Detector":
    """The detector of a run, checkpoint or ONNX file, or foreign weights where --architecture says what they are."""
    from certood.checkpoints import is_onnx, load

    architecture, classes, given_shape = (foreign.get(name) for name in ("architecture", "classes", "input_shape"))
    if not is_onnx(path):
        if architecture is None:
            return load(path)
        missing = [name for name in ("classes", "input_shape") if foreign.get(name) is None]
        if missing:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
            raise click.UsageError(f"foreign weights need {flags} beside --architecture")
    shape = None if given_shape is None else _numbers(str(given_shape), "--input-shape", 3)
    channels = None if shape is None else int(shape[0])
    mean, std = (
        _numbers(str(foreign[name]), f"--{name}", channels) if foreign.get(name) else None for name in ("mean", "std")
    )
    return load(
        path,
        architecture=None if architecture is None else str(architecture),
        classes=None if classes is None else int(classes),
        input_shape=None if shape is None else (int(shape[0]), int(shape[1]), int(shape[2])),
        mean=mean,
        std=std,
    )


def calibrated(detector: "Detector", splits: "IdSplits", score_name: str | None, *, foreign: bool) -> "Detector":
    """The detector with the score that is asked for, and γ for it from the validation images, which is announced.

    Its own score keeps the γ that is stored with it; only foreign weights cannot have one. Raises CannotCertify for a
    checkpoint of certood without γ, CertoodError for a score that the network does not have.
    """
    from dataclasses import replace

    from certood.errors import CertoodError, MissingThreshold
    from certood.scores import AbsentClass, score_by_name

    score = detector.score if score_name is None else score_by_name(score_name)
    if isinstance(score, AbsentClass) and not detector.absent_class:
        raise CertoodError("score 'absent-class' needs a network trained with an absent class, which this one is not")
    if score.name == detector.score.name:
        if detector.threshold is not None:
            return detector
        if not foreign:
            raise MissingThreshold
        score = detector.score
    found = replace(detector, score=score).calibrated(splits.validation)
    click.echo(
        f"γ = {found.threshold:.6g} for score {score.name}: accepts {found.tpr:.0%} of {len(splits.validation)} "
        "validation images"
    )
    return found


def _numbers(text: str, option: str, count: int | None) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(
            f"expected {count or ''} numbers separated by commas, got {text!r}".replace("  ", " "), param_hint=option
        ) from error
    if count is not None and len(numbers) != count:
        raise click.BadParameter(f"expected {count} numbers, got {len(numbers)}", param_hint=option)
    return numbers
