"""What people see: on a terminal a bar and a table that fit it, elsewhere plain lines."""

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

import distill.console
from distill.console import error_panel, hours_minutes, make_console, show_table
from distill.evaluation.accuracy import Accuracy
from distill.evaluation.metric import METRICS
from distill.recipe.schema import CESpec, KLSpec, ObjectiveSpec
from distill.student.student import Best
from distill.training.summary import Summary

Terminal = Callable[[int], io.StringIO]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """terminal(80): from here on the program writes to a terminal of 80 columns; what it writes is
    in the answer.
    """

    def attach(width: int) -> io.StringIO:
        written = io.StringIO()
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setattr(
            distill.console,
            "make_console",
            lambda stderr=False: Console(
                file=written,
                width=width,
                height=40,
                force_terminal=True,
                highlight=False,
                color_system=None,
            ),
        )
        return written

    return attach


def test_a_table_in_a_pipe_has_no_blanks_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", "what it is", box=None, pad_edge=False)
    table.add_row("a", "short")
    table.add_row("b", "longer " * 40 + "end")
    show_table(make_console(), table)
    lines = capsys.readouterr().out.splitlines()
    assert [len(line) == len(line.rstrip()) for line in lines] == [True] * 3, (
        "and no line is broken"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (59.6, "1:00"), (605, "10:05"), (3600, "1:00:00"), (90061, "25:01:01")],
)
def test_hours_minutes(seconds: float, text: str) -> None:
    assert hours_minutes(seconds) == text


# ---- errors --------------------------------------------------------------------------------------


def test_an_error_is_a_panel_on_a_terminal(terminal: Terminal) -> None:
    written = terminal(60)
    error_panel("data.root: [/gone] is not there: " + "give another " * 8)
    lines = written.getvalue().splitlines()
    assert lines[0].startswith("╭─ distill ─")
    assert lines[1].startswith("│ data.root: [/gone] is not there:")
    assert {len(line) for line in lines} == {60}


def test_an_error_is_a_line_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "data.root: [/gone] is not there: " + "give another " * 30
    error_panel(message)
    assert capsys.readouterr().err == f"distill: {message}\n"
    monkeypatch.setenv("RANK", "3")
    error_panel("first line\nsecond line")
    assert capsys.readouterr().err == "distill (rank 3): first line second line\n"


# ---- the end of a run ----------------------------------------------------------------------------


def a_student(
    name: str, model: str, *, stopped_at: int | None = None, best: float | None = 62.0
) -> Any:
    objective = ObjectiveSpec(hard=CESpec(loss="ce"), soft=KLSpec(loss="kl", weight=0.5))
    return SimpleNamespace(
        name=name,
        spec=SimpleNamespace(model=model, objective=objective),
        num_parameters=1_001_000,
        num_head_parameters=0,
        running=stopped_at is None,
        stopped_at=stopped_at,
        is_backbone=False,
        best=None if best is None else Best(best, 4, "raw"),
        averages=("ema-0.9999",),
    )


def a_summary(tmp_path: Path, *, teacher: bool = True) -> Summary:
    versus = {"agreement": 70.0, "teacher_kl": 0.1234} if teacher else {}
    scores = Accuracy(61.5, 92.25, 1.5, 100, **versus)
    models = {"alone": scores, "alone/ema-0.9999": scores, "kd": scores, "kd/ema-0.9999": scores}
    return Summary(
        run="a/run",
        output=tmp_path,
        steps=200,
        epochs=2.5,
        seconds=61,
        energy_j=None,
        device_hours=1.5,
        num_processes=8,
        device="H100",
        num_skipped=3,
        stages=(),
        stage_ends={},
        students=[
            a_student("alone", "vit_small_patch16_224"),
            a_student("kd", "resnet50", best=63.0),
            a_student("lost", "resnet50", stopped_at=7, best=None),
        ],
        metric=METRICS["top1"],
        views={},
        origins={},
        accuracies={**models, **({"teacher": Accuracy(80.0, 95.0, 0.9, 100)} if teacher else {})},
        data={},
        throughput={},
        warnings=[],
    )


@pytest.mark.parametrize("width", [80, 120])
def test_the_final_table_fits_and_cuts_nothing_off(
    width: int, terminal: Terminal, tmp_path: Path
) -> None:
    written = terminal(width)
    a_summary(tmp_path).show(distill.console.make_console())
    lines = (
        written.getvalue().partition("next:")[0].splitlines()
    )  # commands do not wrap: they are to be copied
    assert max(map(len, lines)) <= width
    assert "…" not in written.getvalue()
    text = written.getvalue()
    for word in (
        "vit_small_patch16_224",
        "  ema-0.9999",
        "92.25",
        "63.00",
        "0.1234",
        "80.00",
        "stopped at step 7",
    ):
        assert word in text
    assert ("1 ce + 0.5 kl" in text) == (width == 120)
    assert ("1.00 M" in text) == (width == 120)


def test_the_headline(tmp_path: Path) -> None:
    line = a_summary(tmp_path).headline()
    assert (
        line
        == "a/run: 200 steps (2.5 epochs) in 1:01 on 8 x H100 (1.50 device hours), 3 unreadable"
        f" images skipped; best: kd, in {tmp_path}"
    )


def test_without_a_teacher_nothing_is_compared_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_summary(tmp_path, teacher=False).show(make_console())
    assert "agrees" not in capsys.readouterr().out
    a_summary(tmp_path).show(make_console())
    assert "agrees" in capsys.readouterr().out
