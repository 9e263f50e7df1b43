"""One writer at a time: a second process is told who writes, and a lock ends with its holder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from certood.errors import RunDirectoryError
from certood.runs import RunDirectory
from certood.runs.lock import HOLDER_FILE

HOLD = """
import sys
from pathlib import Path
from certood.runs.lock import locked
with locked(Path(sys.argv[1]), "train"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_a_second_process_is_told_who_holds_the_lock_and_a_kill_frees_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with (
        pytest.raises(RunDirectoryError, match=rf"in use by process {holder.pid} on .* \(certood train, since "),
        run.writing("certify"),
    ):
        pass
    holder.kill()
    holder.communicate()
    assert (run.folder / HOLDER_FILE).is_file()  # nobody was there to remove it
    with run.writing("certify"):
        record = json.loads((run.folder / HOLDER_FILE).read_text())
        assert (record["pid"], record["command"]) == (os.getpid(), "certify")
        with run.writing("evaluate"):  # a command that is part of another one
            pass
        assert (run.folder / HOLDER_FILE).is_file()
    assert not (run.folder / HOLDER_FILE).exists()
    assert run.empty


def test_a_file_in_place_of_the_folder_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = RunDirectory(tmp_path / "file" / "run")
    with pytest.raises(RunDirectoryError, match="cannot write the run directory"), run.writing("train"):
        pass
    with pytest.raises(RunDirectoryError, match="cannot write the run directory"):
        _ = RunDirectory(tmp_path / "file").empty
