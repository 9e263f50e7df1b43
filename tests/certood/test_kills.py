"""Killed at a write, a command that is given again comes to the uninterrupted result; at every write: benchmarks/kills.py."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from certood.analysis import certify_run
from certood.files import replacing
from tests.certood.kills import NOBODY, SCENARIOS, killed, recording, run
from tests.quick import first_is_quick

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are read from /proc")

# Every how many of the places at which a kill leaves different files are tried here.
EVERY = {
    "train": 9,
    "train --resume": 9,
    "train --overwrite": 25,
    "evaluate": 5,
    "evaluate --calibrate": 6,
    "certify": 25,
    "certify --overwrite": 50,
    "report": 6,
}


@pytest.fixture(autouse=True)
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small files in the place of all figures of a certification, whose drawing takes most of its time."""

    def sketch(*given: Any) -> None:
        given[-1].mkdir(parents=True, exist_ok=True)
        for name in ("scores.png", "scores.svg"):
            with replacing(given[-1] / name) as temporary:
                temporary.write_text("drawn")

    monkeypatch.setattr(certify_run, "draw_figures", sketch)


@pytest.mark.parametrize("name", first_is_quick(EVERY))
def test_a_killed_command_continues_to_the_uninterrupted_result(name: str, tmp_path: Path) -> None:
    found = killed(name, tmp_path)
    places = found.places[1 :: EVERY[name]]
    assert places
    wrong = {found.recorder.events[place]: problem for place in places if (problem := found.continued(place))}
    assert not wrong
    assert not {found.recorder.events[place] for place in places[:3] if found.read(place)}


@pytest.mark.slow
def test_a_copy_is_what_a_kill_leaves(tmp_path: Path) -> None:
    """A process that is killed leaves the files, byte for byte, that were copied the moment before.

    It is a process of its own, whose writes do not depend on what other tests have run.
    """
    folder, kept = tmp_path / "folder", tmp_path / "kept"
    folder.mkdir()
    die = f"from {__name__} import die; import sys; die(*sys.argv[1:])"
    process = subprocess.run(
        [sys.executable, "-c", die, folder, kept],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    *_, last = sorted(kept.iterdir(), key=lambda path: int(path.name))
    left, copied = ({_nobody(path, top): path for path in top.rglob("*")} for top in (folder, last))
    assert left.keys() == copied.keys()
    assert f"run/.checkpoint.safetensors.{NOBODY}.partial" in left
    assert "run/training_state.pt" in left
    files = [name for name in left if left[name].is_file()]
    assert [name for name in files if left[name].read_bytes() != copied[name].read_bytes()] == []


def die(folder: str, kept: str) -> None:
    """Train, and be killed before the checkpoint has its name."""
    with recording(Path(folder), Path(kept), fatal="os.rename .checkpoint"):
        run(*SCENARIOS["train"].command(Path(folder)))


def _nobody(path: Path, top: Path) -> str:
    """A name in a folder, with the process of a temporary file replaced by one that does not exist."""
    return re.sub(r"\.\d+\.partial$", f".{NOBODY}.partial", path.relative_to(top).as_posix())
