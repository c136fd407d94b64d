"""How anything is printed, for people and for pipes."""

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
    """The console that everything prints on: as wide as the terminal, or wide enough not to wrap
    plain lines.
    """
    console = _literal_console(stderr, None)
    return console if console.is_terminal else _literal_console(stderr, _PLAIN_WIDTH)


def _literal_console(stderr: bool, width: int | None) -> Console:
    """A console for which `[red]`, `:smile:` and escape codes in a str, also in a table's cell, are
    plain characters.

    Names come from folders, archives and servers. A rich Text is printed as it is: make one of
    `visible(name)`.
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
    """A message of one or more lines whose other control characters, and those that `encoding`
    lacks, are written out.
    """
    lines = "\n".join(map(printable, message.split("\n")))
    return Text(lines.encode(encoding, "backslashreplace").decode(encoding))


def wrapped(console: Console, text: str, indent: int = 0) -> str:
    """Return a text for a terminal broken between words, never in a path or a long name; elsewhere
    as it is.
    """
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
    """Print a table; elsewhere than on a terminal without the blanks that fill its last column."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        console.print(line.rstrip(), markup=False, soft_wrap=True)


def error_panel(message: str) -> None:
    """Show what was wrong with the input, on standard error. Under a launcher every process says
    its own, in a line.
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
    """ "1:02:03", or "0:45"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
