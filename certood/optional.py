"""Packages that only some users need."""

import importlib
from types import ModuleType

from certood.errors import CertoodError


def optional(module: str, missing: CertoodError) -> ModuleType:
    """A module by its dotted name; raises `missing`, which names what to install, where it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing from error
