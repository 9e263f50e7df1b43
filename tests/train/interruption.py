"""Training that is interrupted, as by Ctrl-C."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from certood.train import epoch
from certood.train.assembly import Training


@contextmanager
def interrupted_after(epochs: int) -> Iterator[None]:
    """While entered, training is interrupted at the end of the epoch after so many whole ones; that it was is asserted."""
    probe = epoch.probe

    def interrupted(training: Training) -> tuple[float, float, float]:
        if training.epochs_done == epochs:
            raise KeyboardInterrupt
        return probe(training)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch, "probe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            yield
