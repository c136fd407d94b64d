"""Prints a diagnosis for people: sections, tables, and the findings last."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill.console import make_console, show_table, visible
from distill.doctor.findings import Diagnosis, Grid, Section

_STYLES = {"ok": "green", "unknown": "cyan", "warning": "yellow", "problem": "bold red"}


def show(diagnosis: Diagnosis) -> None:
    """Prints a diagnosis on standard output."""
    console = make_console()
    for section in diagnosis.sections:
        _print_section(console, section)
    _print_findings(console, diagnosis)


def _print_section(console: Console, section: Section) -> None:
    console.print(Text(section.title, style="bold"))
    if section.rows:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=not console.is_terminal)
        table.add_column()
        table.add_column(style="dim")
        for what, value, source in section.rows:
            table.add_row(f"  {what}", value, source)
        show_table(console, table)
    for grid in section.tables:
        _print_grid(console, grid)
    console.print()


def _print_grid(console: Console, grid: Grid) -> None:
    console.print(f"  {grid.title}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(grid.columns):
        table.add_column(
            f"  {column}" if index == 0 else column, justify="left" if index == 0 else "right"
        )
    for row in grid.rows:
        table.add_row(f"  {row[0]}", *row[1:])
    show_table(console, table)
    if grid.note:
        console.print(f"  {grid.note}", style="dim", soft_wrap=True)


def _print_findings(console: Console, diagnosis: Diagnosis) -> None:
    console.print(Text("Result", style="bold"))
    order = list(_STYLES)
    for finding in sorted(diagnosis.findings, key=lambda finding: order.index(finding.level)):
        line = Text.assemble("  ", (f"{finding.level:8}", _STYLES[finding.level]))
        fix = f". Fix: {finding.fix}" if finding.fix else ""
        line.append(visible(f"{finding.about}: {finding.says}{fix}"))
        console.print(line, soft_wrap=not console.is_terminal)
    if not any(finding.level in ("warning", "problem") for finding in diagnosis.findings):
        console.print("  no problems found")
