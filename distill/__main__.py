"""The command line; `distill --help` lists the commands.

It also runs as `accelerate launch -m distill ...`.
"""

import io
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.main import get_command

from distill import __version__
from distill.cli.faults import explain_error
from distill.cli.help import set_help, show_help
from distill.cli.hints import add_hints
from distill.cli.launch import launch
from distill.cli.recipes import Overrides, RecipeArgument, loaded_with_notes, recipe_app
from distill.cli.targets import targets
from distill.console import error_panel
from distill.datatools.commands import data_app
from distill.errors import InputError
from distill.init.commands import init, launchers
from distill.processes import end_with_launcher, leave, several_processes, speaks_first
from distill.recipe import load_recipe
from distill.release.commands import average, evaluate, export
from distill.release.publish_command import publish
from distill.release.similarity.command import similarity
from distill.report.command import report
from distill.study.command import EPILOG as STUDY_EPILOG
from distill.study.command import study
from distill.training.header import show_recipe
from distill.training.output_folder import refuse_foreign_output

EPILOG = """
Exit codes: 0 done; 1 an internal error; 2 the input is wrong; 3 every student
stopped because its loss was not finite; 75 stopped by SIGTERM, SIGUSR1 or
Ctrl-C with a checkpoint saved: the same command resumes the run.
"""

app = typer.Typer(
    name="distill",
    help=(
        "Train small image models with knowledge distillation from large ones.\n\nA recipe"
        " describes a run completely."
    ),
    epilog=EPILOG,
    pretty_exceptions_enable=False,
)
app.add_typer(recipe_app, name="recipe")
app.add_typer(data_app, name="data")
app.command("init")(init)


@app.callback(invoke_without_command=True)
def distill(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"distill {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        show_help(context.command, context)


@app.command(epilog=EPILOG)
def train(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Train all students of a recipe with one teacher.

    A run resumes from its newest complete checkpoint (resume: auto).

    Examples:
      distill train quickstart/teacher
      distill train my.yaml output=runs/again train.budget='10 epochs'
      distill train imagenet1k/res50_beitv2b_a1_600ep data.root=/data
      accelerate launch --num_processes 8 -m distill train my.yaml
    """
    loaded = loaded_with_notes(recipe, overrides)
    refuse_foreign_output(loaded)
    show_recipe(loaded)  # before torch and timm are imported, which takes seconds
    from distill.training.loop import train as run

    raise typer.Exit(run(loaded))


app.command("targets")(targets)
app.command()(evaluate)
app.command()(average)
app.command()(export)


@app.command()
def doctor(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE", help="The recipe, as for train. Default: examine only the machine."
        ),
    ] = None,
    overrides: Overrides = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of GPUs, with a process each. Default: those of this machine, or 8."
        ),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="Number of machines, instead of --gpus.")
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs in a machine.")] = 8,
    gpu: Annotated[
        str | None,
        typer.Option(
            help=(
                "h100, h200, b200, a100-80, a100-40, v100, l40s, rtx4090, ... Default: that of this"
                " machine, or h100."
            )
        ),
    ] = None,
    network: Annotated[
        float | None,
        typer.Option(help="GB/s between machines, in one direction. Default: 50."),
    ] = None,
    decode: Annotated[
        float | None,
        typer.Option(
            help="Images/s that a CPU core decodes. Default: measured, or 260 without the data."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Decoding processes for each GPU.")
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(help="The measured fraction of the peak FLOP/s that your GPUs reach."),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Number of training images, if the data is not available."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Examine this machine, and predict memory and speed of a recipe.

    It needs no GPU, no network and no data. It says what it does not know, and
    prints its assumptions next to each prediction. With a launcher it also
    measures the interconnect. Exit code 2: the recipe is certain to fail.

    Examples:
      distill doctor
      distill doctor imagenet1k/res50_beitv2l_a2_300ep --gpus 8 --gpu a100-80
      distill doctor my.yaml teacher.placement=zero3 --nodes 8 --network 400
      torchrun --nproc-per-node 8 -m distill doctor my.yaml --json
    """
    from distill.doctor.examine import Options, examine

    for option, value in (("--network", network), ("--decode", decode), ("--mfu", mfu)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{option} {value}: should be larger than 0")
    if mfu is not None and mfu > 1:
        raise InputError(f"--mfu {mfu}: should be a fraction of the peak, such as 0.35")
    options = Options(gpus, nodes, gpus_per_node, gpu, network, decode, workers, mfu, images)
    loaded = None if recipe is None else load_recipe(recipe, overrides or [])
    raise typer.Exit(examine(loaded, options, as_json=json))


app.command(
    "launch",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)(launch)
app.command("launchers")(launchers)
app.command("report")(report)
app.command("publish")(publish)
app.command("similarity")(similarity)
app.command("study", epilog=STUDY_EPILOG)(study)


def build_command() -> Any:
    """Returns all commands, with our help and with hints at recipe keys for unknown options."""
    command = get_command(app)
    add_hints(command)
    set_help(command)
    return command


def main() -> None:
    """Runs a command. Wrong input is one message and exit code 2 without a traceback, unless
    DISTILL_TRACEBACK=1 is set.

    Of several processes, only the first one that fails prints the message, since its failure stops
    the others. Every process prints an internal error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A class name in Greek must not end a run on an ASCII terminal.
            stream.reconfigure(errors="backslashreplace")
    try:
        build_command()(prog_name="distill")
    except KeyboardInterrupt:  # before training, or for the second time: there is nothing to save
        sys.exit(130)
    except Exception as error:
        shown = None if os.environ.get("DISTILL_TRACEBACK") else explain_error(error)
        first = speaks_first()
        if shown is None and (first or os.environ.get("DISTILL_TRACEBACK")):
            raise
        message, code = shown or (f"{type(error).__name__}: {error}", 1)
        if first or shown is None:
            error_panel(message)
        sys.exit(code)


def command() -> None:
    """The entry point of a process: runs main() and ends the process."""
    end_with_launcher()
    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        if not several_processes():
            raise
        traceback.print_exc()
        code = 1
    leave(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    command()
