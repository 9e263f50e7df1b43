"""Writes docs/cli.md from the commands themselves: python docs/generate_cli.py. A test compares the file with them."""

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from certood.cli import main

PAGE = Path(__file__).with_name("cli.md")
HEAD = r"""# Command line

Made from the commands by `python docs/generate_cli.py`; a test compares.

Every command has `--help`; `--debug`, anywhere on the line, adds the traceback to an error. Exit codes: 0 done, 1 a requirement
not met or training diverged, 2 usage or bad input, 3 cannot be certified, 130 interrupted. Errors go to stderr. Long jobs show
their progress on a terminal, and continue where they stopped.

A shell completes commands, options and the names of recipes after one line in its start-up file:

| shell | file | line |
| --- | --- | --- |
| bash | `~/.bashrc` | `eval "$(_CERTOOD_COMPLETE=bash_source certood)"` |
| zsh | `~/.zshrc` | `eval "$(_CERTOOD_COMPLETE=zsh_source certood)"` |
| fish | `~/.config/fish/completions/certood.fish` | `_CERTOOD_COMPLETE=fish_source certood \| source` |
"""


def reference() -> str:
    """The whole page as Markdown."""
    context = click.Context(main, info_name="certood")
    return "\n".join([HEAD, *_group(context, main)]).rstrip() + "\n"


def _group(context: click.Context, group: click.Group) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from _group(inner, command)
        else:
            yield from _command(inner, command)


def _command(context: click.Context, command: click.Command) -> Iterator[str]:
    arguments = " ".join(_metavar(part) for part in command.params if isinstance(part, click.Argument))
    yield f"## `{context.command_path} [OPTIONS] {arguments}".rstrip() + "`\n"
    yield inspect.cleandoc(command.help or "") + "\n"
    options = [part for part in command.params if isinstance(part, click.Option)]
    if options:
        yield "| option | what it does |\n| --- | --- |"
        for option in options:
            yield f"| `{_flags(option)}` | {_cell(_text(option))} |"
        yield ""


def _metavar(argument: click.Argument) -> str:
    name = (argument.metavar or str(argument.name)).upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _flags(option: click.Option) -> str:
    flags = ", ".join(option.opts)
    if option.is_flag:
        return flags
    names = option.type.get_metavar(option, click.Context(main))
    if names is not None and option.metavar is None:
        return f"{flags} {names.strip('[]')}".replace("|", "\\|")
    return f"{flags} {option.metavar or option.type.name.upper().replace(' RANGE', '')}"


def _text(option: click.Option) -> str:
    text = option.help or ""
    if option.required:
        text += " Required."
    if option.multiple and "give it once" not in text:
        text += " May be given several times."
    if option.show_default:
        default = option.show_default if isinstance(option.show_default, str) else option.default
        text += f" [default: {default}]"
    return text.strip()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("  [", " [")


if __name__ == "__main__":
    PAGE.write_text(reference(), "utf-8")
