"""What a kill at any write of a command leaves, and whether the command, given again, comes to the uninterrupted result.

A process that is killed leaves the files as they are at that moment. So the command runs once, and before every change its folder
is copied: before a file is opened for writing, renamed or removed, before a folder is made or removed, and, when content is
flushed to disk, both with all of it and with its end missing. Each copy is then a run that was killed there.
"""

import csv
import hashlib
import io
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner, Result

from certood.cli import main

FAST = ("--set", "training.epochs=2", "--set", "training.steps_per_epoch=2", "--device", "cpu")
ONE = ("--limit", "1", "--ood", "digits-near")
# No process has this number: it is above the largest that Linux gives.
NOBODY = 2**22 + 1
CHANGES = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"})


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@dataclass(frozen=True)
class Scenario:
    """A command in a folder: what is there before, the command, and the commands that continue it, of which one is accepted.

    A command that is refused must end with one error, and have changed nothing but remove temporary files.
    """

    before: Callable[[Path], object]
    command: Callable[[Path], list[str | Path]]
    again: tuple[Callable[[Path], list[str | Path]], ...]


def _train(*more: str) -> Callable[[Path], list[str | Path]]:
    return lambda folder: ["train", "digits-ce", *FAST, "--out", folder / "run", *more]


def _certify(*more: str) -> Callable[[Path], list[str | Path]]:
    return lambda folder: ["certify", folder / "run", *ONE, "--batch-size", "1", *more]


def _evaluate(*more: str) -> Callable[[Path], list[str | Path]]:
    return lambda folder: ["evaluate", folder / "run", "--device", "cpu", *more]


def _report(folder: Path) -> list[str | Path]:
    return ["report", folder / "run", "--out", folder / "page.html"]


def _demo(folder: Path) -> list[str | Path]:
    return ["demo", "--out", folder / "demo", "--epochs", "1", "--limit", "1"]


def done(*commands: Callable[[Path], list[str | Path]]) -> Callable[[Path], None]:
    """Run commands that succeed."""

    def all_of_them(folder: Path) -> None:
        for command in commands:
            result = run(*command(folder))
            assert result.exit_code == 0, result.output

    return all_of_them


def half_trained(folder: Path) -> None:
    """A run that was killed after its first epoch."""
    done(_train())(folder)
    state = torch.load(folder / "run" / "training_state.pt", weights_only=True)
    done(_train("--overwrite", "--set", "training.epochs=1"))(folder)
    (folder / "run" / "recipe.toml").write_text(
        (folder / "run" / "recipe.toml").read_text("utf-8").replace("\nepochs = 1\n", "\nepochs = 2\n"), "utf-8"
    )
    assert state["epochs_done"] == 2
    for name in ("checkpoint.safetensors", "evaluation.json"):
        (folder / "run" / name).unlink()


OTHER = ("--seed", "5")
SCENARIOS: dict[str, Scenario] = {
    "train": Scenario(lambda _: None, _train(), (_train(), _train("--resume"))),
    "train --resume": Scenario(half_trained, _train("--resume"), (_train("--resume"),)),
    "train --overwrite": Scenario(
        done(_train(*OTHER), _certify()),
        _train("--overwrite"),
        (_train("--resume"), _train("--overwrite")),
    ),
    "evaluate": Scenario(done(_train()), _evaluate("--bootstrap", "5"), (_evaluate("--bootstrap", "5"),)),
    "evaluate --calibrate": Scenario(done(_train()), _evaluate("--calibrate"), (_evaluate("--calibrate"),)),
    "certify": Scenario(done(_train()), _certify(), (_certify(),)),
    "certify --overwrite": Scenario(
        done(_train(), _certify(*OTHER)), _certify("--overwrite"), (_certify(), _certify("--overwrite"))
    ),
    "report": Scenario(done(_train(), _certify(), _report), _report, (_report,)),
    "demo": Scenario(lambda _: None, _demo, (_demo,)),
}


@dataclass
class Recorder:
    """Copies of a folder before every change in it, in `kept`/0, 1, …; `events` says which change each is before.

    Before the first event that begins with `fatal`, the process kills itself.
    """

    folder: Path
    kept: Path
    fatal: str | None = None
    events: list[str] = field(default_factory=list)
    active: bool = False

    def copy(self, event: str, *, torn: Path | None = None) -> None:
        """Keep what is there now; of the file `torn` without the last bytes."""
        self.active = False
        target = self.kept / str(len(self.events))
        shutil.copytree(self.folder, target)
        if torn is not None:
            cut = target / torn.relative_to(self.folder)
            os.truncate(cut, max(0, cut.stat().st_size - 5))
        for path in target.rglob(f".*.{os.getpid()}.partial"):
            path.rename(path.with_name(path.name.replace(f".{os.getpid()}.", f".{NOBODY}.")))
        self.events.append(event)
        if self.fatal is not None and event.startswith(self.fatal):
            os.kill(os.getpid(), signal.SIGKILL)
        self.active = True

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit event of Python, which comes before what it is about."""
        if not self.active or not (event in CHANGES or (event == "open" and _writes(arguments[2]))):
            return
        path = arguments[0]
        # Within a folder that is removed, names are relative to a descriptor.
        inside = isinstance(path, (str, os.PathLike)) and (
            not os.path.isabs(path) or Path(path).is_relative_to(self.folder)
        )
        if inside:
            self.copy(f"{event} {Path(path).name}")


def _writes(flags: int) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


_recorders: list[Recorder] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    for recorder in _recorders:
        recorder.hear(event, arguments)


@contextmanager
def recording(folder: Path, kept: Path, fatal: str | None = None) -> Iterator[Recorder]:
    """A recorder of the changes in a folder, which ends with the context."""
    recorder = Recorder(folder, kept, fatal)
    if not getattr(sys, "_kills_are_heard", False):
        # A hook cannot be removed again.
        sys.addaudithook(_hook)
        sys._kills_are_heard = True
    flush = os.fsync

    def flushed(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if recorder.active and path.is_relative_to(folder):
            recorder.copy(f"torn {path.name}", torn=path)
            recorder.copy(f"flush {path.name}")
        flush(descriptor)

    os.fsync = flushed
    _recorders.append(recorder)
    recorder.active = True
    try:
        yield recorder
    finally:
        recorder.active = False
        _recorders.remove(recorder)
        os.fsync = flush


def content(folder: Path) -> dict[str, Any]:
    """What files hold, by their paths, but for what tells the time."""
    return {
        path.relative_to(folder).as_posix(): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".certood.lock"
    }


def _content(path: Path) -> Any:
    if path.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(path.read_text("utf-8")))
        return [{name: cell for name, cell in row.items() if name != "seconds"} for row in rows]
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text("utf-8")))
    if path.suffix == ".pt":
        return _timeless(torch.load(path, weights_only=True))
    if path.suffix == ".html":
        # The page tells how long things took; that it is whole is what counts.
        return path.read_text("utf-8").rstrip().endswith("</html>")
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _timeless(part) for key, part in value.items() if key not in ("seconds", "certificates_sha256")}
    if isinstance(value, (list, tuple)):
        return [_timeless(part) for part in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


def same(one: Any, other: Any) -> bool:
    """Whether two contents are equal, where what is no number equals itself."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other or (_no_number(one) and _no_number(other)))


def _no_number(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


@dataclass
class Killed:
    """A scenario as it was recorded: the folder, the copies, the result without a kill."""

    scenario: Scenario
    folder: Path
    recorder: Recorder
    expected: dict[str, Any]

    @property
    def places(self) -> list[int]:
        """The places whose kills leave different files, by name or content."""
        found: dict[str, int] = {}
        for place in range(len(self.recorder.events)):
            found.setdefault(_digest(self.recorder.kept / str(place)), place)
        return list(found.values())

    def continued(self, place: int) -> str:
        """Continue from a kill at this place; what is wrong with the result, or nothing."""
        self.restore(place)
        for words in self.scenario.again:
            before = self._kept()
            result = run(*words(self.folder))
            if result.exit_code == 0:
                break
            if result.exit_code != 2 or not result.stderr.startswith(("Error: ", "Usage: ")):
                return f"exit code {result.exit_code}: {result.output[-500:]}"
            if not same(self._kept(), before):
                return f"refused, but changed files: {result.stderr.strip()}"
        else:
            return f"never accepted: {result.stderr.strip()}"
        found = content(self.folder)
        different = [
            name for name in found.keys() | self.expected.keys() if not same(found.get(name), self.expected.get(name))
        ]
        return f"different: {', '.join(sorted(different))}" if different else ""

    def _kept(self) -> dict[str, Any]:
        return {name: value for name, value in content(self.folder).items() if not name.endswith(".partial")}

    def read(self, place: int) -> str:
        """Report what a kill at this place left; what is wrong with that, or nothing."""
        self.restore(place)
        result = run("report", self.folder / "run", "--format", "json")
        fine = result.exit_code == 0 or (result.exit_code == 2 and result.stderr.startswith("Error: "))
        return "" if fine else f"report: exit code {result.exit_code}: {result.output[-500:]}"

    def restore(self, place: int) -> None:
        """Put the files back as the kill left them."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.recorder.kept / str(place), self.folder)


def _digest(folder: Path) -> str:
    """SHA-256 of the names in a folder, and of what its files hold."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path.relative_to(folder)}\n".encode())
        if path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def killed(name: str, place: Path) -> Killed:
    """Record a scenario in an empty folder `place`."""
    scenario, folder = SCENARIOS[name], place / "folder"
    folder.mkdir(parents=True)
    scenario.before(folder)
    with recording(folder, place / "kept") as recorder:
        result = run(*scenario.command(folder))
    assert result.exit_code == 0, result.output
    return Killed(scenario, folder, recorder, content(folder))
