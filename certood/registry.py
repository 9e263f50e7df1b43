"""Families of interchangeable parts by name: built-in members, and those of other packages by Python entry points."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar, cast

from certood.errors import CertoodError
from certood.suggestions import did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """The members of a family by name: dataclasses whose fields are their parameters.

    `members` are built in. Others come from installed packages that declare an entry point of `group`, for example
    `soft = "package.module:SoftSampler"` under `[project.entry-points."certood.samplers"]`; they are imported when they are
    asked for by name.
    """

    def __init__(self, family: str, group: str, members: Mapping[str, type[T]]) -> None:
        self.family = family
        self.group = group
        self._members = dict(members)

    @cached_property
    def _entries(self) -> dict[str, list[EntryPoint]]:
        entries: dict[str, list[EntryPoint]] = {}
        for entry in entry_points(group=self.group):
            entries.setdefault(entry.name, []).append(entry)
        return entries

    def names(self) -> list[str]:
        """All names: the built-in ones, then those of other packages; nothing is imported."""
        return [*self._members, *sorted(self._entries.keys() - self._members.keys())]

    def register(self, name: str, member: type[T]) -> None:
        """Add a member for this process; raises CertoodError where the name is taken or the member is no dataclass."""
        if name in self._members or name in self._entries:
            raise CertoodError(f"there is a {self.family} {name!r} already; choose another name")
        self._members[name] = self._checked(name, member, "register()")

    def unregister(self, name: str) -> None:
        """Remove a member that was added by `register`."""
        del self._members[name]

    def find(self, name: str) -> type[T]:
        """The member of that name.

        Raises CertoodError that names the nearest known one where there is none, or the package at fault where a member of
        another package cannot be imported, is no dataclass, or bears a name that is taken.
        """
        found = self._entries.get(name, [])
        if name in self._members:
            if found:
                raise CertoodError(
                    f"{_origin(found[0])} declares a {self.family} {name!r}, which certood has itself; rename or uninstall it"
                )
            return self._members[name]
        if not found:
            hint = did_you_mean(name, self.names())
            raise CertoodError(f"unknown {self.family} {name!r}{hint} Known: {', '.join(self.names())}")
        if len(found) > 1:
            raise CertoodError(
                f"{' and '.join(map(_origin, found))} both declare a {self.family} {name!r}; uninstall one of them"
            )
        try:
            member = found[0].load()
        except Exception as error:
            raise CertoodError(
                f"the {self.family} {name!r} of {_origin(found[0])} cannot be imported ({type(error).__name__}: {error}); "
                "mend or uninstall that package"
            ) from error
        return self._checked(name, member, _origin(found[0]))

    def importable(self) -> dict[str, type[T]]:
        """Every member that can be imported, by name; one that cannot is named when it is asked for."""
        members = {}
        for name in self.names():
            try:
                members[name] = self.find(name)
            except CertoodError:
                continue
        return members

    def _checked(self, name: str, member: object, origin: str) -> type[T]:
        if not isinstance(member, type) or not is_dataclass(member):
            raise CertoodError(
                f"the {self.family} {name!r} of {origin} must be a dataclass, whose fields are its parameters; "
                f"found {member!r}"
            )
        return cast(type[T], member)


def _origin(entry: EntryPoint) -> str:
    package = entry.dist.name if entry.dist is not None else "an unknown package"
    return f"{package} ({entry.value})"


def named_parameters(text: str) -> tuple[str, dict[str, str]]:
    """The name and the parameters of a member that a text gives: "name", "name:key=value,key=value"."""
    name, _, rest = text.partition(":")
    pairs = [part.partition("=") for part in rest.split(",")] if rest else []
    return name, {key.strip(): value.strip() for key, _, value in pairs}
