"""`certood modify`: ReAct or DICE of a trained detector, as a detector of its own."""

from pathlib import Path

import click

from certood.cli.detectors import foreign_options
from certood.cli.image_sets import ImageSetOptions, image_set_options
from certood.waiting import busy


@click.command("modify")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("modification")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run directory to write.")
@image_set_options
@click.option("--device", default="auto", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace the run in the run directory.")
@foreign_options
def command(
    run: Path,
    modification: str,
    out: Path,
    device: str,
    overwrite: bool,
    sets: ImageSetOptions,
    **foreign: str | int | None,
) -> None:
    """Change the detector of RUN without training: MODIFICATION is react[:percentile=0.9] or dice[:share=0.9].

    Both are fitted on the ID training images, and γ on the validation images. The run directory receives a checkpoint and its
    evaluation by every score, and the recipe of RUN with a record of the change; it is certified like any other.
    """
    with busy("Loading PyTorch"):
        from certood.bridges.hub import local_run
        from certood.cli.detectors import open_detector
        from certood.devices import resolve_device
        from certood.evaluation import evaluation_table
        from certood.modifications import modification_by_name
        from certood.modifications.run import write_modified

    run = local_run(run)
    chosen = modification_by_name(modification)
    detector = open_detector(run, foreign)
    splits, ood = sets.load(run, detector)
    found, result = write_modified(
        chosen, detector, splits, ood, run, out, device=resolve_device(device), overwrite=overwrite, progress=True
    )
    click.echo(f"γ = {found.threshold:.6g}: accepts {found.tpr:.0%} of {len(splits.validation)} validation images")
    click.echo(evaluation_table(result))
    click.echo(f"Run directory: {out}")
