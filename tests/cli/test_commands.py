"""The command line: help that can be read and copied, plain lines in pipes, exit codes, each
command once as a user types it.
"""

import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import typer
import yaml
from command import Cli
from rich.console import Console
from typer.main import get_command

from distill.__main__ import app
from distill.recipe import load_recipe, shipped_files
from distill.training.loop import ALL_STOPPED, DONE, INTERRUPTED
from distill.training.screen import Screen

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("train", "evaluate", "export", "recipe show", "recipe check", "recipe list")
ANSI = re.compile(r"\x1b\[")


def docstring(command: str) -> str:
    """The help of a command as it is written."""
    found: Any = get_command(app)
    for name in command.split():
        found = found.commands[name]
    return str(found.help)


def examples(command: str) -> list[str]:
    """The lines of a command's examples."""
    _, _, below = docstring(command).partition("Example")
    return [line.strip() for line in below.splitlines()[1:] if line.startswith("  ")]


# ---- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_as_they_are_typed(command: str, cli: Cli) -> None:
    outcome = cli(*command.split(), "--help")
    assert outcome.code == 0
    lines = [line.strip() for line in outcome.out.splitlines()]
    assert examples(command), "no example"
    for example in examples(command):
        assert example in lines
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert not ANSI.search(outcome.out)


def test_examples_are_commands() -> None:
    """Every option in an example exists, and every recipe that is not the reader's own."""
    typed = [
        line for command in COMMANDS for line in " ".join(examples(command)).split("distill ")[1:]
    ]
    assert len(typed) >= len(COMMANDS)
    for line in typed:
        words = shlex.split(
            line.replace("\\ ", "").partition(" accelerate")[0].partition(" timm.")[0]
        )
        command: Any = get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        values = command.make_context(command.name, words).params
        if values.get("recipe") not in (None, "my.yaml"):
            load_recipe(values["recipe"], values["overrides"] or [])


def test_help_lists_commands_and_exit_codes(cli: Cli) -> None:
    outcome = cli("--help")
    assert outcome.code == 0
    for word in ("train", "evaluate", "export", "recipe", "Exit codes"):
        assert word in outcome.out
    for code in (DONE, ALL_STOPPED, INTERRUPTED, 1, 2):
        assert re.search(rf"\b{code} ", outcome.out.partition("Exit codes")[2]), code


def test_help_of_the_module_in_a_process_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "distill", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: " in done.stdout
    assert "train" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["train"], "Missing argument 'RECIPE'"),
        (["trian", "x"], "Did you mean 'train'?"),
        (["recipe", "chekc"], "Did you mean 'check'?"),
        (["train", "x.yaml", "--resume"], "No such option"),
        (["evaluate", "x", "--precision", "fp8"], "'fp8' is not one of"),
        (["evaluate", "x", "--image-size", "0"], "Invalid value for '--image-size'"),
        (["export", "x"], "Missing argument 'OUTPUT'"),
        (["recipe", "check", "x", "--processes", "none"], "Invalid value for '--processes'"),
    ],
)
def test_a_wrong_command_is_explained(typed: list[str], says: str, cli: Cli) -> None:
    outcome = cli(*typed)
    assert outcome.code == 2
    assert says in " ".join((outcome.out + outcome.err).replace("│", " ").split())
    assert "Traceback" not in outcome.err


# ---- recipe --------------------------------------------------------------------------------------


def test_show_prints_a_recipe_that_is_the_same_recipe(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("recipe", "show", "quickstart/students", "train.budget=3 epochs", "seed=7")
    assert outcome.code == 0
    assert outcome.err == ""
    (tmp_path / "again.yaml").write_text(outcome.out)
    again = load_recipe(tmp_path / "again.yaml")
    assert again == load_recipe("quickstart/students", ["train.budget=3 epochs", "seed=7"])
    assert yaml.safe_load(outcome.out)["train"]["budget"] == "3 epochs"


def test_list_in_a_pipe_is_a_recipe_a_line_under_headings(cli: Cli) -> None:
    outcome = cli("recipe", "list")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    rows = [line.split(maxsplit=1) for line in lines if line.startswith("  ")]
    assert sorted(name for name, _ in rows) == shipped_files()
    assert all(line == line.rstrip() for line in lines)
    assert lines[:3] == [
        "Start here",
        "  quickstart/teacher   The quickstart's teacher, trained on labels alone",
        "  quickstart/students  Four students behind one teacher forward, on Fashion-MNIST",
    ]
    paper = (
        outcome.out.partition("Rows of the paper's tables\n")[2].partition("\n\n")[0].splitlines()
    )
    tables = [int(found[1]) for line in paper if (found := re.search(r" Table (\d+)\w*: ", line))]
    assert len(tables) == len(paper) - 2, "two of ours stand beside the paper's rows"
    assert tables == sorted(tables)
    headings = [line for line in lines if line and not line.startswith(" ")]
    assert headings[-2:] == ["To extend: strategies", "To extend: parts"]


def test_check_says_sound_and_what_is_not_here(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = cli("recipe", "check", "quickstart/students", "--processes", "2")
    assert outcome.code == 0
    assert "note: teacher.weights: runs/quickstart/teacher is not here" in outcome.out
    assert re.search(
        r"^quickstart/students: sound \(alone, kd, dkd, dist; .*epochs\)$",
        outcome.out,
        re.MULTILINE,
    )
    outcome = cli("recipe", "check", "quickstart/students", "--processes", "3")
    assert outcome.code == 2
    assert "on 3 processes" in outcome.err


# ---- train, evaluate, export ---------------------------------------------------------------------


def test_a_run_in_a_pipe_prints_plain_lines(
    cli: Cli, tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "COLUMNS", "40"
    )  # the lines of a pipe do not wrap, however narrow a terminal may be
    recipe = tiny_recipe({"train": {"budget": "2 iterations"}, "log": {"every": "1 iterations"}})
    outcome = cli("train", recipe)
    assert outcome.code == DONE
    assert not ANSI.search(outcome.out)
    assert "\r" not in outcome.out
    lines = outcome.out.splitlines()
    steps, end = [line for line in lines if " step " in line], lines[-8:]
    header = lines[: lines.index(steps[0])]
    assert len(steps) == 3
    labels = (
        "budget",
        "data",
        "teacher",
        "students",
        "output",
        "images",
        "classes",
        "models",
        "device",
    )
    assert header[0] == "tiny"
    assert [line.split()[0] for line in header[1:] if line[2] != " "] == [*labels]
    assert "120 for training (2 steps, 7 an epoch)" in outcome.out
    assert "10: T-shirt/top, Trouser, Pullover, Dress and 6 more" in outcome.out
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    pace = r"[\d,]+ images/s, [\d.]+ GiB, \d+:\d\d elapsed, \d+:\d\d left"
    for number in (1, 2):
        line = (
            rf"{when} step {number}/2 epoch 0\.\d+: loss alone \d\.\d{{4}}; lr \d\.\d\de-0\d;"
            rf" {pace}"
        )
        assert re.fullmatch(line, steps[number - 1])
    figures = r"top-1 % teacher [\d.]+, alone [\d.]+; agrees with teacher % alone [\d.]+"
    assert re.fullmatch(rf"{when} step 2/2 epoch 0\.29: {figures}", steps[2])
    assert re.match(
        r"tiny: 2 steps \(0\.3 epochs\) in \d+:\d\d on 1 x cpu \(0\.00 device hours\)", end[0]
    )
    assert end[1].split()[:4] == ["model", "parameters", "learns", "from"]
    assert [line.split()[0] for line in end[2:4]] == ["teacher", "alone"]
    output = recipe.with_suffix("")
    assert [line.strip() for line in outcome.out.splitlines()[-4:]] == [
        "next:",
        f"distill evaluate {output}",
        f"distill export {output} exports/run",
        f"report: {output}/report.json",
    ]
    assert outcome.err == ""
    outcome = cli("train", recipe)
    assert outcome.code == DONE
    assert "this run is complete; resume: never starts it again" in outcome.out


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 80 columns, which the commands write to."""
    written = io.StringIO()

    def make_terminal(stderr: bool = False) -> Console:
        return Console(
            file=written, width=80, force_terminal=True, highlight=False, color_system=None
        )

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("distill.console.make_console", make_terminal)
    monkeypatch.setattr("distill.cli.recipes.make_console", make_terminal)
    return written


def test_a_run_on_a_terminal_shows_a_bar_and_ends_with_the_table(
    cli: Cli, tiny_recipe: Any, terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(Screen, "doing", lambda _, what: done.append(what))
    recipe = tiny_recipe({"train": {"budget": "2 iterations"}, "log": {"every": "1 iterations"}})
    assert cli("train", recipe).code == DONE
    assert done == ["evaluating", "saving"]
    assert "2/2 steps" in terminal.getvalue()
    assert "step 1/2:" not in terminal.getvalue()
    ending = terminal.getvalue().rpartition("2/2 steps")[0].partition("tiny: 2 steps")[2]
    assert re.search(r"^alone +cifar_resnet8 +[\d.]+ ", ending, re.MULTILINE)


def test_list_on_a_narrow_terminal_gives_each_description_a_line(
    cli: Cli, terminal: io.StringIO
) -> None:
    assert cli("recipe", "list").code == 0
    lines = terminal.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sorted(line.strip() for line in lines if re.match(r"  \w", line)) == shipped_files()


def test_exit_code_when_every_student_stopped(cli: Cli, tiny_recipe: Any) -> None:
    recipe = tiny_recipe({"student": {"optimizer": {"name": "momentum", "lr": 1e30}}})
    outcome = cli("train", recipe)
    assert outcome.code == ALL_STOPPED
    assert "alone: the loss of step" in outcome.out
    assert "students.alone.optimizer.lr" in outcome.out


def test_evaluate_prints_a_row_a_model(cli: Cli, tiny_run: Path) -> None:
    outcome = cli("evaluate", tiny_run, "--num-workers", "0")
    assert outcome.code == 0
    first, *lines = outcome.out.splitlines()
    assert first == f"{tiny_run}: 53 images"
    table = next(
        index for index, line in enumerate(lines) if line.split()[:2] == ["weights", "top-1"]
    )
    rows = lines[table + 1 : table + 5]
    assert [row.split()[0] for row in rows] == ["alone", "kd", "vit", "teacher"]
    report = json.loads((tiny_run / "report.json").read_text())
    for row in rows[:3]:
        name, weights, top1, *_ = row.split()
        best = report["students"][name]["best"]
        assert (weights, float(top1)) == (best["weights"], round(best["top1"], 2))


def test_evaluate_without_the_teacher_says_so(cli: Cli, tiny_recipe: Any, tmp_path: Path) -> None:
    teacher = tiny_recipe({"train": {"budget": "1 iterations"}}, name="teacher")
    assert cli("train", teacher).code == DONE
    recipe = tiny_recipe(
        {
            "teacher": {"model": None, "image_size": None, "weights": str(tmp_path / "teacher")},
            "train": {"budget": "1 iterations"},
        }
    )
    assert cli("train", recipe).code == DONE
    (tmp_path / "teacher").rename(tmp_path / "elsewhere")
    outcome = cli("evaluate", tmp_path / "run", "--num-workers", "0")
    assert outcome.code == 0
    assert outcome.err.startswith("without the teacher: teacher.weights:")
    lines = outcome.out.splitlines()
    table = next(index for index, line in enumerate(lines) if "top-1 %" in line)
    assert "teacher" not in lines[table]  # nor the columns that compare with it
    assert lines[table + 1].startswith("alone")
    assert not any(line.startswith("teacher") for line in lines)


def test_what_export_prints_loads_the_model(cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
    outcome = cli("export", tiny_run, tmp_path / "out", "--student", "kd")
    assert outcome.code == 0
    assert re.search(
        rf"^{tmp_path}/out: kd, best weights \((raw|ema-0\.5), step \d\), top-1 [\d.]+ %$",
        outcome.out,
        re.MULTILINE,
    )
    code = re.search(r'^load it: python -c "(.*)"$', outcome.out, re.MULTILINE)
    assert code
    assert code[1].startswith(
        "import distill.models; "
    )  # cifar_resnet8 is ours, and registered by this import
    built: list[torch.nn.Module] = []
    original = timm.create_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", lambda *a, **k: built.append(original(*a, **k)))
        exec(code[1])
    assert type(built[0]).__name__ == "CifarResNet"
    assert "import distill" not in cli("export", tiny_run, tmp_path / "vit", "--student", "vit").out


def test_the_application_is_typers() -> None:
    """`python -m distill` and the script `distill` are one."""
    assert isinstance(app, typer.Typer)
    scripts = (ROOT / "pyproject.toml").read_text()
    assert 'distill = "distill.__main__:command"' in scripts
