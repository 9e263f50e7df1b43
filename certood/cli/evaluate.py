"""`certood evaluate`: every score of a detector on every OOD set."""

from pathlib import Path

import click

from certood.cli.detectors import foreign_options
from certood.cli.image_sets import ImageSetOptions, image_set_options
from certood.waiting import busy


def _resamplings(context: click.Context, option: click.Parameter, number: int) -> int:
    if number == 1:
        raise click.BadParameter("one resampling has no interval; 0, or at least 2, such as 1000")
    return number


@click.command("evaluate")
@click.argument("run", type=click.Path(path_type=Path))
@image_set_options
@click.option(
    "--score",
    "score_names",
    multiple=True,
    help="Only this score, e.g. msp or energy:temperature=2; give it once a score.",
)
@click.option(
    "--detector",
    "other_detectors",
    multiple=True,
    metavar="NAME",
    help="Also measure pytorch-ood:NAME[,key=value], fitted on the ID training images; give it once a detector.",
)
@click.option(
    "--near",
    multiple=True,
    metavar="SET",
    help="OOD set that is near the ID set, the others being far; give it once a set.",
)
@click.option(
    "--bootstrap",
    type=click.IntRange(0),
    default=0,
    callback=_resamplings,
    help="Resamplings for 95 % intervals.",
)
@click.option("--calibrate", is_flag=True, help="Compute γ from the validation images and store it in the checkpoint.")
@click.option(
    "--batch-size", type=click.IntRange(1), help="Images of a forward pass.  [default: by their size and the device]"
)
@click.option("--device", default="auto", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an evaluation of more scores or sets.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where to write.  [default: evaluation.json beside the checkpoint]"
)
@click.option(
    "--openood-csv",
    type=click.Path(path_type=Path),
    help="Also write OpenOOD's table of the detector's own score, or of the first --score, by OpenOOD's definitions.",
)
@foreign_options
def command(
    run: Path,
    score_names: tuple[str, ...],
    other_detectors: tuple[str, ...],
    near: tuple[str, ...],
    bootstrap: int,
    calibrate: bool,
    batch_size: int | None,
    device: str,
    overwrite: bool,
    out: Path | None,
    openood_csv: Path | None,
    sets: ImageSetOptions,
    **foreign: str | int | None,
) -> None:
    """Measure the detector of RUN: a run directory, a checkpoint, hf:OWNER/NAME, an ONNX file, or foreign weights."""
    with busy("Loading PyTorch"):
        from certood.bridges.hub import is_repository, run_and_results
        from certood.bridges.pytorch_ood import PostHocDetector, equal_score
        from certood.checkpoints import save_checkpoint
        from certood.checkpoints.own import is_own
        from certood.cli.detectors import open_detector
        from certood.devices import resolve_device
        from certood.errors import CertoodError
        from certood.evaluation import (
            dropped,
            evaluate,
            evaluation_table,
            measured_scores,
            read_evaluation,
            write_evaluation,
        )
        from certood.files import write_atomically
        from certood.openood import openood_csv as as_openood_csv
        from certood.runs import RunDirectory
        from certood.scores import score_by_name

    chosen = resolve_device(device)
    if calibrate and is_repository(run):
        raise click.UsageError(f"--calibrate stores γ in a checkpoint, and {run} is only read")
    run = run_and_results(run, out)
    detector = open_detector(run, foreign, chosen)
    splits, ood = sets.load(run, detector)
    files = RunDirectory.of(run)
    if calibrate and not is_own(run):
        raise click.UsageError("--calibrate stores γ in a checkpoint of certood; foreign weights have no place for it")
    out = out or files.evaluation
    _require_own_files(out, openood_csv)
    scores = [score_by_name(name, detector.score) for name in score_names]
    equal = {text: equal_score(text) for text in other_detectors}
    for text, score in equal.items():
        if score is not None:
            click.echo(f"{text} is the score {score.label}, which can be certified")
            scores = [*(scores or measured_scores(detector)), *([] if score in scores else [score])]
    others = {text: PostHocDetector(text, detector, chosen) for text, score in equal.items() if score is None}
    kept = [*(score.label for score in scores or measured_scores(detector)), *others]
    with RunDirectory.of(out).writing("evaluate"):
        if calibrate:
            detector = detector.calibrated(splits.validation, batch_size=batch_size, device=chosen, progress=True)
        old = None if overwrite else read_evaluation(out)
        lost = [] if old is None else dropped(old, detector, kept, ood)
        if lost:
            raise CertoodError(
                f"{out} also has {', '.join(lost)}, which this command would drop; choose another --out, or --overwrite"
            )
        if calibrate:
            save_checkpoint(detector, files.checkpoint if run.is_dir() else run)
        result = evaluate(
            detector,
            splits,
            ood,
            batch_size=batch_size,
            device=chosen,
            scores=scores or None,
            bootstrap=bootstrap,
            others={text: other.fit(splits.train) for text, other in others.items()},
            near=[sets.coloured(name) for name in near],
        )
        write_evaluation(out, result)
        if openood_csv is not None:
            write_atomically(
                openood_csv, as_openood_csv(result, scores[0].label if score_names else detector.score.label)
            )
    click.echo(evaluation_table(result))
    for written in filter(None, (out, openood_csv)):
        click.echo(f"Written: {written}")


def _require_own_files(out: Path, openood_csv: Path | None) -> None:
    """Raise an error where what would be written replaces something else, or each other."""
    from certood.errors import CertoodError
    from certood.files import refuse_foreign
    from certood.openood import is_openood_csv

    refuse_foreign(out, lambda content: b'"accuracy"' in content and b'"scores"' in content)
    if openood_csv is None:
        return
    if out.resolve() == openood_csv.resolve():
        raise CertoodError(f"--out and --openood-csv both name {out}: give each a file of its own")
    refuse_foreign(openood_csv, is_openood_csv)
