"""What the quick run of the tests, -m "not slow", takes of a family of tests that are alike."""

from collections.abc import Iterable
from typing import Any

import pytest


def first_is_quick(values: Iterable[Any]) -> list[Any]:
    """Values of a parameter, of which all but the first are marked as slow."""
    values = list(values)
    return every_is_quick(max(1, len(values)), values)


def every_is_quick(step: int, values: Iterable[Any]) -> list[Any]:
    """Values of a parameter, of which all but each `step`-th are marked as slow."""
    return [
        value if place % step == 0 else pytest.param(value, marks=pytest.mark.slow)
        for place, value in enumerate(values)
    ]
