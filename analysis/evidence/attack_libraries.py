"""The libraries whose attacks can be asked for a second opinion."""

from certood.analysis.evidence.attack_library import AttackLibrary
from certood.analysis.evidence.foolbox_attacks import FoolboxAttacks
from certood.errors import CertoodError

LIBRARIES: dict[str, AttackLibrary] = {library.name: library for library in (FoolboxAttacks(),)}


def library_by_name(name: str) -> AttackLibrary:
    """The library of a name; raises CertoodError for an unknown one."""
    if name not in LIBRARIES:
        raise CertoodError(f"unknown second attack {name!r}; expected {' or '.join(LIBRARIES)}")
    return LIBRARIES[name]
