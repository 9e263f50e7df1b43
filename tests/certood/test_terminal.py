"""What a command shows: tables as plain text, and what it is busy with before its first result."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from certood.cli import main
from certood.text_tables import TextTable
from certood.waiting import busy


def test_a_mistyped_command_is_told_the_nearest() -> None:
    result = CliRunner().invoke(main, ["trian", "digits-ce"])
    assert result.exit_code == 2
    assert "No such command 'trian'; did you mean 'train'?" in result.output
    assert "No such command 'zzz'." in CliRunner().invoke(main, ["--debug", "zzz"]).output


def test_a_table_is_aligned_and_never_folded() -> None:
    table = TextTable(("name", "n", "where"), title="two", left=(0, 2))
    table.line("a long line that is no row")
    table.row("a", "100", "here")
    table.row("longer", "1")
    assert str(table).splitlines() == [
        "two",
        "",
        "  name      n  where",
        "a long line that is no row",
        "  a       100  here",
        "  longer    1",
    ]


def test_nothing_is_said_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with busy("Loading"):
        pass
    assert capsys.readouterr() == ("", "")


def on_a_terminal(*arguments: str, cwd: Path) -> str:
    """Standard error of a command as a terminal of 80 columns gets it."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "80"}
    process = subprocess.Popen(
        [sys.executable, "-m", "certood", *arguments],
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        cwd=cwd,
        env=environment,
    )
    os.close(theirs)
    process.wait()
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # the terminal is closed
        pass
    os.close(ours)
    return shown.decode()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("certood re", {"recipe", "report"}),
        ("certood recipe show digits-gr", {"digits-greg", "digits-greg-plus"}),
        ("certood train --see", {"--seed", "--seeds"}),
    ],
)
def test_a_shell_completes_commands_options_and_recipes(words: str, expected: set[str]) -> None:
    # What the line of docs/cli.md makes bash ask; nothing of it needs torch.
    asked = {"_CERTOOD_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    code = "import sys\nfrom certood.cli import main\ntry:\n    main(prog_name='certood')\n"
    code += "finally:\n    assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == expected, done.stderr


@pytest.mark.slow
def test_a_command_first_says_what_it_loads_and_then_erases_it(tmp_path: Path) -> None:
    shown = on_a_terminal("train", "digits-ce", "--set", "data.ood=['nothing']", cwd=tmp_path)
    first, *others = shown.split("\r\x1b[K")
    assert first == "Loading PyTorch …"
    assert others
    assert "Error: unknown image set 'nothing'" in others[-1]


def test_the_list_of_sets_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    shown = CliRunner().invoke(main, ["data", "list", "--data-root", str(tmp_path)], env={"COLUMNS": "80"})
    assert shown.exit_code == 0, shown.output
    assert all(len(line) <= 80 for line in shown.output.splitlines())
