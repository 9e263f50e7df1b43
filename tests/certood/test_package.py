"""The package as it is shipped: its list of packages, the wheel, and the command line beside a foreign train.py."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"certood": "certood", "train": "certood.train", "analysis": "certood.analysis"}


def test_the_list_of_packages_is_the_folders() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = set()
    for folder, package in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            below = init.parent.relative_to(ROOT / folder)
            if folder == "certood" and below.parts[:1] in (("train",), ("analysis",)):
                continue
            found.add(".".join((package, *below.parts)))
    assert set(declared) == found


def test_help_is_fast_because_torch_stays_away() -> None:
    code = (
        "import sys\nfrom certood.cli import main\nmain(['--help'], standalone_mode=False)\n"
        "assert not {'torch', 'numpy', 'pydantic', 'rich'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "train" in run.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that nothing is left in the checkout."""
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    source.mkdir()
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if tracked.returncode:
        pytest.skip("not a git checkout, so which files belong to the package is not known")
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_symlink() or not (ROOT / name).is_file():
            continue
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)],
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_module_once_and_nothing_at_the_top(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"certood"}
    expected = {
        f"{package.replace('.', '/')}/{file.relative_to(ROOT / folder)}"
        for folder, package in FOLDERS.items()
        for file in (ROOT / folder).rglob("*.py")
        if folder != "certood" or file.relative_to(ROOT / folder).parts[0] not in ("train", "analysis")
    }
    assert expected <= set(names)
    assert "certood/py.typed" in names
    assert "certood/train/recipes/digits-greg-plus.toml" in names


@pytest.mark.slow
def test_the_installed_command_works_beside_a_foreign_train_py(wheel: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    zipfile.ZipFile(wheel).extractall(site)
    work.mkdir()
    (work / "train.py").write_text("raise RuntimeError('the foreign train.py was imported')\n")
    (work / "analysis.py").write_text("raise RuntimeError('the foreign analysis.py was imported')\n")
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def certood(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "certood", *arguments],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    where = subprocess.run(
        [sys.executable, "-c", "import certood.train; print(certood.train.__file__)"],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(site) in where.stdout
    assert certood("--version").stdout.startswith("certood ")
    run = certood("train", "digits-ce", "--set", "training.epochs=1")
    assert run.returncode == 0, run.stderr
    assert (work / "runs" / "digits-ce" / "checkpoint.safetensors").is_file()


@pytest.mark.parametrize(
    "command", [["-c", "import certood; certood.certify; import certood.train.recipes"], ["-m", "certood", "--version"]]
)
def test_the_package_is_found_from_the_folder_above_a_checkout(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "certood").symlink_to(ROOT)
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_checkout_that_is_not_installed_says_how_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "certood").mkdir()
    for part in ("__init__.py", "certood"):
        (tmp_path / "certood" / part).symlink_to(ROOT / part)
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import certood"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "but is not installed for this Python; install it with `pip install" in done.stderr
