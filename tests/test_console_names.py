"""Names from outside are printed as what they are: no markup, no emoji codes, no escape codes, in
any encoding.
"""

import io
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.table import Table

from distill.console import error_panel, make_console, show_table
from distill.errors import printable
from distill.evaluation.metric import METRICS
from distill.training.screen import Screen

HOSTILE = "[/red][bold]x[/] :smile: \x1b[2J\x07 \u202egnp.\n\ttail \udcff"
SHOWN = "[/red][bold]x[/] :smile: \\x1b[2J\\x07 \\u202egnp."


def test_a_table_prints_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(box=None, show_header=False)
    table.add_row(printable(HOSTILE))
    show_table(make_console(), table)
    assert capsys.readouterr().out.strip() == SHOWN + "\\n\\ttail \\xff"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_message_keeps_its_lines_and_shows_its_codes(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "120")
    error_panel(HOSTILE)
    said = capsys.readouterr().err
    # rich itself takes out the bell
    assert SHOWN.replace("\\x07", "" if not terminal else "\\x07") in said
    assert "tail \\xff" in said
    assert "\x1b[2J" not in said
    assert "\x07" not in said
    assert "\u202e" not in said
    assert len(said.splitlines()) == (4 if terminal else 2)


def test_a_narrow_encoding_writes_out_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", written)
    make_console().print("Äpfel 图")
    written.flush()
    assert written.buffer.getvalue() == b"\\xc4pfel \\u56fe\n"  # type: ignore[attr-defined]


def test_a_run_may_be_called_anything() -> None:
    screen = Screen(
        title="[/x]\x1b[1m",
        students=["[red]a"],
        teachers=[],
        total_steps=2,
        total_epochs=1,
        metric=METRICS["top1"],
        show=True,
    )
    screen.console.width = 100
    with screen.console.capture() as capture:
        screen.console.print(screen)
    assert "[/x]\\x1b[1m" in capture.get()
    assert "[red]a" in capture.get()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=())))
def test_a_printable_name_is_one_line_that_any_file_takes(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable()
    shown.encode()
    assert printable(shown) == shown
