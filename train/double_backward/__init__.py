"""Operations whose double backward, which the exact gradient term takes, is slow in PyTorch."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from certood.train.double_backward.batch_norm import closed_form_normalisation
from certood.train.double_backward.operations import ClosedForms


@contextmanager
def closed_forms(model: nn.Module) -> Iterator[None]:
    """While entered, what this model computes is differentiated twice by formulas of our own, where there are such.

    Values and first gradients are PyTorch's.
    """
    with closed_form_normalisation(model), ClosedForms():
        yield
