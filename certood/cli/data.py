"""`certood data`: which image sets there are, whether they are in order, and how to get them."""

from pathlib import Path

import click

from certood.waiting import busy

ROOT = click.option(
    "--data-root", type=click.Path(path_type=Path), default=Path("data"), show_default=True, help="Folder of the sets."
)


@click.group("data")
def command() -> None:
    """List, check and fetch image sets."""


@command.command("list")
@ROOT
def list_sets(data_root: Path) -> None:
    """List the sets that have a name, and whether they are here."""
    with busy("Loading PyTorch"):
        from certood.data import load_set
        from certood.data.catalogue import KINDS, NAMED_SETS
        from certood.errors import DataError
        from certood.text_tables import TextTable

    table = TextTable(("name", "here", "what", "train / test"), left=(0, 1, 2))
    for name, known in NAMED_SETS.items():
        try:
            found = load_set(name, root=data_root, size=32 if known.any_size else None)
            here, count = "yes", f"{len(found):,}"
        except DataError:
            here, count = "no", ""
        table.row(name, here, known.title, known.sizes or count)
    for kind, of_kind in KINDS.items():
        table.row(f"{kind}:{of_kind.argument}", "", of_kind.title)
    click.echo(table)
    click.echo(
        "Options: NAME?classes=a-m,x&images=N&colour=grey|rgb\n         &size=N|crop=N|pad=N&background=black|white"
    )


@command.command("check")
@click.argument("names", nargs=-1, required=True)
@click.option("--size", type=int, help="Resize to this many pixels a side.")
@click.option("--split", type=click.Choice(["train", "test"]), default="test", show_default=True)
@ROOT
def check(names: tuple[str, ...], size: int | None, split: str, data_root: Path) -> None:
    """Load sets whole, count what is in them, and look for images that stand in two."""
    with busy("Loading PyTorch"):
        from certood.data import load_set
        from certood.data.check import describe, shared_images

    loaded = [load_set(name, root=data_root, split=split, size=size) for name in names]
    for source in loaded:
        click.echo(describe(source))
    for index, first in enumerate(loaded):
        for second in loaded[index + 1 :]:
            click.echo(f"{first.name} and {second.name} share {shared_images(first, second)} images")


@command.command("fetch")
@click.argument("names", nargs=-1, required=True)
@ROOT
def fetch_sets(names: tuple[str, ...], data_root: Path) -> None:
    """Download torchvision's sets."""
    with busy("Loading PyTorch"):
        from certood.data import fetch

    for name in names:
        fetch(name, root=data_root)
        click.echo(f"{name}: in {data_root}")
