"""`certood recipe explain`: how numbers of a run came about."""

from pathlib import Path

import click

from certood.waiting import busy


@click.command("explain")
@click.argument("run", type=click.Path(path_type=Path))
def explain(run: Path) -> None:
    """Print how the margins and the λ_∇ of RUN came about that its recipe left to the starting network ("auto")."""
    with busy("Loading PyTorch"):
        from certood.errors import RunDirectoryError
        from certood.runs import RunDirectory
        from certood.train.automatic import explain_run

    if not run.exists():
        raise RunDirectoryError(f"no run directory {run}")
    click.echo("\n".join(explain_run(RunDirectory.of(run))))
