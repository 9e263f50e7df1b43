"""The table of translators, and how functions enter it."""

from collections.abc import Callable
from typing import Any

from certood.analysis.bounds.calls import Call, Reference
from certood.analysis.bounds.operations import Operation

# A translator gives the operation of a node that reads all inputs of the call, or a value that it has made of several nodes.
Translator = Callable[[Call], Operation | Reference]

TRANSLATORS: dict[str, Translator] = {}


def translates(*names: str) -> Callable[[Translator], Translator]:
    """Register a translator for all overloads of ATen operations."""

    def register(translator: Translator) -> Translator:
        TRANSLATORS.update(dict.fromkeys(names, translator))
        return translator

    return register


def pair(value: Any) -> tuple[int, int]:
    """A size for each of two axes."""
    if isinstance(value, int):
        return value, value
    numbers = [int(number) for number in value]
    return numbers[0], numbers[-1]


def check_plain(call: Call, *ranks: int) -> None:
    """Refuse what is not (N, …) with so many axes."""
    for layout in (*(source.layout for source in call.inputs), call.layout):
        if not layout.is_plain or len(layout.shape) not in ranks:
            raise call.refusal(f"unless it works on (N, …) with {' or '.join(map(str, ranks))} axes")
