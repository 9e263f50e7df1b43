"""Ctrl-C and SIGTERM: what is finished is kept, one line says how to go on, and the exit code is 130 or 143."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import click

INTERRUPTED, TERMINATED = 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM came; it unwinds as Ctrl-C does."""


@contextmanager
def interruptible(how_to_go_on: str) -> Iterator[None]:
    """Within a command: the line that tells what is kept and how to go on, should it be interrupted."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(how_to_go_on)
        raise


@contextmanager
def signals() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C, where this is the main thread; the former handler comes back at the end."""
    try:
        former = signal.signal(signal.SIGTERM, _terminate)
    except ValueError:  # not the main thread: whoever started it handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former if former is not None else signal.SIG_DFL)


def leave(interrupt: KeyboardInterrupt) -> NoReturn:
    """End the command with its one line and its exit code."""
    terminated = isinstance(interrupt, Terminated)
    notes = getattr(interrupt, "__notes__", None) or ["Nothing was changed; run the same command again."]
    click.echo(f"{'Terminated' if terminated else 'Interrupted'}. {notes[0]}", err=True)
    sys.exit(TERMINATED if terminated else INTERRUPTED)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
