"""What the quick run of the tests, -m "not slow", takes of a family of tests that are alike."""

from collections.abc import Iterable
from typing import Any

import pytest


def first_is_quick(values: Iterable[Any]) -> list[Any]:
    """Values of a parameter, of which all but the first are marked as slow."""
    first, *others = values
    return [first, *(pytest.param(value, marks=pytest.mark.slow) for value in others)]
