"""Killed at a write, a command that is given again comes to the uninterrupted result; at every write: benchmarks/kills.py."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.certood.kills import NOBODY, SCENARIOS, Recorder, _recorders, content, killed, run, same

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are read from /proc")

# Every how many of the places at which a kill leaves different files are tried here.
EVERY = {"train": 9, "train --resume": 9, "train --overwrite": 25, "evaluate": 5, "evaluate --calibrate": 6}
SLOW = {"certify": 40, "certify --overwrite": 90, "report": 4}


@pytest.mark.parametrize("name", [*EVERY, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_killed_command_continues_to_the_uninterrupted_result(name: str, tmp_path: Path) -> None:
    found = killed(name, tmp_path)
    places = found.places[1 :: (EVERY | SLOW)[name]]
    assert places
    wrong = {found.recorder.events[place]: problem for place in places if (problem := found.continued(place))}
    assert not wrong
    assert not {found.recorder.events[place] for place in places[:3] if found.read(place)}


def test_a_copy_is_what_a_kill_leaves(tmp_path: Path) -> None:
    """A process that dies in the middle leaves the files that were copied there."""
    found = killed("train", tmp_path)
    place = next(
        index for index, event in enumerate(found.recorder.events) if event.startswith("os.rename .checkpoint")
    )
    found.restore(0)
    pid = os.fork()
    if not pid:
        recorder = Dying(found.folder, tmp_path / "nothing", left=place)
        _recorders.append(recorder)
        recorder.active = True
        flush, os.fsync = os.fsync, lambda descriptor: (recorder.copy(""), recorder.copy(""), flush(descriptor))[2]
        run(*SCENARIOS["train"].command(found.folder))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    for path in found.folder.rglob(f".*.{pid}.partial"):
        path.rename(path.with_name(path.name.replace(f".{pid}.", f".{NOBODY}.")))
    left = content(found.folder)
    shutil.rmtree(found.folder)
    shutil.copytree(found.recorder.kept / str(place), found.folder)
    holder = "run/.certood.lock.json"
    copied = content(found.folder)
    assert left.keys() == copied.keys()
    assert [name for name in left if not same(left[name], copied[name])] == [holder]


class Dying(Recorder):
    """Counts changes as a recorder does, and ends the process at one."""

    def __init__(self, folder: Path, kept: Path, left: int) -> None:
        super().__init__(folder, kept)
        self.left = left

    def copy(self, event: str, *, torn: Path | None = None) -> None:
        """Count."""
        if not self.left:
            sys.stdout.flush()
            os._exit(9)
        self.left -= 1
