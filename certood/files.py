"""Files that are replaced in one step: a reader sees the old or the new content, also after a crash or on a full disk."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from certood.errors import RunDirectoryError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside a file, whose content takes its place at the end; nothing is left of it after an error.

    What a killed process left of an earlier attempt is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    remove_abandoned(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace a file by bytes, or by text in UTF-8; its folder is made if need be. Raises RunDirectoryError where it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise RunDirectoryError(f"cannot write {path}: {error.strerror or error}") from error


def refuse_foreign(path: Path, ours: Callable[[bytes], bool]) -> None:
    """Raise RunDirectoryError where a file is there that certood did not write, as `ours` tells by its content."""
    if path.is_dir():
        raise RunDirectoryError(f"cannot write {path}: it is a folder; name a file")
    try:
        if not path.exists() or ours(path.read_bytes()):
            return
    except OSError as error:
        raise RunDirectoryError(f"cannot write {path}: {error.strerror or error}") from error
    raise RunDirectoryError(f"{path} exists and was not written by this command; choose another --out, or remove it")


def abandoned(path: Path) -> list[Path]:
    """What processes that have ended left of their attempts to write a file."""
    found = []
    with contextlib.suppress(OSError):
        for old in path.parent.glob(f".{glob_escaped(path.name)}.*.partial"):
            pid = old.name.rsplit(".", 2)[1]
            if pid.isdecimal() and not _alive(int(pid)):
                found.append(old)
    return found


def remove_abandoned(path: Path) -> None:
    """Remove what killed processes left of their attempts to write a file."""
    for old in abandoned(path):
        with contextlib.suppress(OSError):
            old.unlink(missing_ok=True)


def glob_escaped(name: str) -> str:
    """A file name as a pattern that matches it alone."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return pid != os.getpid()
