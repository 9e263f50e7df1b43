"""`certood push`: a run as a repository of Hugging Face's hub."""

from pathlib import Path

import click

from certood.waiting import busy


@click.command("push")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("--public", is_flag=True, help="A repository that is made is public.  [default: private]")
def command(run: Path, name: str, public: bool) -> None:
    """Upload RUN to NAME, hf:OWNER/NAME: checkpoint, recipe, evaluation, certification and a model card.

    `certood.load("hf:OWNER/NAME")` opens it. Needs huggingface_hub (certood[hub]) and its login (`hf auth login`).
    """
    with busy("Loading PyTorch"):
        from certood.bridges.hub import push

    with busy("Uploading"):
        address = push(run, name, private=not public)
    click.echo(f"Pushed: {address}")
