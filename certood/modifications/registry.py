"""The modifications by name, with their parameters as texts give them.

Installed packages add modifications by entry points of the group `certood.modifications`.
"""

from dataclasses import fields

from certood.errors import CertoodError
from certood.modifications.base import Modification
from certood.modifications.dice import DICE
from certood.modifications.react import ReAct
from certood.registry import Registry, named_parameters

MODIFICATIONS: Registry[Modification] = Registry(
    "modification", "certood.modifications", {"react": ReAct, "dice": DICE}
)


def modification_by_name(text: str) -> Modification:
    """The modification that a text names, with parameters where it gives them: "react", "react:percentile=0.95".

    Raises CertoodError for an unknown name, which names the nearest known one, and for parameters that do not fit.
    """
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 (the command line says first what it loads)

    name, parameters = named_parameters(text)
    kind = MODIFICATIONS.find(name)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for key in parameters:
        if key not in known:
            raise CertoodError(f"modification {name!r} has no parameter {key!r}; expected {', '.join(known) or 'none'}")
    try:
        return TypeAdapter(kind).validate_python(parameters)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise CertoodError(f"modification {text!r}: {place}: {first['msg'].lower()}") from error
