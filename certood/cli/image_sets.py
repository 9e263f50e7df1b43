"""The image sets that a command is about: the run's own, or those that its options name."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certood.waiting import busy

if TYPE_CHECKING:
    from certood.data import IdSplits, ImageSource
    from certood.detector import Detector

Command = Callable[..., Any]


@dataclass(frozen=True)
class ImageSetOptions:
    """What `image_set_options` read, by the parameters' names of `certood.runs.load_run_data`."""

    id_name: str | None
    id_test: str | None
    ood: tuple[str, ...]
    allow_shared: tuple[str, ...]
    data_root: Path | None
    channels: str | None

    def coloured(self, name: str) -> str:
        """The name of a set that is named beside --channels."""
        from certood.data.names import SetName

        return name if self.channels is None else SetName.parse(name).with_colour(self.channels)

    def load(self, run: Path, detector: "Detector") -> "tuple[IdSplits, Mapping[str, ImageSource]]":
        """The ID splits and OOD sets of a run, or those that are named instead (see `load_run_data`)."""
        from certood.runs import load_run_data

        named = [name for name in (self.id_name, self.id_test, *self.ood) if name is not None]
        if self.channels is not None and not named:
            raise click.UsageError("--channels is about sets that are named beside it: add --id, --id-test or --ood")
        coloured = {name: self.coloured(name) for name in named}
        with busy("Reading image sets"):
            return load_run_data(
                run,
                id_name=None if self.id_name is None else coloured[self.id_name],
                id_test=None if self.id_test is None else coloured[self.id_test],
                ood=[coloured[name] for name in self.ood],
                root=self.data_root,
                recorded=detector.split,
                allow_shared=[coloured.get(name, name) for name in self.allow_shared],
            )


def image_set_options(command: Command) -> Command:
    """Add the options that name image sets, which the command gets as one argument `sets`."""

    @functools.wraps(command)
    def with_sets(
        *arguments: Any,
        id_name: str | None,
        id_test: str | None,
        ood: tuple[str, ...],
        allow_shared: tuple[str, ...],
        data_root: Path | None,
        channels: str | None,
        **others: Any,
    ) -> Any:
        sets = ImageSetOptions(id_name, id_test, ood, allow_shared, data_root, channels)
        return command(*arguments, sets=sets, **others)

    found: Command = with_sets
    for option in reversed(
        (
            click.option("--id", "id_name", help="In-distribution set.  [default: the run's own]"),
            click.option("--id-test", help="Its test images, where they are a set of their own."),
            click.option("--ood", multiple=True, help="OOD set; give it once a set.  [default: the run's own]"),
            click.option(
                "--allow-shared",
                multiple=True,
                help="Set that may share pictures with sets of another use; an error otherwise.",
            ),
            click.option(
                "--data-root",
                type=click.Path(path_type=Path),
                help="Folder of the image sets.  [default: the run's own]",
            ),
            click.option(
                "--channels",
                metavar="COLOUR",
                help="rgb makes grey sets colour, and grey colour sets grey: ?colour=COLOUR for every set named here.",
            ),
        )
    ):
        found = option(found)
    return found
