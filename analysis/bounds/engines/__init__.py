"""Engines that bound networks behind one interface: certood's own, and others that may be installed beside it."""

from certood.analysis.bounds.engines.auto_lirpa import AutoLirpaEngine
from certood.analysis.bounds.engines.base import Engine
from certood.analysis.bounds.engines.linear_bounds import LinearBoundEngine
from certood.errors import CertoodError

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (LinearBoundEngine(), AutoLirpaEngine())}

__all__ = ["ENGINES", "Engine", "engine_by_name"]


def engine_by_name(name: str) -> Engine:
    """The engine of a name; raises CertoodError for an unknown one."""
    if name not in ENGINES:
        raise CertoodError(f"unknown engine {name!r}; expected {' or '.join(ENGINES)}")
    return ENGINES[name]
