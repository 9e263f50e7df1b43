"""`certood inspect`: which operations of a network can be bounded, and which cannot."""

from pathlib import Path

import click

from certood.cli.detectors import foreign_options
from certood.waiting import busy


@click.command("inspect")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--score", "score_name", help="Another score than the detector's own, e.g. energy:temperature=2.")
@click.option(
    "--bound-base",
    is_flag=True,
    help="List those of the classifier of a guarded detector as well, not its guard's alone.",
)
@foreign_options
def command(checkpoint: Path, score_name: str | None, bound_base: bool, **foreign: str | int | None) -> None:
    """List every operation of the network in CHECKPOINT, supported or not, and where it stands in the source.

    Exit code 0 where all are supported, 3 where one is not.
    """
    import sys
    from dataclasses import replace

    with busy("Loading PyTorch"):
        import torch

        from certood.analysis.bounds import list_operations
        from certood.bridges.hub import local_run
        from certood.cli.detectors import chosen_score, open_detector
        from certood.text_tables import TextTable

    checkpoint = local_run(checkpoint)
    detector = open_detector(checkpoint, foreign)
    score = chosen_score(detector, score_name)
    shape = "×".join(map(str, detector.input_shape))
    threshold = f"{detector.threshold:.6g}" if score == detector.score and detector.threshold is not None else "none"
    click.echo(
        f"{detector.architecture}: {len(detector.classes)} classes, images {shape}, score {score.label}, γ {threshold}"
    )
    part, _ = replace(detector, score=score).bounded_part(whole=bound_base)
    if detector.guard is not None and score.needs_guard:
        bounded = f"it and {detector.architecture} are" if bound_base else "it alone is"
        click.echo(f"guarded by {detector.guard.architecture}; {bounded} bounded")
    found = list_operations(part, torch.zeros(1, *detector.input_shape))
    table = TextTable(("operation", "times", "bounded", "first place in the source"), left=(0, 2, 3))
    for name in dict.fromkeys(part.name for part in found):
        same = [part for part in found if part.name == name]
        why = next((part.problem for part in same if part.problem), "")
        first = next((part for part in same if part.problem), same[0])
        table.row(name, str(len(same)), "no" if why else "yes", _near(first.source).partition(" in ")[0] or "–")
        if why:
            table.line(f"    {why}")
    click.echo(table)
    missing = sum(bool(part.problem) for part in found)
    if missing:
        click.echo(
            f"{missing} of {len(found)} operations cannot be bounded: this network cannot be certified as it is",
            err=True,
        )
        sys.exit(3)
    click.echo(f"all {len(found)} operations can be bounded")


def _near(source: str) -> str:
    """A place in the source, shortened to where the reader stands or to the package."""
    for start in (f"{Path.cwd()}/", f"{Path(__file__).parents[2]}/"):
        source = source.removeprefix(start)
    return source.rpartition("site-packages/")[2]
