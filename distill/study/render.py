"""The table of a study as a terminal table, Markdown, CSV and LaTeX.

Labels come from outside: each form escapes what it would read as more than text.
"""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console
from rich.text import Text

from distill.console import show_table, visible
from distill.errors import printable
from distill.evaluation.metric import METRICS
from distill.study.marks import Entry
from distill.study.results import DEVICE_HOURS
from distill.study.table import Table

NOT_RUN = "not run"
_MANY_HOURS = 10
_MARKDOWN = re.compile(r"[\\`*_\[\]<>|&~$@#]")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "✓": r"$\checkmark$",
    "×": r"$\times$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def ours(entry: Entry, table: Table) -> str:
    """Returns our value of an entry: "80.91 ± 0.05", "not run"."""
    several = {
        len(each.values) for each in table.entries.values() if each.values and not each.signed
    }
    if entry.mean is None:
        if entry.num_diverged:
            return "diverged"
        return "training" if entry.training else NOT_RUN
    pattern = _pattern(entry, table, entry.mean)
    deviation = "" if entry.deviation is None else f" ± {entry.deviation:{pattern}}"
    partial = len(entry.values) < entry.num_cells or len(several) > 1
    count = f" (n = {len(entry.values)})" if partial and entry.num_cells > 1 else ""
    lost = f", {entry.num_diverged} diverged" if entry.num_diverged else ""
    gap = "" if entry.gap is None else f" {_signed(entry.gap)}"
    return f"{entry.mean:{pattern}}{deviation}{count}{lost}{gap}"


def paper(entry: Entry, table: Table) -> str:
    """Returns the paper's value of an entry; empty if it has none."""
    if entry.paper is None:
        return ""
    pattern = _pattern(entry, table, entry.paper)
    gap = "" if entry.paper_gap is None else f" {_signed(entry.paper_gap)}"
    return f"{entry.paper:{pattern}}{gap}"


def _pattern(entry: Entry, table: Table, value: float) -> str:
    if entry.figure == DEVICE_HOURS:
        return ",.0f" if value >= _MANY_HOURS else ".2f"
    pattern = METRICS.get(entry.figure, table.metric).pattern
    return f"+{pattern}" if entry.signed else pattern


def _signed(gap: float) -> str:
    return f"{gap:+.2f}"


def show(console: Console, table: Table) -> None:
    """Prints the table on a terminal."""
    from rich.table import Table as RichTable

    console.print(Text(printable(table.title), style="bold"), soft_wrap=True)
    shown = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heads in _row_heads(table):
        shown.add_column(visible("\n".join(heads)))
    for column in table.columns:
        shown.add_column(visible("\n".join(column) or "top-1"), justify="right")
    for number, labels in enumerate(_without_repeats(table.rows)):
        cells = [_text(table.entries.get((number, c)), table) for c in range(len(table.columns))]
        shown.add_row(*map(visible, labels), *cells)
    show_table(console, shown)
    for note in table.notes:
        console.print(note, markup=False, soft_wrap=True)


def _text(entry: Entry | None, table: Table) -> Text:
    if entry is None:
        return Text("-")
    value = ours(entry, table)
    text = Text(value, style="bold" if entry.best else "dim" if entry.mean is None else "")
    if reference := paper(entry, table):
        text.append(f" ({reference})", style="bold" if entry.paper_best else "not bold")
    return text


def markdown(table: Table) -> str:
    """Returns the table in Markdown, under its title."""
    return f"**{escape_markdown(table.title)}**\n\n{_markdown_body(table)}"


def _markdown_body(table: Table) -> str:
    def cell(entry: Entry | None) -> str:
        return _with_paper(
            entry, table, lambda text, bold: f"**{text}**" if bold else text, escape_markdown
        )

    heads = [*table.row_names, *(" / ".join(filter(None, column)) for column in table.columns)]
    lines = [
        _line([escape_markdown(head) for head in heads]),
        _line(["--"] * len(table.row_names) + ["--:"] * len(table.columns)),
    ]
    for number, labels in enumerate(_without_repeats(table.rows)):
        cells = [cell(table.entries.get((number, c))) for c in range(len(table.columns))]
        lines.append(_line([*map(escape_markdown, labels), *cells]))
    return "\n".join([*lines, "", *map(escape_markdown, table.notes)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escape_markdown(text: str) -> str:
    """Returns a text that Markdown shows as it is, in one line."""
    return _MARKDOWN.sub(r"\\\g<0>", printable(text))


def escape_latex(text: str) -> str:
    """Returns a text that LaTeX shows as it is."""
    return "".join(_LATEX.get(character, character) for character in printable(text))


def _with_paper(
    entry: Entry | None,
    table: Table,
    bold: Callable[[str, bool], str],
    escape: Callable[[str], str],
) -> str:
    if entry is None:
        return "-"
    value = bold(escape(ours(entry, table)), entry.best)
    reference = paper(entry, table)
    return f"{value} ({bold(escape(reference), entry.paper_best)})" if reference else value


@dataclass(frozen=True)
class RenderedCell:
    """A cell of a table as texts."""

    ours: str
    paper: str
    best: bool
    paper_best: bool


@dataclass(frozen=True)
class RenderedRow:
    """A row of a table; an outer label only where it begins."""

    labels: tuple[str, ...]
    cells: tuple[RenderedCell, ...]


@dataclass(frozen=True)
class Rendered:
    """A table for the templates of a report.

    Attributes:
        heads: the levels of the heading: names, and the columns that each spans.
        num_labels: the first columns, which are labels of rows.
        markdown: the table in Markdown, without its title, escaped.
    """

    title: str
    heads: Sequence[Sequence[tuple[str, int]]]
    num_labels: int
    rows: Sequence[RenderedRow]
    notes: Sequence[str]
    markdown: str


def rendered(table: Table) -> Rendered:
    """Returns the table for the templates of a report."""

    def cell(entry: Entry | None) -> RenderedCell:
        if entry is None:
            return RenderedCell("-", "", False, False)
        best, paper_best = entry.best, entry.paper_best
        return RenderedCell(ours(entry, table), paper(entry, table), best, paper_best)

    columns = range(len(table.columns))
    rows = [
        RenderedRow(labels, tuple(cell(table.entries.get((number, c))) for c in columns))
        for number, labels in enumerate(_without_repeats(table.rows))
    ]
    num_labels = len(table.row_names)
    return Rendered(
        table.title, _heads(table), num_labels, rows, table.notes, _markdown_body(table)
    )


def _row_heads(table: Table) -> list[list[str]]:
    """Returns for each level of the heading what stands above the labels of rows: their dimensions
    in the last one, and in the others above the last labels those of the columns that are named.
    """
    depth = max(len(table.columns[0]), 1)
    heads = [[*[""] * (depth - 1), name] for name in table.row_names]
    for level, name in enumerate(table.column_heads[: depth - 1] if heads else ()):
        heads[-1][level] = name
    return heads


def _heads(table: Table) -> list[list[tuple[str, int]]]:
    """Returns the levels of the heading: names, and the columns that each spans."""
    depth = max(len(table.columns[0]), 1)
    levels = []
    for level in range(depth):
        heads = [(own[level], 1) for own in _row_heads(table)]
        for labels, members in groupby(table.columns, key=lambda column: column[: level + 1]):
            heads.append((labels[level] if labels else "", len(list(members))))
        levels.append(heads)
    return levels


def latex(table: Table) -> str:
    """Returns the table in LaTeX, for the packages booktabs and amssymb (for a check mark)."""

    def cell(entry: Entry | None) -> str:
        return _with_paper(
            entry, table, lambda text, b: rf"\textbf{{{text}}}" if b else text, escape_latex
        )

    num_rows = len(table.row_names)
    lines = [
        r"\begin{table}",
        rf"\caption{{{escape_latex(table.title)}}}",
        rf"\begin{{tabular}}{{{'l' * num_rows}{'r' * len(table.columns)}}}",
        r"\toprule",
    ]
    for level in _heads(table):
        heads = [
            rf"\multicolumn{{{span}}}{{c}}{{{escape_latex(name)}}}"
            if span > 1
            else escape_latex(name)
            for name, span in level
        ]
        lines.append(f"{' & '.join(heads)} \\\\")
    lines.append(r"\midrule")
    for number, labels in enumerate(_without_repeats(table.rows)):
        if number and labels[0] and num_rows > 1:
            lines.append(r"\addlinespace")
        cells = [cell(table.entries.get((number, c))) for c in range(len(table.columns))]
        lines.append(f"{' & '.join([*map(escape_latex, labels), *cells])} \\\\")
    notes = " ".join(map(escape_latex, table.notes))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", notes, r"\end{table}", ""])


def csv_text(table: Table) -> str:
    """Returns the table in CSV, a line for each entry."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [*table.row_names, *table.column_names]
    names += ["value"] * (len(table.columns[0]) - len(table.column_names))
    heads = ["figure", "mean", "deviation", "n", "values", "paper", "status"]
    writer.writerow([*map(printable, names), *heads])
    for (row, column), entry in sorted(table.entries.items()):
        status = "done" if entry.mean is not None else ours(entry, table)
        figures = [entry.mean, entry.deviation]
        writer.writerow(
            [
                *(_plain(label) for label in (*table.rows[row], *table.columns[column])),
                entry.figure,
                *("" if value is None else f"{value:.6g}" for value in figures),
                len(entry.values),
                " ".join(f"{value:.6g}" for value in entry.values),
                "" if entry.paper is None else f"{entry.paper:g}",
                status,
            ]
        )
    return out.getvalue()


def _plain(label: str) -> str:
    """Returns a label that no spreadsheet reads as a formula."""
    text = printable(label)
    return f"'{text}" if text[:1] in ("=", "@", "+") or text[:2] == "-=" else text


def _without_repeats(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Returns the labels of rows, an outer label only where it begins."""
    shown = []
    for number, row in enumerate(rows):
        before = rows[number - 1] if number else None
        same = 0
        while before is not None and same < len(row) - 1 and before[same] == row[same]:
            same += 1
        shown.append(("",) * same + row[same:])
    return shown


FORMATS: dict[str, Callable[[Table], str]] = {"md": markdown, "csv": csv_text, "tex": latex}
"""How to write a table, by the ending of its file."""
