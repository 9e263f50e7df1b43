"""A certification by many jobs: the records of one process, whatever runs the jobs, and whatever becomes of some of them."""

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from certood.analysis import shares
from certood.analysis.certify_run import certify_sets
from certood.analysis.executors import executor_by_name
from certood.analysis.settings import Settings
from certood.checkpoints import load_checkpoint
from certood.cli import main
from certood.errors import CertoodError, RunDirectoryError
from certood.runs import RunDirectory, load_run_data
from certood.runs.directory import read_json
from certood.train.loop import fit
from certood.train.recipe import load_recipe
from tests.analysis.certificate_rows import rows

SETS = ("digits-near",)
SETTINGS = Settings(eps=(0.02,), attack_steps=3, restarts=1, samples=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shares") / "run"
    short = ["training.epochs=2", "training.steps_per_epoch=2", "run.device=cpu", "model.options.width=4"]
    fit(load_recipe("digits-ce", short), out, progress=False)
    return out


def certified(trained: Path, out: Path, **more: Any) -> dict[str, Any]:
    detector = load_checkpoint(trained)
    splits, ood = load_run_data(trained, ood=SETS, recorded=detector.split)
    more = {"limit": 5, "batch_size": 2, "figures": False, "progress": False, "settings": SETTINGS, **more}
    return certify_sets(detector, splits.test, ood, out, **more)


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shares") / "whole"
    certified(trained, out)
    return out


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "WAIT", 0.01)


class Failing:
    """An executor that runs jobs at once, and loses those of these numbers."""

    def __init__(self, *lost: int) -> None:
        self.lost = lost

    def submit(self, fn: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        share = arguments[0] if arguments else fn
        if share.number in self.lost:
            future.set_exception(RuntimeError("node lost"))
        else:
            future.set_result(fn(*arguments))
        return future


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "batch_size"), [(3, 2), pytest.param(50, 5, marks=pytest.mark.slow)])
def test_the_records_are_those_of_one_process(
    jobs: int, batch_size: int, trained: Path, whole: Path, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(1) as executor:
        result = certified(trained, tmp_path / "run", executor=executor, jobs=jobs, batch_size=batch_size)
    if batch_size == 2:
        assert rows(tmp_path / "run") == rows(whole)
    assert {(row["set"], row["index"], row["verdict"]) for row in rows(tmp_path / "run")} == {
        (row["set"], row["index"], row["verdict"]) for row in rows(whole)
    }
    assert result["violations"] == 0
    assert not RunDirectory(tmp_path / "run").share_folder.exists()


@pytest.mark.slow
def test_lost_jobs_are_run_again_alone(
    trained: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with pytest.raises(
        CertoodError, match=r"2 of 3 jobs did not end well \(job 0: RuntimeError: node lost\); the same command"
    ):
        certified(trained, out, executor=Failing(0, 2), jobs=3)
    assert not (out / "certification.json").exists()
    assert [path.name for path in RunDirectory(out).shares()] == ["0001"]
    seen: list[tuple[str, tuple[int, ...]]] = []
    worker = shares.Worker.__call__
    monkeypatch.setattr(
        shares.Worker, "__call__", lambda own, job: seen.append((job.name, job.indices)) or worker(own, job)
    )
    certified(trained, out, executor=Failing(), jobs=2)
    assert rows(out) == rows(whole)
    # Six batches of two sets, of which job 1 had two.
    assert len(seen) == 4


@pytest.mark.slow
def test_a_half_written_share_goes_on(trained: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(CertoodError, match="1 of 2 jobs"):
        certified(trained, out, executor=Failing(1), jobs=2)
    path = RunDirectory(RunDirectory(out).share(0)).certificates
    path.write_bytes(path.read_bytes()[:-20])
    certified(trained, out, executor=Failing(), jobs=2)
    assert rows(out) == rows(whole)


@pytest.mark.slow
def test_merge_names_what_is_missing(trained: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(CertoodError, match="1 of 3 jobs"):
        certified(trained, out, executor=Failing(1), jobs=3)
    result = merged(out)
    assert result.exit_code == 2
    assert result.output.startswith("Merged: 6 certificates")
    assert "images without a certificate: 2 of digits (" in result.stderr
    counts = re.findall(r"(\d+) of digits", result.stderr)
    assert sum(map(int, counts)) == len(rows(whole)) - len(rows(out)) == 4
    certified(trained, out, executor=Failing(), jobs=1)
    assert rows(out) == rows(whole)
    result = merged(out)
    assert result.exit_code == 2
    assert "has no shares of a certification to merge" in result.stderr
    result = merged(out.with_name("absent"))
    assert "there is no folder" in result.stderr
    assert not out.with_name("absent").exists()


def merged(out: Path) -> Result:
    return CliRunner().invoke(main, ["merge", str(out)])


def begun(trained: Path, out: Path) -> RunDirectory:
    """A certification whose last job was lost."""
    with pytest.raises(CertoodError, match="1 of 3 jobs"):
        certified(trained, out, executor=Failing(2), jobs=3)
    return RunDirectory(out)


@pytest.mark.slow
def test_shares_of_a_certification_that_overwrites_another_are_merged(
    trained: Path, whole: Path, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(whole, run.folder)
    with pytest.raises(CertoodError, match="1 of 3 jobs"):
        certified(trained, run.folder, executor=Failing(2), jobs=3, overwrite=True)
    result = merged(run.folder)
    assert result.exit_code == 2
    assert "images without a certificate" in result.stderr
    # The old ones stay until the new ones are complete.
    assert rows(run.folder) == rows(whole)
    run.share_logs.mkdir(parents=True)
    certified(trained, run.folder)
    assert rows(run.folder) == rows(whole)
    assert not run.share_folder.exists()


@pytest.mark.slow
def test_two_certificates_of_an_image_that_differ_are_an_error(trained: Path, tmp_path: Path) -> None:
    run = begun(trained, tmp_path / "run")
    own = RunDirectory(run.share(0)).certificates
    text = own.read_text().splitlines(keepends=True)
    copied = RunDirectory(run.share(7))
    shutil.copytree(run.share(0), copied.folder)
    # The same once more is no contradiction; another score is.
    cells = text[1].split(",")
    cells[text[0].split(",").index("score")] = repr(float(cells[text[0].split(",").index("score")]) + 1e-9)
    copied.certificates.write_text(text[0] + ",".join(cells))
    result = merged(run.folder)
    assert result.exit_code == 2
    assert f"{run.share(7)} has another certificate of image" in result.stderr
    assert not run.certificates.exists()
    copied.certificates.write_text("".join(text))
    assert merged(run.folder).output.startswith("Merged: ")
    assert len(rows(run.folder)) == len({(row["set"], row["index"]) for row in rows(run.folder)})


@pytest.mark.slow
def test_shares_of_other_settings_are_not_merged(trained: Path, whole: Path, tmp_path: Path) -> None:
    run = begun(trained, tmp_path / "run")
    settings = RunDirectory(run.share(0)).certification_settings
    kept = settings.read_text()
    settings.write_text(json.dumps({"identity": "another"}))
    with pytest.raises(
        RunDirectoryError, match=r"0000 was made with other settings than .*certificates.csv; delete it"
    ):
        certified(trained, run.folder, executor=Failing(), jobs=2)
    settings.write_text(kept)
    changed = Settings(eps=(0.02,), attack_steps=3, restarts=1, samples=4, seed=1)
    recorded = run.certification_settings.read_text()
    with pytest.raises(RunDirectoryError, match=r"shares was made with other settings \(seed: 0 there, 1 here\)"):
        certified(trained, run.folder, executor=Failing(), jobs=2, settings=changed)
    # What was begun keeps its settings, so that a merge cannot make it something else.
    assert run.certification_settings.read_text() == recorded
    certified(trained, run.folder, executor=Failing(), jobs=2, settings=changed, overwrite=True)
    assert (read_json(run.certification_settings) or {})["seed"] == 1
    assert len(rows(run.folder)) == len(rows(whole))


def a_share(run: RunDirectory) -> tuple[Path, list[str], list[str]]:
    """The certificates of a share: their file, its header and its lines."""
    path = RunDirectory(run.share(0)).certificates
    header, *lines = path.read_text().splitlines()
    return path, header.split(","), lines


@pytest.mark.slow
def test_what_shares_cannot_hold_is_refused_before_anything_is_merged(trained: Path, tmp_path: Path) -> None:
    run = begun(trained, tmp_path / "run")
    path, header, lines = a_share(run)
    kept, plan, settings = path.read_text(), run.share_plan.read_text(), run.certification_settings.read_text()

    def changed(name: str, value: str) -> str:
        cells = lines[0].split(",")
        cells[header.index(name)] = value
        return ",".join(cells) + "\n"

    for text, problem in (
        (kept + changed("score", "-3.25"), "another certificate of image"),
        (kept + changed("index", "999"), "image 999 of .* which is not to be certified"),
        (kept + changed("set", "elsewhere"), "of 'elsewhere', which is not to be certified"),
        (kept.replace(lines[0] + "\n", changed("radius_certified", "0.9")), "breaks inequalities"),
    ):
        path.write_text(text)
        result = merged(run.folder)
        assert result.exit_code == 2
        assert re.search(problem, result.stderr), result.stderr
        assert not run.certificates.exists()
        assert path.is_file()
    path.write_text(kept)
    seed = json.dumps(json.loads(settings) | {"seed": 1})
    for damaged, content, problem in (
        (run.share_plan, "{}", "plan.json is damaged"),
        (run.share_plan, json.dumps(json.loads(plan) | {"wanted": None}), "wanted"),
        (run.share_plan, json.dumps(json.loads(plan) | {"identity": "0"}), "plan.json is of other settings than"),
        (run.certification_settings, "{}", "certification_settings.json is damaged"),
        (run.certification_settings, seed, "plan.json is of other settings than"),
    ):
        damaged.write_text(content)
        result = merged(run.folder)
        assert result.exit_code == 2
        assert problem in result.stderr
        run.share_plan.write_text(plan)
        run.certification_settings.write_text(settings)
    assert not run.certificates.exists()
    # A folder of another name is not merged, and stays.
    (run.share_folder / "kept").mkdir()
    assert merged(run.folder).output.startswith("Merged: ")
    assert [part.name for part in run.share_folder.iterdir()] == ["kept"]


def test_an_interruption_ends_the_jobs(trained: Path, tmp_path: Path) -> None:
    cancelled: list[int] = []

    class Endless(Future[None]):
        def done(self) -> bool:
            raise KeyboardInterrupt

        def cancel(self) -> bool:
            cancelled.append(1)
            return True

    class Executor:
        def submit(self, fn: Callable[..., Any], /, *arguments: Any) -> Endless:
            return Endless()

    with pytest.raises(KeyboardInterrupt):
        certified(trained, tmp_path / "run", executor=Executor(), jobs=3)
    assert len(cancelled) == 3


@pytest.mark.slow
def test_the_local_executor_of_submitit(trained: Path, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="the extra cluster is not installed")
    executor = executor_by_name("local", tmp_path / "logs", {"timeout_min": 5})
    # Several jobs run above; here it is one, since a process takes many times as long to start as to certify.
    result = certified(trained, tmp_path / "run", executor=executor, jobs=1, threads=1)
    assert rows(tmp_path / "run") == rows(whole)
    assert result["violations"] == 0


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_the_command_line(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("certood.analysis.executors.executor_by_name", lambda *given: seen.append(given) or Failing())
    arguments = ["certify", str(trained), "--limit", "2", "--ood", "digits-near", "--out", str(tmp_path / "out")]
    options = ["--executor", "slurm", "--jobs", "2", "--job-option", "slurm_partition=cpu", "--job-option", "mem_gb=8"]
    result = CliRunner().invoke(main, [*arguments, *options])
    assert result.exit_code == 0, result.output
    assert seen == [("slurm", tmp_path / "out" / "shares" / "logs", {"slurm_partition": "cpu", "mem_gb": 8})]
    assert len(rows(tmp_path / "out")) == 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("processes", {"mem_gb": 8}, "--job-option is about the executors local and slurm"),
        ("local", {"nonsense": 1}, "--executor local: .*nonsense"),
        ("slurm", {}, "--executor slurm: "),
    ],
)
def test_executors_that_cannot_be_are_one_error(
    name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    pytest.importorskip("submitit", reason="the extra cluster is not installed")
    if name == "slurm" and shutil.which("srun"):
        pytest.skip("Slurm is here")
    with pytest.raises(CertoodError, match=message):
        executor_by_name(name, tmp_path / "logs", options)


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    with pytest.raises(CertoodError, match=r"--executor slurm needs the extra: pip install 'certood\[cluster\]'"):
        executor_by_name("slurm", tmp_path, {})
