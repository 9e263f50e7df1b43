"""Image sets that must not share pictures: what is trained on, and what is measured on."""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations, product

from certood.data.hashing import image_digests
from certood.data.names import SetName
from certood.data.source import ImageSource
from certood.errors import DataError


def require_disjoint(roles: Mapping[str, Sequence[ImageSource]], allowed: Collection[str] = ()) -> None:
    """Raise DataError where sets of two roles are the same set, or share pictures (equal shape and pixels).

    `roles` names what sets are used for. Sets of one role are not compared with each other. Two names are the same set
    where they differ only in options and have a class in common (or one has no classes). `allowed` are names, with or without
    their options, of sets that may share: they are not read. Every other set is read once, whole.
    """
    digests: dict[int, set[bytes]] = {}

    def pictures(source: ImageSource) -> set[bytes]:
        if id(source) not in digests:
            digests[id(source)] = set(image_digests(source))
        return digests[id(source)]

    for (one, first_sets), (two, second_sets) in combinations(roles.items(), 2):
        for first, second in product(first_sets, second_sets):
            if _allowed(first, allowed) or _allowed(second, allowed):
                continue
            what = f"{first.name} ({one}) and {second.name} ({two})"
            remedy = f'choose another set, or allow it by name: data.allow_shared = ["{second.name}"]'
            if _same(first, second):
                raise DataError(f"{what} are the same set; {remedy}")
            shared = len(pictures(first) & pictures(second))
            if shared:
                raise DataError(f"{what} share {shared} pictures; {remedy}")


def require_named(allowed: Collection[str], roles: Mapping[str, Sequence[ImageSource]]) -> None:
    """Raise DataError where a set that may share pictures is none of the sets that are compared: a name that was misspelt."""
    every = [source for sources in roles.values() for source in sources]
    for name in allowed:
        if not any(_allowed(source, (name,)) for source in every):
            known = ", ".join(dict.fromkeys(source.name for source in every))
            raise DataError(
                f"{name} may share pictures, but is none of the sets: {known}; leave it out, or mend its name"
            )


def may_share(name: str, allowed: Collection[str]) -> bool:
    """Whether a set is among the names `allowed`, which are with or without its options."""
    return name in allowed or SetName.parse(name).source in allowed


def _allowed(source: ImageSource, allowed: Collection[str]) -> bool:
    return may_share(source.name, allowed)


def _same(first: ImageSource, second: ImageSource) -> bool:
    if SetName.parse(first.name).source != SetName.parse(second.name).source:
        return False
    both = bool(first.classes) and bool(second.classes)
    return not both or bool(set(first.classes) & set(second.classes))
