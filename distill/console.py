"""Prints text, tables and errors on terminals and in pipes."""

import os
import sys
import textwrap

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from distill.errors import printable

# Files and pipes have no width: rich would wrap at 80 columns and break lines that programs read.
_PLAIN_WIDTH = 1000


def make_console(stderr: bool = False) -> Console:
    """Returns the console for all output: as wide as the terminal, or in a pipe wide enough that
    lines are not wrapped.
    """
    console = _literal_console(stderr, None)
    return console if console.is_terminal else _literal_console(stderr, _PLAIN_WIDTH)


def _literal_console(stderr: bool, width: int | None) -> Console:
    """Returns a console that prints `[red]`, `:smile:` and escape codes in a str, also in a table,
    as plain characters.

    This is safe for names from folders, archives and servers. A rich Text is not changed: make it
    with `visible(name)`.
    """
    encoding = (sys.stderr if stderr else sys.stdout).encoding or "utf-8"

    def highlighter(text: str | Text) -> Text:
        return visible(str(text), encoding)

    return Console(
        stderr=stderr,
        markup=False,
        emoji=False,
        highlight=True,
        highlighter=highlighter,
        width=width,
    )


def visible(message: str, encoding: str = "utf-8") -> Text:
    """Returns a message in which control characters, except line ends, and characters that
    `encoding` lacks are escaped.
    """
    lines = "\n".join(map(printable, message.split("\n")))
    return Text(lines.encode(encoding, "backslashreplace").decode(encoding))


def wrapped(console: Console, text: str, indent: int = 0) -> str:
    """Returns a text wrapped between words for a terminal; in a pipe the text is not changed."""
    if not console.is_terminal or console.is_dumb_terminal:
        return text
    width = max(console.width, 2 * indent)
    lines = text.split("\n")
    return "\n".join(
        textwrap.fill(
            line,
            width,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
        )
        for line in lines
    )


def show_table(console: Console, table: Table) -> None:
    """Prints a table; in a pipe without trailing blanks."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        console.print(line.rstrip(), markup=False, soft_wrap=True)


def error_panel(message: str) -> None:
    """Prints an error on standard error: a panel on a terminal, lines in a pipe, and one line for a
    rank above 0.
    """
    console = make_console(stderr=True)
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        console.print(
            f"distill (rank {rank}): {' '.join(message.split())}", markup=False, soft_wrap=True
        )
    elif console.is_terminal:
        console.print(
            Panel(visible(message), title="distill", title_align="left", border_style="red")
        )
    else:
        console.print(f"distill: {message}", markup=False, soft_wrap=True)


def hours_minutes(seconds: float) -> str:
    """Returns a duration as "1:02:03" or "0:45"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
