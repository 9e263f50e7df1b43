"""Columns and cells of a report's tables: how numbers read, and which of them is best beyond its uncertainty."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from certood.analysis.intervals import Interval

# A cell K may have K_low and K_high beside it, its 95 % interval, and K_deviation, the standard deviation over seeds.
Row = Mapping[str, Any]
LOW, HIGH, DEVIATION = "_low", "_high", "_deviation"
NORM_NAMES = {"inf": "l∞", "2": "l2", "1": "l1"}
# What rows must agree in for their cells to be compared.
ALIKE = ("set", "norm", "eps", "sigma", "confidence", "certified_score", "certified_images")


@dataclass(frozen=True)
class Column:
    """A column of a table: its key in a row, what people read above it, the format of its numbers.

    `lowest` says which number is best: the lowest, the highest, or none (None). A column of text has no format. Cells compare
    between rows that agree in the keys `alike`; `hint` explains the head.
    """

    key: str
    head: str
    format: str = ""
    lowest: bool | None = None
    alike: tuple[str, ...] = ALIKE
    hint: str = ""

    @property
    def text(self) -> bool:
        """Whether the cells are text."""
        return not self.format

    def cell(self, row: Row) -> str:
        """The cell as people read it, with the deviation over seeds; what is not known, or not a number, is a dash."""
        return " ".join(filter(None, (self.number(row.get(self.key)), self.deviation(row))))

    def deviation(self, row: Row) -> str:
        """The deviation over seeds as people read it; empty where there is none."""
        found = row.get(self.key + DEVIATION)
        return "" if found is None or not math.isfinite(found) else f"± {self.number(found)}"

    def value(self, row: Row) -> float | None:
        """The number of the cell; None for text, and where it is not known."""
        value = row.get(self.key)
        return None if isinstance(value, str) or value is None or math.isnan(value) else float(value)

    def interval(self, row: Row) -> Interval | None:
        """The 95 % interval of the cell; None where it is not known."""
        low, high = row.get(self.key + LOW), row.get(self.key + HIGH)
        return None if low is None or high is None or math.isnan(low) or math.isnan(high) else (float(low), float(high))

    def interval_text(self, row: Row) -> str:
        """The interval as people read it; empty where it is not known."""
        found = self.interval(row)
        return "" if found is None else " to ".join(self.number(end) for end in found)

    def number(self, value: Any) -> str:
        """A value of this column as people read it."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "–"
        if isinstance(value, str) or not self.format:
            return str(value)
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        # Four significant digits would turn a large constant into a power of ten.
        text = f"{value:.0f}" if self.format == ".4g" and abs(value) >= 1000 else f"{value:{self.format}}"
        return text.replace("-", "−")


def with_interval(key: str, value: float | None, interval: Interval | None) -> dict[str, float | None]:
    """A cell and the ends of its 95 % interval, as a row holds them; one that is infinite both ways says nothing."""
    low, high = interval if interval is not None and any(map(math.isfinite, interval)) else (None, None)
    return {key: value, key + LOW: low, key + HIGH: high}


def best_cells(rows: Sequence[Row], columns: Sequence[Column]) -> set[tuple[int, str]]:
    """(row, column) of the cells that are best beyond their uncertainty among the rows that they compare with.

    The best value, with all that read the same, is marked where no other value's 95 % interval overlaps its own. So nothing is
    marked where fewer than two rows compete, where all read the same, and where an interval is not known.
    """
    best: set[tuple[int, str]] = set()
    for column in columns:
        if column.lowest is None:
            continue
        groups: dict[tuple[Any, ...], dict[int, float]] = {}
        for index, row in enumerate(rows):
            value = column.value(row)
            if value is not None:
                groups.setdefault(tuple(row.get(key) for key in column.alike), {})[index] = value
        for values in groups.values():
            target = min(values, key=lambda index: values[index] if column.lowest else -values[index])
            equal = [index for index in values if column.number(values[index]) == column.number(values[target])]
            others = [index for index in values if index not in equal]
            if others and all(
                _apart(column.interval(rows[a]), column.interval(rows[b])) for a in equal for b in others
            ):
                best |= {(index, column.key) for index in equal}
    return best


def _apart(one: Interval | None, other: Interval | None) -> bool:
    return one is not None and other is not None and (one[1] < other[0] or other[1] < one[0])
