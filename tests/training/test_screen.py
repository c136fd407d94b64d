"""What people see of a run in progress: on a terminal a bar and a table that fit it, elsewhere
plain lines.
"""

import io
import os
import pty
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from rich.console import Console
from ticking import Ticking

import distill.console
from distill.evaluation.metric import METRICS
from distill.recipe import load_recipe
from distill.training.header import show, show_recipe, show_views
from distill.training.screen import Progressed, Screen

Terminal = Callable[..., io.StringIO]
NOW = Progressed(50, 1.25, 12345.6, 3 * 2**30, 605, 3725)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """terminal(80): from here on the program writes to a terminal of 80 columns, into what is
    returned.
    """

    def attach(width: int, height: int = 40) -> io.StringIO:
        written = io.StringIO()
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setattr(
            distill.console,
            "make_console",
            lambda stderr=False: Console(
                file=written,
                width=width,
                height=height,
                force_terminal=True,
                markup=False,
                highlight=False,
                color_system=None,
            ),
        )
        return written

    return attach


def drawn(screen: Screen) -> list[str]:
    """The lines of the live display as they stand now."""
    console = Console(
        file=io.StringIO(),
        width=screen.console.width,
        force_terminal=True,
        color_system=None,
        markup=False,
    )
    with console.capture() as capture:
        console.print(screen)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_models_that_see_the_same_share_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    show_views(
        ["teacher sees 96x96 px", "a sees 64x64 px", "b sees 64x64 px", "b: weights were resampled"]
    )
    assert capsys.readouterr().out.splitlines() == [
        "  models    teacher sees 96x96 px",
        "            a, b see 64x64 px",
        "            b: weights were resampled",
    ]


def test_the_header_names_the_splits_of_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(
        "data:\n"
        "  train: {kind: parquet, path: pets, split: train}\n"
        "  eval: {kind: parquet, path: pets, split: validation}\n"
        "student: {model: resnet18}\n"
        "train: {budget: 1 epochs}\n"
    )
    show_recipe(load_recipe(tmp_path / "a.yaml"))
    said = capsys.readouterr().out
    assert "data      parquet train pets; evaluated on parquet validation pets; 224 px" in said


@pytest.mark.parametrize("width", [40, 80])
def test_the_header_of_a_terminal_breaks_between_words(
    width: int, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = terminal(width)
    monkeypatch.setattr("distill.training.header.make_console", distill.console.make_console)
    place = "/a/path/that/is/longer/than/any/terminal/is/wide" * 2
    show("models", "teacher sees 96x96 px " * 8 + place)
    first, *lines, path = written.getvalue().splitlines()
    assert path == " " * 12 + place
    assert first.startswith("  models    teacher sees 96x96 px")
    assert all(len(line) <= width for line in (first, *lines))
    assert all(line[:12].isspace() and not line[12].isspace() for line in lines)
    words = " ".join([first, *lines]).split()
    assert words == ["models", *["teacher", "sees", "96x96", "px"] * 8]


def a_screen(title: str = "a/run", names: tuple[str, ...] = ("alone", "kd")) -> Screen:
    screen = Screen(
        title=title,
        students=list(names),
        teachers=["teacher"],
        total_steps=200,
        total_epochs=5,
        metric=METRICS["top1"],
        show=True,
    )
    first, *_, last = screen.rows.values()
    first.loss, first.lr, first.top1, first.best, first.agreement = (
        2.34567,
        0.05,
        61.234,
        62.0,
        70.5,
    )
    last.loss, last.top1, last.note = 9.9, 9.9, "stopped at step 12"
    screen.teachers["teacher"].top1 = 71.0
    return screen


# ---- on a terminal -------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 160])
def test_the_display_fits_the_terminal(width: int, terminal: Terminal) -> None:
    terminal(width)
    screen = a_screen()
    with screen:
        screen.advance(50)
        screen.trained(NOW)
        lines = drawn(screen)
        assert lines[0].startswith("a/run ")
        assert lines[0].endswith("50/200 steps")
        assert len(lines[0]) == width, "one bar, as wide as the terminal"
        assert lines[1] == "epoch 1.25/5, 12,346 images/s, 3.0 GiB, 10:05 elapsed, 1:02:05 left"
        assert lines[2].split() == ["loss", "lr", "top-1", "%", "best", "%", "agrees", "%"]
        assert lines[3].split() == ["teacher", "71.00"]
        assert lines[4].split() == ["alone", "2.3457", "5.00e-02", "61.23", "62.00", "70.50"]
        assert lines[5].split() == ["kd", "9.9000", "9.90", "stopped", "at", "step", "12"]
        assert len(lines) == 6
        screen.doing("evaluating")
        assert drawn(screen)[1].endswith("left; evaluating")
        screen.advance(51)
        assert drawn(screen)[1].endswith("left")


def test_the_times_move_between_two_steps(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal(80)
    time = Ticking()
    monkeypatch.setattr("distill.training.screen.time", time)
    screen = a_screen()
    screen.advance(50)
    screen.progress(NOW)
    time.now += 60
    assert screen.status().endswith("11:05 elapsed, 1:01:05 left")
    time.now += 9999
    assert screen.status().endswith(" 0:00 left"), "never below nothing"


def test_long_names_and_many_students_keep_bar_pace_and_figures(terminal: Terminal) -> None:
    terminal(80, height=24)
    names = ("x" * 50, *(f"student-{i}" for i in range(40)))
    with a_screen("imagenet1k/" + "long_" * 20, names) as screen:
        screen.advance(50)
        screen.trained(NOW)
        lines = drawn(screen)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert lines[0].endswith("50/200 steps")
    assert "━" in lines[0]
    assert "2.3457" in "".join(lines)
    assert "1:02:05 left" in lines[1]
    assert "".join(lines).count("x") >= 50, "a long name is folded, not cut"
    assert lines[-1].split()[0] == "and"
    assert lines[-1].endswith("more")


def test_the_bar_moves(terminal: Terminal) -> None:
    terminal(80)
    with a_screen() as screen:
        filled = []
        for step in (10, 100, 190):
            screen.advance(step)
            filled.append(drawn(screen)[0].count("━"))
            assert f"{step}/200 steps" in drawn(screen)[0]
        assert filled[0] < filled[1] < filled[2]  # without colours only what is done is drawn


def test_before_the_first_step_it_says_what_it_does(terminal: Terminal) -> None:
    terminal(80)
    assert drawn(a_screen())[1] == "starting"


def test_lines_go_above_the_display_and_nothing_of_it_stays(terminal: Terminal) -> None:
    written = terminal(80)
    with a_screen() as screen:
        screen.say(
            "saved in "
            + "/a-long/folder" * 10
            + "; the same command resumes it "
            + "whenever you like " * 5
        )
    screen.console.print("after")
    text = written.getvalue()
    assert "/a-long/folder" * 10 in text, "wrapped: it could not be copied"
    (prose,) = [line for line in text.splitlines() if line.startswith("the same command")]
    assert prose == "the same command resumes it whenever you like whenever you like whenever you"
    assert text.index("saved in") < text.index("after")
    left = text.rpartition("200 steps")[2]  # what came after the last drawing
    assert left.count("\x1b[2K") >= 4, "the display was not taken away"
    assert "step 0" not in text


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = terminal(80)
    monkeypatch.setenv("TERM", "dumb")
    with a_screen() as screen:
        screen.trained(NOW)
    assert " step 50/200 epoch 1.25: loss alone 2.3457, kd stopped at step 12" in written.getvalue()
    assert "\x1b" not in written.getvalue()


def test_a_name_is_no_markup(terminal: Terminal) -> None:
    terminal(80)
    assert drawn(a_screen("[/x] [bold]run"))[0].startswith("[/x] [bold]run ")


@contextmanager
def real_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> Iterator[list[str]]:
    """Inside, standard output is a terminal; afterwards the list holds what was written there."""
    ours, theirs = pty.openpty()
    chunks: list[bytes] = []

    def collect() -> None:
        with suppress(OSError):  # its other end is closed
            while chunk := os.read(ours, 65536):
                chunks.append(chunk)

    reader = threading.Thread(target=collect)
    reader.start()
    written: list[str] = []
    with monkeypatch.context() as patch, os.fdopen(theirs, "w", encoding="utf-8") as stream:
        patch.setattr("sys.stdout", stream)
        patch.setenv("COLUMNS", str(width))
        patch.setenv("LINES", "24")
        yield written
    reader.join()
    os.close(ours)
    written.append(b"".join(chunks).decode())


@pytest.mark.parametrize("kind", ["xterm-256color", "NO_COLOR", "dumb"])
@pytest.mark.parametrize("width", [80, 160])
def test_in_a_real_terminal(kind: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "dumb" if kind == "dumb" else "xterm-256color")
    if kind == "NO_COLOR":
        monkeypatch.setenv("NO_COLOR", "1")
    with real_terminal(monkeypatch, width) as written, a_screen("[red]a/run") as screen:
        screen.advance(50)
        screen.trained(NOW)
        screen.say("a message")
    (text,) = written
    assert "a message" in text
    assert ("[red]a/run" in text) == (kind != "dumb")
    assert ("50/200 steps" in text) == (kind != "dumb")
    assert ("\x1b" in text) == (kind != "dumb")
    colours = [code for codes in re.findall(r"\x1b\[([\d;]*)m", text) for code in codes.split(";")]
    assert any(code.startswith("3") and code != "3" for code in colours) == (
        kind == "xterm-256color"
    )
    lines = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text).splitlines()
    assert kind == "dumb" or max(map(len, lines)) <= width


# ---- elsewhere -----------------------------------------------------------------------------------


def test_without_a_terminal_there_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with a_screen() as screen:
        screen.advance(50)
        screen.trained(NOW)
        screen.rows["kd"].note, screen.rows["kd"].lr, screen.rows["kd"].loss = "", 0.1, 1.0
        screen.trained(NOW)
        screen.evaluated(NOW)
        screen.say("[red]as it is[/red] " * 20)
    lines = capsys.readouterr().out.splitlines()
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d step 50/200 epoch 1\.25: "
    pace = "12,346 images/s, 3.0 GiB, 10:05 elapsed, 1:02:05 left"
    assert [re.sub(f"^{when}", "", line) for line in lines] == [
        f"loss alone 2.3457, kd stopped at step 12; lr 5.00e-02; {pace}",
        f"loss alone 2.3457, kd 1.0000; lr alone 5.00e-02, kd 1.00e-01; {pace}",
        "top-1 % teacher 71.00, alone 61.23, kd 9.90; agrees with teacher % alone 70.50",
        "[red]as it is[/red] " * 20,
    ]
    assert all(re.match(when, line) for line in lines[:3])


def test_other_processes_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(
        title="run",
        students=["alone"],
        teachers=[],
        total_steps=2,
        total_epochs=1,
        metric=METRICS["top1"],
        show=False,
    )
    with screen:
        screen.say("something")
        screen.trained(NOW)
        screen.evaluated(NOW)
    assert capsys.readouterr().out == ""
