"""The certificates of many images as they are handed to a user: a list of records, and a table of pandas."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from certood.analysis.records import Certificate, read_certificates, row
from certood.errors import CertoodError

if TYPE_CHECKING:
    import pandas as pd


class Certificates(list[Certificate]):
    """Records of images, one each, in the order in which they were certified."""

    @classmethod
    def read(cls, path: Path, eps: Sequence[float] | None = None) -> Self:
        """The records of a certificates.csv; raises RunDirectoryError where it does not read, or has other radii than `eps`."""
        return cls(read_certificates(path, eps)[0])

    def to_frame(self) -> "pd.DataFrame":
        """A row an image, with the columns of certificates.csv: text, booleans and numbers, none of them nested.

        What was not computed is not a number; a radius that no attack reached is infinite. Raises CertoodError
        where pandas is not installed.
        """
        try:
            import pandas as pd  # noqa: PLC0415 (optional)
        except ImportError as error:
            raise CertoodError("a table of pandas needs pandas: pip install 'certood[pandas]'") from error
        return pd.DataFrame([row(record) for record in self])
