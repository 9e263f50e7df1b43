"""The README keeps what it promises: its commands parse and run, its Python runs, its links lead somewhere."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from certood.cli import COMMANDS, main
from certood.train.loop import fit
from certood.train.recipe import known_keys, load_recipe
from certood.train.recipes import recipe_names

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
COMMAND_TABLE = (ROOT / "docs/commands.md").read_text("utf-8")
# What is run as it stands there, in this order; other pages have tests of their own.
RUN = (README, (ROOT / "docs/your-own.md").read_text("utf-8"))
PAGES = [README, *(page.read_text("utf-8") for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "cli.md")]


def shell_lines(text: str) -> Iterator[list[str]]:
    """The words of every certood command in the fenced blocks that are not Python."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if language == "python":
            continue
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                words = shlex.split(part.strip().removeprefix("uv run "))
                if words[:1] == ["certood"]:
                    yield words[1:]


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The click command that these words call, and the words after its name."""
    command: click.Command = main
    rest = words
    while isinstance(command, click.Group) and rest:
        found = command.get_command(click.Context(command), rest[0])
        assert found is not None, f"certood has no command {' '.join(words)!r}"
        command, rest = found, rest[1:]
    return command, rest


def test_every_command_line_parses() -> None:
    lines = [words for page in PAGES for words in shell_lines(page)]
    assert {words[0] for words in lines} >= {"train", "demo", "inspect", "certify"}
    for words in lines:
        command, rest = command_of(words)
        command.make_context(str(command.name), rest)


def test_every_command_in_the_text_has_the_options_it_names() -> None:
    found = [text for page in PAGES for text in re.findall(r"`certood ((?:[^`\s]+ ?)+)`", page)]
    assert len(found) > 12
    for text in found:
        words = text.split()
        name = words[0]
        if name == "COMMAND":
            continue
        command, rest = command_of(words[:2] if name == "data" else words[:1])
        assert not rest
        known = {flag for part in command.params for flag in part.opts} | {"--help"}
        for word in words:
            assert not word.startswith("--") or word in known, text
    # The rows of the table name options of their own command.
    for name, row in re.findall(r"^\| `certood (\w+)[^`]*` \| (.*) \|$", COMMAND_TABLE, re.MULTILINE):
        known = {flag for part in command_of([name])[0].params for flag in part.opts}
        for flag in re.findall(r"`(--[a-z-]+)", row):
            assert flag in known, (name, flag)


def test_commands_recipes_and_keys_exist() -> None:
    assert set(re.findall(r"^\| `certood (\w+)", COMMAND_TABLE, re.MULTILINE)) == set(COMMANDS)
    for name in re.findall(r"`((?:digits|mnist|cifar10)-[a-z-]+)`", README):
        assert name in recipe_names() or name.startswith("digits-near"), name
    for key in re.findall(r'--set "?([a-z_]+\.[a-z_]+)=', "\n".join(PAGES)):
        assert key in known_keys(), key


def test_links_and_pictures_lead_to_files() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert "docs/demo.png" in targets
    for target in targets:
        assert (ROOT / target).is_file(), target
    assert (ROOT / "docs" / "demo.png").stat().st_size <= 100_000


def test_no_placeholder_is_left() -> None:
    assert not re.search(r"^(SPEED|RESULTS|TODO)", README, re.MULTILINE)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_the_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(load_recipe("digits-greg-plus", ["training.epochs=1", "run.device=cpu"]), progress=False)
    blocks = [block for page in RUN for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]
    assert len(blocks) == 2
    scope: dict[str, object] = {}
    for block in blocks:
        exec(block, scope)
    records, found = scope["records"], scope["found"]
    assert all(record.radius_certified <= record.radius_attack for record in records)  # type: ignore[attr-defined]
    assert (found.lower <= found.upper).all()  # type: ignore[attr-defined]
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits-energy", "digits-greg-plus"])
def test_a_row_of_the_table_is_found_again_within_the_stated_tolerance(name: str, tmp_path: Path) -> None:
    """Whatever the processor and the number of threads."""
    assert "Expect means of FPR95 within a point, and those of AUROC within 0.2" in README
    found = re.search(rf"^\| `{name}` \| energy \|.*\| ([0-9.]+) / ([0-9.]+) \|$", README, re.MULTILINE)
    assert found is not None
    result = CliRunner().invoke(main, ["train", name, "--device", "cpu", "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    mean = json.loads((tmp_path / "run" / "evaluation.json").read_text("utf-8"))["scores"]["energy"]["mean"]
    assert 100 * mean["fpr95"] == pytest.approx(float(found[1]), abs=1)
    assert 100 * mean["auroc"] == pytest.approx(float(found[2]), abs=0.2)


NETWORK = """
from torch import nn


def make(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, num_classes)
    )
"""


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_the_shell_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one but the demo, which has a test of its own, on tiny images and shortened."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_networks.py").write_text(NETWORK)
    generator = np.random.default_rng(0)
    for folder, count in (
        ("train/a", 70),
        ("train/b", 70),
        ("test/a", 4),
        ("test/b", 4),
        ("../outliers", 400),
        ("../other", 4),
    ):
        path = tmp_path / "data" / "pictures" / folder
        path.mkdir(parents=True)
        for index in range(count):
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path / f"{index}.png")
    for name, count in (("theirs", 200), ("other", 4), ("more", 4)):
        images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        labels = {"labels": np.arange(count) % 10, "classes": np.array(list("abcdefghij"))} if name == "theirs" else {}
        np.savez(tmp_path / "data" / f"{name}.npz", images=images, **labels)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    scope: dict[str, object] = {}
    exec(NETWORK, scope)
    torch.save(scope["make"](num_classes=10).state_dict(), tmp_path / "weights.pt")  # type: ignore[operator]
    shorter = {"train": ["--set", "training.epochs=1", "--set", "run.device=cpu"], "certify": ["--limit", "1"]}
    done = []
    for words in (words for page in RUN for words in shell_lines(page)):
        if words[0] == "demo":
            continue
        # A gate needs more images; it is tested with the examples.
        asked = words[: words.index("--require")] if "--require" in words else words
        ramp = ["--set", "certified.start=0", "--set", "certified.ramp=1"] if "certified" in " ".join(asked) else []
        more = [*shorter.get(asked[0], []), *(ramp if asked[0] == "train" else [])]
        result = CliRunner().invoke(main, [*asked, *more])
        assert result.exit_code == 0, (asked, result.output, result.exception)
        done.append(asked[0])
    kinds = ("certify", "compare", "inspect", "recipe", "report", "train")
    assert {kind: done.count(kind) for kind in kinds} == {
        "certify": 3, "compare": 1, "inspect": 2, "recipe": 1, "report": 1, "train": 3
    }  # fmt: skip
    assert (tmp_path / "leaderboard.html").is_file()
    assert (tmp_path / "runs" / "digits-greg-plus" / "report.html").is_file()
    assert (tmp_path / "runs" / "mine" / "checkpoint.safetensors").is_file()
    assert (tmp_path / "certification.json").is_file()
