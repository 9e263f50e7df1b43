"""What a reader of image sets is asked for."""

from dataclasses import dataclass
from pathlib import Path

from certood.data.form import Form


@dataclass(frozen=True)
class Request:
    """A set by its full `name`, which of its official splits ("train" or "test"), and the form of its images.

    `source` is the name without options: a known name, or KIND:PATH, of which `path` is the second half. Relative paths
    start at `root`.
    """

    name: str
    source: str
    root: Path
    split: str
    form: Form

    @property
    def path(self) -> Path:
        """The path of a set named by kind and path."""
        return self.root / self.source.partition(":")[2]
