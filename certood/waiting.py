"""What a command is busy with before its first result, said on a terminal at once."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

ERASE = "\r\033[K"


@contextmanager
def busy(what: str, *, enabled: bool = True) -> Iterator[None]:
    """Within: "`what` …" stands on the terminal, and is gone afterwards; nothing where standard error is no terminal."""
    if not enabled or not sys.stderr.isatty():
        yield
        return
    print(f"{what} …", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print(ERASE, end="", file=sys.stderr, flush=True)
