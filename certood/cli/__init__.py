"""The command line: one module a command, imported only when that command runs."""

import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from certood import __version__
from certood.cli.interruption import leave, signals
from certood.errors import CertoodError
from certood.suggestions import did_you_mean

COMMANDS = {
    "demo": "The whole path on bundled images, in about three minutes.",
    "recipe": "List, show, explain and write recipes.",
    "train": "Train a detector from a recipe.",
    "modify": "ReAct or DICE of a trained detector, which can be certified.",
    "study": "Train arms × seeds from one file, and compare them.",
    "evaluate": "Measure a detector: every score on every OOD set.",
    "certify": "Certify a detector: radii, Lipschitz constants, attacks, guaranteed metrics.",
    "merge": "Put together what the jobs of a certification have written.",
    "export": "Write what is certified as ONNX and VNN-LIB, for other verifiers.",
    "check": "Verify what was exported, without the bounds that it was certified by.",
    "push": "Upload a run to Hugging Face's hub, with a model card.",
    "report": "Theory beside benchmark of some runs, in one HTML file.",
    "compare": "Means over seeds, and paired differences with intervals.",
    "inspect": "List what of a network can be bounded.",
    "data": "List, check and fetch image sets.",
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports `certood.cli.NAME` when NAME runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of a user's work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command object, imported now."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"certood.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is named; one that is not known is a usage error with the nearest name."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS and not ctx.resilient_parsing:
            ctx.fail(f"No such command {args[0]!r}{did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an interruption ends it with one line."""
        with signals():
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt as interrupt:
                leave(interrupt)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run; a CertoodError becomes one message on stderr and its exit code, `--debug` may stand anywhere."""
        given = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in given
        try:
            return super().main([argument for argument in given if argument != "--debug"], *rest, **extra)
        except CertoodError as error:
            if debug:
                click.echo(traceback.format_exc(), err=True)
            click.echo(f"Error: {error}", err=True)
            sys.exit(error.exit_code)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="certood %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Train out-of-distribution detectors by gradient regularisation, measure them, and certify them."""
