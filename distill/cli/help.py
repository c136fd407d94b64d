"""The help of every command in 80 columns, with full names, without a column of types, and with
defaults only if they help.
"""

import inspect
import textwrap
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rich.console import Console
from rich.text import Text

_WIDEST = 100  # longer lines are hard to read
_NAMES = 26  # columns of an option and its value


def set_help(command: Any) -> None:
    """Lets a command, and the commands below it, print their help and usage with this module."""
    # Attributes of the object, since its class depends on the version of typer.
    command.format_help = lambda context, formatter: show_help(command, context)
    command.collect_usage_pieces = lambda context: _usage(command, context)[1:]
    for _, each in _commands(command):
        set_help(each)


def show_help(command: Any, context: Any) -> None:
    """Prints the help of a command, or of a group of commands, on standard output."""
    console = Console(highlight=False)
    console = Console(
        highlight=False,
        width=min(console.width, _WIDEST) if console.is_terminal else min(console.width, 80),
    )
    usage = " ".join(_usage(command, context))
    _print(console, f"Usage: {usage}\n\n{inspect.cleandoc(command.help or '')}")
    hints = get_type_hints(inspect.unwrap(command.callback)) if command.callback else {}
    arguments, options = [], []
    for parameter in command.get_params(context):
        if parameter.param_type_name == "argument":
            arguments.append((parameter.metavar or parameter.name.upper(), parameter.help or ""))
        elif not parameter.hidden:
            options.append(
                (_spelled(parameter, hints.get(parameter.name, bool)), _meaning(parameter, hints))
            )
    _print_rows(console, "Arguments", arguments)
    _print_rows(console, "Options", options)
    _print_rows(
        console,
        "Commands",
        [(name, _first_line(each)) for name, each in _commands(command) if not each.hidden],
    )
    if command.epilog:
        _print(console, f"\n{inspect.cleandoc(command.epilog)}")


def _usage(command: Any, context: Any) -> list[str]:
    """The usage of a command, such as distill train RECIPE [KEY=VALUE]..., as a list of words."""
    words = [context.command_path]
    if any(parameter.param_type_name == "option" for parameter in command.params):
        words.append("[OPTIONS]")
    if _commands(command):
        words.append("COMMAND")
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            name = parameter.metavar or parameter.name.upper()
            name = name if parameter.required else f"[{name}]"
            words.append(f"{name}..." if parameter.nargs == -1 else name)
    return words


def _commands(command: Any) -> list[tuple[str, Any]]:
    return list(command.commands.items()) if hasattr(command, "commands") else []


def _first_line(command: Any) -> str:
    """The first paragraph of a command's help, in one line."""
    text = command.short_help or inspect.cleandoc(command.help or "").split("\n\n")[0]
    return " ".join(text.split())


def _spelled(parameter: Any, hint: Any) -> str:
    """An option with its value: --batch-size N, --precision fp32|bf16|fp16, --json."""
    names = ", ".join(
        sorted([*parameter.opts, *parameter.secondary_opts], key=lambda name: name.startswith("--"))
    )
    kind = _without_none(hint)
    if parameter.is_flag or kind is bool:
        return names
    if parameter.metavar:
        return f"{names} {parameter.metavar}"
    if get_origin(kind) is Literal:
        return f"{names} {'|'.join(map(str, get_args(kind)))}"
    return f"{names} { {int: 'N', float: 'X', Path: 'PATH'}.get(kind, 'TEXT') }"


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(each for each in get_args(hint) if each is not type(None))
    return hint


def _meaning(parameter: Any, hints: dict[str, Any]) -> str:
    default = parameter.default
    plain = (
        isinstance(default, str | int | float) and not isinstance(default, bool) and default != ""
    )
    return (
        f"{parameter.help or ''} (default: {default})"
        if plain and parameter.name in hints
        else str(parameter.help or "")
    )


def _print_rows(console: Console, title: str, rows: list[tuple[str, str]]) -> None:
    """Prints names with their meanings, which start on the next line after a long name."""
    if not rows:
        return
    _print(console, f"\n{title}:")
    width = min(max(len(name) for name, _ in rows), _NAMES)
    for name, meaning in rows:
        same_line = len(name) <= width
        if not same_line:
            _print(console, f"  {name}")
        lines = textwrap.wrap(meaning, console.width - width - 4, break_on_hyphens=False) or [""]
        for number, line in enumerate(lines):
            first = name if same_line and number == 0 else ""
            _print(console, f"  {first:{width}}  {line}".rstrip())


def _print(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True)
