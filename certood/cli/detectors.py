"""The detector that a command is about: a run of certood's own, or somebody else's weights."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import torch

    from certood.data import IdSplits
    from certood.detector import Detector
    from certood.scores import Score

Command = Callable[..., Any]


def foreign_options(command: Command) -> Command:
    """Add the options that say what a foreign checkpoint holds."""
    options = (
        click.option(
            "--architecture",
            help="Of foreign weights, or your own code: a name, torchvision:NAME, timm:NAME, module:function.",
        ),
        click.option("--classes", type=click.IntRange(1), help="Number of classes of foreign weights."),
        click.option("--input-shape", help="C,H,W of foreign weights, e.g. 3,32,32."),
        click.option("--mean", help="Their normalisation, a number a channel, e.g. 0.49,0.48,0.45."),
        click.option("--std", help="Their normalisation, a number a channel."),
    )
    # The last decorator's option is the first that help shows.
    for option in reversed(options):
        command = option(command)
    return command


def open_detector(
    path: Path, foreign: Mapping[str, str | int | None], device: "torch.device | str" = "cpu"
) -> "Detector":
    """The detector of a run, checkpoint or ONNX file, or foreign weights where --architecture says what they are."""
    from certood.checkpoints import is_onnx, load, load_checkpoint
    from certood.checkpoints.own import is_own
    from certood.checkpoints.weights import require_file

    architecture, classes, given_shape = (foreign.get(name) for name in ("architecture", "classes", "input_shape"))
    if not is_onnx(path):
        if architecture is None or is_own(path):
            needless = [
                f"--{name.replace('_', '-')}" for name, value in foreign.items() if value and name != "architecture"
            ]
            if needless:
                raise click.UsageError(
                    f"{', '.join(needless)} describe foreign weights, which {path} is not, or need --architecture too"
                )
            return load_checkpoint(path, device, architecture=None if architecture is None else str(architecture))
        require_file(path)
        missing = [name for name in ("classes", "input_shape") if foreign.get(name) is None]
        if missing:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
            raise click.UsageError(f"foreign weights need {flags} beside --architecture")
        plain = [f"--{name}" for name in ("mean", "std") if not foreign.get(name)]
        if plain:
            click.echo(
                f"Without {' and '.join(plain)}: images enter the network "
                f"{'as they are, in [0, 1]' if len(plain) == 2 else 'without that half of a normalisation'}; give both where it "
                "was trained on normalised ones.",
                err=True,
            )
    shape = None if given_shape is None else _shape(str(given_shape))
    channels = None if shape is None else shape[0]
    mean, std = (
        _numbers(str(foreign[name]), f"--{name}", channels) if foreign.get(name) else None for name in ("mean", "std")
    )
    return load(
        path,
        architecture=None if architecture is None else str(architecture),
        classes=None if classes is None else int(classes),
        input_shape=shape,
        mean=mean,
        std=std,
        device=device,
    )


def chosen_score(detector: "Detector", score_name: str | None) -> "Score":
    """The score that is asked for, with its parameters; the detector's own where none is, or its name alone.

    A detector of pytorch-ood is the score that it equals. Raises CertoodError for a score that is not known, that the network
    does not have, or that equals none with bounds.
    """
    from certood.bridges.pytorch_ood import equal_score
    from certood.bridges.pytorch_ood_sets import PREFIX
    from certood.errors import CertoodError
    from certood.scores import score_by_name

    theirs = score_name is not None and score_name.startswith(f"{PREFIX}:")
    equal = equal_score(score_name) if score_name is not None and theirs else None
    if theirs and equal is None:
        raise CertoodError(
            f"{score_name} has no bounds, and cannot be certified: measure it with `certood evaluate --detector`; ReAct and DICE "
            "can be certified as detectors that `certood modify` makes"
        )
    own = score_name is None or score_name == detector.score.name
    score = equal or (detector.score if own else score_by_name(score_name or "", detector.score))
    detector.reading(score)
    return score


def calibrated(detector: "Detector", splits: "IdSplits", score_name: str | None, *, foreign: bool) -> "Detector":
    """The detector with the score that is asked for, and γ for it from the validation images, which is announced.

    Its own score keeps the γ that is stored with it; only foreign weights cannot have one. Raises CannotCertify for a
    checkpoint of certood without γ, CertoodError for a score that the network does not have.
    """
    from dataclasses import replace

    from certood.errors import MissingThreshold

    score = chosen_score(detector, score_name)
    if score == detector.score:
        if detector.threshold is not None:
            return detector
        if not foreign:
            raise MissingThreshold
    found = replace(detector, score=score).calibrated(splits.validation, device=detector.device)
    click.echo(
        f"γ = {found.threshold:.6g} for score {score.label}: accepts {found.tpr:.0%} of {len(splits.validation)} "
        "validation images"
    )
    return found


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(
            f"expected channels, height and width such as 3,32,32, got {text!r}", param_hint="--input-shape"
        )
    channels, height, width = map(int, parts)
    return channels, height, width


def _numbers(text: str, option: str, count: int | None) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(
            f"expected {count or ''} numbers separated by commas, got {text!r}".replace("  ", " "), param_hint=option
        ) from error
    if not all(math.isfinite(number) for number in numbers):
        raise click.BadParameter(f"expected finite numbers, got {text!r}", param_hint=option)
    if count is not None and len(numbers) != count:
        raise click.BadParameter(f"expected {count} numbers, got {len(numbers)}", param_hint=option)
    return numbers
