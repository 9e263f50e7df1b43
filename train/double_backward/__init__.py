"""Operations whose double backward, which the exact gradient term takes, is slow in PyTorch."""

from certood.train.double_backward.operations import ClosedForms

__all__ = ["ClosedForms"]
