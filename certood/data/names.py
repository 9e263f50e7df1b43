"""What a set's name says: where it is, which of its classes, and in which form."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import unquote

from certood.data.form import Form
from certood.errors import DataError

NUMBERS = ("size", "crop", "pad")
OPTIONS = ("classes", "images", "colour", *NUMBERS, "background")


@dataclass(frozen=True)
class SetName:
    """A name taken apart: `source` (a known name, or KIND:PATH), `classes` and number of `images` (None for all), and form."""

    text: str
    source: str
    classes: str | None
    images: int | None
    form: Form

    @classmethod
    def parse(cls, text: str, size: int | None = None) -> "SetName":
        """The parts of `SOURCE?option=value&option=value`; options are classes, images, colour, size, crop, pad,
        background.

        `size` is that of all sets (`data.size`); a set's own size, crop or pad takes its place. A path that holds a
        question mark cannot be named. Raises DataError for an option that is unknown, given twice or has a value that it
        does not take.
        """
        source, mark, query = text.partition("?")
        given: dict[str, str] = {}
        for part in query.split("&") if mark else ():
            key, equals, value = part.partition("=")
            if key not in OPTIONS or not equals or not value:
                raise DataError(
                    f"image set {text!r}: expected option=value after the question mark, joined by &, with the options "
                    f"{', '.join(OPTIONS)}; found {part!r}"
                )
            if key in given:
                raise DataError(f"image set {text!r}: the option {key} is given twice")
            given[key] = value
        classes = given.pop("classes", None)
        try:
            images = _number("images", given.pop("images")) if "images" in given else None
            form = Form(**{key: _number(key, value) if key in NUMBERS else value for key, value in given.items()})  # type: ignore[arg-type]
            form = form if form.side else replace(form, size=size)
        except DataError as error:
            raise DataError(f"image set {text!r}: {error}") from error
        return cls(text, source, classes, images, form)

    def with_colour(self, colour: str) -> str:
        """The name of the same set in that colour, where the name says nothing of it; raises DataError for another colour."""
        joined = "&" if "?" in self.text else "?"
        return self.text if self.form.colour is not None else SetName.parse(f"{self.text}{joined}colour={colour}").text


def _number(key: str, value: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        raise DataError(f"{key} is a number{'' if key == 'images' else ' of pixels'}, found {value!r}")
    return int(value)


def selected_classes(text: str, classes: Sequence[str], name: str) -> list[int]:
    """Which of these class names a selection names: indices, sorted.

    The selection is a list of class names and ranges FIRST-LAST of them in label order, joined by commas; a character of
    a name that would be read as part of the syntax (comma, hyphen, &, ?) is written %XX. A class whose name is the whole
    item comes before a range. Raises DataError for a name that is unknown and a range that is backwards or ambiguous.
    """
    position = {label: index for index, label in enumerate(classes)}
    chosen: set[int] = set()
    for item in text.split(","):
        if unquote(item) in position:
            chosen.add(position[unquote(item)])
            continue
        cuts = [index for index, letter in enumerate(item) if letter == "-"]
        ends = [(unquote(item[:cut]), unquote(item[cut + 1 :])) for cut in cuts]
        ranges = [(position[a], position[b]) for a, b in ends if a in position and b in position]
        if len(ranges) != 1 or ranges[0][0] > ranges[0][1]:
            shown = ", ".join(classes[:12]) + (f" and {len(classes) - 12} more" if len(classes) > 12 else "")
            problem = "is neither a class nor a range of classes" if not ranges else "is no range in label order"
            raise DataError(f"image set {name!r}: {item!r} {problem}; the classes are {shown}")
        chosen.update(range(ranges[0][0], ranges[0][1] + 1))
    return sorted(chosen)
