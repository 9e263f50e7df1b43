"""`certood report`: theory beside benchmark of some runs, in one file."""

import warnings
from pathlib import Path

import click

from certood.cli.comparing import near_option, run_folders
from certood.waiting import busy


@click.command("report")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="File to write.  [default: report.html beside a single run's files]"
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["html", "json", "csv", "latex"]),
    default="html",
    show_default=True,
    help="The page, or its tables alone (to standard output without --out).",
)
@near_option
def command(runs: tuple[Path, ...], out: Path | None, kind: str, near: tuple[str, ...]) -> None:
    """Compare RUNS, directories or repositories hf:OWNER/NAME that were evaluated or certified, in one self-contained page."""
    from certood.analysis import report
    from certood.errors import LeftOutWarning

    folders = run_folders(runs)
    if kind == "html":
        from certood.bridges.hub import require_out

        if len(folders) == 1:
            require_out(folders[0], out)
        out = out or (folders[0] / "report.html" if len(folders) == 1 else Path("report.html"))
    with busy("Reading the runs"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LeftOutWarning)
        text = report(folders, out, format=kind, near=near)
    for warning in caught:
        if issubclass(warning.category, LeftOutWarning):
            click.echo(f"Left out: {warning.message}", err=True)
    if out is None:
        click.echo(text, nl=False)
    else:
        click.echo(f"Written: {out}")
