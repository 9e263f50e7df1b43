"""Tables as plain text: the same on a terminal and in a file, every cell on one line and every name in full."""

from collections.abc import Collection, Sequence

INDENT = "  "


class TextTable:
    """Rows below heads in aligned columns, those at the places `left` to the left, and lines between the rows.

    A long name is best a line of its own, above the rows that are about it, so that it widens no column.
    """

    def __init__(self, heads: Sequence[str], *, title: str = "", left: Collection[int] = (0,)) -> None:
        self.heads = tuple(heads)
        self.title = title
        self.left = frozenset(left)
        self._parts: list[str | tuple[str, ...]] = []

    def line(self, text: str) -> None:
        """Add a line that is no row, such as the name of what the next rows are about."""
        self._parts.append(text)

    def row(self, *cells: str) -> None:
        """Add a row; what it lacks at the end is empty."""
        self._parts.append(cells + ("",) * (len(self.heads) - len(cells)))

    def __str__(self) -> str:
        rows = [self.heads, *(part for part in self._parts if not isinstance(part, str))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [self.title, ""] if self.title else []
        for part in (self.heads, *self._parts):
            if isinstance(part, str):
                lines.append(part)
                continue
            cells = [
                cell.ljust(width) if place in self.left else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(part, widths, strict=True))
            ]
            lines.append((INDENT + INDENT.join(cells)).rstrip())
        return "\n".join(lines)
