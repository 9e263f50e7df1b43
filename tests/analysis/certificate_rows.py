"""What a certificates.csv says, for tests that compare two of them."""

import csv
from pathlib import Path


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of certificates.csv in a fixed order, without what time they took."""
    with (folder / "certificates.csv").open() as file:
        found = [{name: cell for name, cell in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    return sorted(found, key=lambda row: (row["set"], int(row["index"])))
