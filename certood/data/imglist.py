"""Image sets of a list in a text file: `imglist:FILE`, as OpenOOD's benchmarks name theirs."""

from pathlib import Path

import torch

from certood.data.folder import FolderSet, picture_files
from certood.data.form import Form
from certood.errors import DataError

UNLABELLED = -1
LARGEST_LABEL = 10**6


def load_imglist(name: str, file: Path, root: Path, form: Form) -> FolderSet:
    """The pictures of a list: a line is a path and a label, apart by a space; paths start at `root`, labels at 0.

    A list whose labels are all -1 has no labels, as OpenOOD's lists of outliers. Classes are named 0, 1, 2 … up to the largest
    label. Raises DataError where the file is missing, empty, or a line is none of these, names no file or an absolute path.
    """
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(
            f"image set {name!r}: cannot read the list {file.absolute()} ({error.strerror or error}); give imglist:FILE, "
            "absolute or below --data-root"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"image set {name!r}: {file.absolute()} is no text in UTF-8, and so no list of images"
        ) from error
    entries = [_entry(line, f"{file}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not entries:
        raise DataError(f"image set {name!r}: the list {file.absolute()} is empty")
    labels = torch.tensor([label for _, label in entries])
    unlabelled = labels == UNLABELLED
    if unlabelled.any() and not unlabelled.all():
        raise DataError(
            f"image set {name!r}: {int(unlabelled.sum())} of {len(labels)} lines of {file} have the label -1 (none); "
            "a set has labels for all of its images or for none"
        )
    files = [root / path for path, _ in entries]
    missing = next((path for path in files if not path.is_file()), None)
    if missing is not None:
        raise DataError(
            f"image set {name!r}: there is no {missing.absolute()}, which {file} names; paths of a list start at data.root "
            f"(--data-root), which is {root.absolute()}"
        )
    if unlabelled.all():
        return picture_files(name, root, files, form, None, ())
    return picture_files(name, root, files, form, labels, tuple(map(str, range(int(labels.max()) + 1))))


def _entry(line: str, place: str) -> tuple[str, int]:
    """The path and the label of a line."""
    path, _, label = line.strip().rpartition(" ")
    digits = label.removeprefix("-")
    if not path.strip() or not (digits.isascii() and digits.isdecimal() and len(digits) < 8):
        raise DataError(
            f"{place}: expected a path, a space and a label such as `cifar10/test/cat/0001.png 3`, found {line!r:.80}"
        )
    if not UNLABELLED <= int(label) <= LARGEST_LABEL:
        raise DataError(f"{place}: expected a label from 0 to {LARGEST_LABEL:,}, or -1 for none, found {label}")
    if Path(path.strip()).is_absolute():
        raise DataError(f"{place}: paths of a list start at data.root (--data-root), found the absolute {path.strip()}")
    return path.strip(), int(label)
