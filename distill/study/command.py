"""`distill study`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from distill.cli.hints import complete_key
from distill.console import make_console, show_table
from distill.errors import InputError
from distill.processes import several_processes

if TYPE_CHECKING:
    from rich.console import Console

    from distill.study.stored import StudyPlan

EPILOG = """
Exit codes: 0 every run has ended; 1 at least one failed, the others ended;
2 the input is wrong, nothing was trained; 3 every student of a run stopped
because its loss was not finite; 75 stopped by a signal with a checkpoint
saved: the same command resumes the study.
"""


def study(
    name: Annotated[
        str,
        typer.Argument(
            metavar="STUDY", help="A study file, a study of the package, or a study's folder."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Changes of all runs, as for train; output=FOLDER is the folder of the study.",
            autocompletion=complete_key,
        ),
    ] = None,
    show_list: Annotated[
        bool, typer.Option("--list", help="List the runs and their students; train nothing.")
    ] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Print the table of what is done; train nothing.")
    ] = False,
    form: Annotated[
        Literal["terminal", "md", "csv", "tex"],
        typer.Option("--format", help="With --table."),
    ] = "terminal",
    run: Annotated[
        int | None, typer.Option(min=0, help="Train only this job of --list, in this process.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Number of seeds, instead of those of the study.")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Processes of each run, on this machine. Default: one."),
    ] = None,
    slurm: Annotated[
        str | None,
        typer.Option(
            metavar="OPTIONS",
            help="Submit the jobs as a SLURM array, with these options of sbatch.",
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="With --list: predict hours on this GPU: h100, a100-80, ..."),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="With --gpu: the number of GPUs.")] = 8,
) -> None:
    """Train a grid of settings, and print one table.

    Settings of a student become students of one run behind one teacher
    forward; settings of data, teacher, budget or run seed become runs. The
    same command skips what is done. One run that fails does not end the others.

    Examples:
      distill study quickstart
      distill study table5 --list --gpu a100-80
      distill study table5 data.root=/data --slurm='-p gpu --gpus-per-node=8'
      distill study runs/studies/table5 --table --format md
    """
    if several_processes() and run is None:
        raise InputError(
            "distill study starts the processes of its runs itself: start it without a launcher,"
            " with --processes N"
        )
    chosen = [show_list, table, run is not None, slurm is not None]
    if sum(chosen) > 1:
        raise InputError("--list, --table, --run and --slurm: give one of them")
    if form != "terminal" and not table:
        raise InputError(f"--format {form}: goes with --table")
    if gpu is not None and not show_list:
        raise InputError(f"--gpu {gpu}: goes with --list")
    from distill.checkpoint.lock import locked
    from distill.study.stored import STUDY_FILE, is_study, plan_study, write_plan
    from distill.study.work import refuse_busy, run_all, run_job, slurm_command, submit

    plan = plan_study(name, overrides or [], seeds)
    console = make_console()

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    if table:
        _print_table(plan, form, console)
        return
    if not show_list and run is None:
        refuse_busy(plan, trains=slurm is None)
    # The folder of a study was checked when it was planned.
    notes = [] if is_study(Path(name).expanduser()) else _check(plan)
    if run is not None:
        if not (plan.folder / STUDY_FILE).is_file():
            write_plan(plan)
        raise typer.Exit(run_job(plan, run))
    if show_list:
        _print_list(plan, gpu, gpus, console)
        return
    for note in [*plan.notes, *notes]:
        say(f"note: {note}")
    with locked(plan.folder):
        write_plan(plan)
        if slurm is not None:
            command = slurm_command(plan, slurm)
            say(shlex.join(command))
            raise typer.Exit(submit(command, plan.folder))
        outcome = run_all(plan, processes, say)
        if outcome.interrupted:
            say(f"study {plan.spec.name}: stopped by a signal; the same command resumes it")
            raise typer.Exit(outcome.code)
        _print_table(plan, "terminal", console)
        for file in _write_tables(plan):
            say(f"{file}: the same")
    for failed, code in outcome.failed:
        say(f"failed: {failed.name}, exit code {code}; the same command tries it again")
    raise typer.Exit(outcome.code)


def _check(plan: "StudyPlan") -> list[str]:
    """Checks the recipe of each run that has not begun; returns what its user should know.

    Raises:
        InputError: a recipe is wrong; the message names the run.
    """
    from distill.errors import prefix_errors
    from distill.training.check import check_recipe
    from distill.training.known_data import Sources

    opened: Sources = {}  # most runs have the same data
    notes: list[str] = []
    for run in plan.runs:
        if plan.state(run) == "new":
            with prefix_errors(f"run {run.name}"):
                checked = check_recipe(plan.recipe(run), opened=opened)
            notes += [f"run {run.name}: {note}" for note in checked.not_compared]
    return notes


def _print_table(plan: "StudyPlan", form: str, console: "Console") -> None:
    from distill.study.progress import study_table
    from distill.study.render import FORMATS, show

    table, damaged = study_table(plan)
    for sentence in damaged:
        console.print(f"warning: {sentence}", markup=False, soft_wrap=True)
    if form == "terminal":
        show(console, table)
    else:
        print(FORMATS[form](table), end="")


def _write_tables(plan: "StudyPlan") -> list[Path]:
    """Writes the table into the folder of the study, in each form."""
    from distill.files import replace_text, write_error
    from distill.study.progress import study_table
    from distill.study.render import FORMATS

    table, _ = study_table(plan)
    files = []
    try:
        for ending, rendered in FORMATS.items():
            files.append(plan.folder / f"table.{ending}")
            replace_text(files[-1], rendered(table))
    except OSError as error:
        raise write_error(plan.folder, error) from error
    return files


def _print_list(plan: "StudyPlan", gpu: str | None, gpus: int, console: "Console") -> None:
    from rich.table import Table

    from distill.study.progress import predicted_hours

    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    hours = {} if gpu is None else predicted_hours(plan, gpu, gpus)
    heads = ["job", "run", "budget", "from the trunk of", "state", "students"]
    if gpu is not None:
        heads.insert(5, "GPU hours")
    for head in heads:
        shown.add_column(head, justify="right" if head in ("job", "GPU hours") else "left")
    for index, job in enumerate(plan.jobs):
        for run in job:
            row = [str(index), run.name, plan.recipe(run).budgets, run.trunk or "", plan.state(run)]
            if gpu is not None:
                own = hours[run.name]
                row.append("unknown" if own is None else f"{own:,.0f}")
            shown.add_row(*row, ", ".join(run.cells))
    show_table(console, shown)
    not_run = sum(key is None for _, key in plan.cells)
    cells = len(plan.cells) - not_run
    in_runs = "1 run" if len(plan.runs) == 1 else f"{len(plan.runs)} runs"
    lines = [f"{cells} cells in {in_runs}, in {plan.folder}"]
    if not_run:
        lines.append(f"{not_run} cells are listed and not run by this study")
    if gpu is not None:
        known = [own for own in hours.values() if own is not None]
        lines.append(
            f"{sum(known):,.0f} GPU hours in all, predicted on {gpus} x {gpu}, training steps only;"
            " distill doctor RECIPE shows the assumptions"
        )
    lines += [f"note: {note}" for note in plan.notes]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
