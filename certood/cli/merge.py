"""`certood merge`: what the jobs of a certification have written becomes one file."""

from pathlib import Path

import click


@click.command("merge")
@click.argument("run", type=click.Path(path_type=Path))
def command(run: Path) -> None:
    """Merge what jobs of `certood certify RUN --executor` have certified into certificates.csv of RUN, the folder they write to.

    `certify` does it by itself at the end. Shares of other settings, and two certificates of one image that differ, are errors;
    images that are missing are named, with exit code 2: the `certify` command given again certifies those alone.
    """
    from certood.analysis.shares import merge_begun
    from certood.errors import RunDirectoryError
    from certood.runs import RunDirectory

    count, missing = merge_begun(RunDirectory.of(run))
    click.echo(f"Merged: {count} certificates")
    if missing:
        gaps = "; ".join(f"{len(indices)} of {name} ({_first(indices)})" for name, indices in missing.items())
        raise RunDirectoryError(f"images without a certificate: {gaps}; the same certify command goes on with them")
    click.echo("No image is missing; the same certify command writes certification.json.")


def _first(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:5])) + (", …" if len(indices) > 5 else "")
