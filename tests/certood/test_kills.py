"""Killed at a write, a command that is given again comes to the uninterrupted result; at every write: benchmarks/kills.py."""

from pathlib import Path

import pytest

from tests.certood.kills import killed

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
