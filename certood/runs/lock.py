"""One writer at a time: a lock on a run directory that says which process holds it."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from certood.errors import RunDirectoryError
from certood.files import write_atomically

LOCK_FILE = ".certood.lock"
HOLDER_FILE = ".certood.lock.json"


@contextmanager
def locked(folder: Path, command: str) -> Iterator[None]:
    """Hold the lock of a folder, which is made if need be; within one process it may be taken again.

    The operating system frees the lock when its holder ends, however it ends; the record of host, process and command beside
    it is for the message alone. Raises RunDirectoryError where another process holds it, naming that process, or where the
    folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE, is_singleton=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunDirectoryError(
            f"{folder} is in use by {_holder(folder)}; wait until it has ended, or choose another --out"
        ) from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunDirectoryError(f"cannot write the run directory {folder}: {reason}") from error
    holder = folder / HOLDER_FILE
    outermost = lock.lock_counter == 1
    try:
        if outermost:
            record = {"host": socket.gethostname(), "pid": os.getpid(), "command": command}
            write_atomically(holder, json.dumps(record | {"since": datetime.now(UTC).isoformat(" ", "seconds")}))
        yield
    finally:
        if outermost:
            holder.unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        record = json.loads((folder / HOLDER_FILE).read_text("utf-8"))
        return f"process {record['pid']} on {record['host']} (certood {record['command']}, since {record['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
