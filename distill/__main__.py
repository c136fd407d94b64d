"""The command line: distill init | train | evaluate | export | doctor | recipe | data | launchers.
Also `accelerate launch -m distill ...`.
"""

import io
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.main import get_command

from distill import __version__
from distill.cli.faults import explained
from distill.cli.help import show_help
from distill.cli.hints import add_hints
from distill.cli.recipes import Overrides, RecipeArgument, loaded_with_notes, recipe_app
from distill.console import error_panel
from distill.datatools.commands import data_app
from distill.errors import InputError
from distill.init.commands import init, launchers
from distill.processes import end_with_launcher, leave, several_processes, speaks_first
from distill.recipe import load_recipe
from distill.training.header import show_recipe
from distill.training.output_folder import refuse_foreign_output

EPILOG = """
Exit codes: 0 done; 1 a fault; 2 the input is wrong; 3 every student stopped
on a loss that is not finite; 75 stopped by SIGTERM, SIGUSR1 or Ctrl-C with the
state saved: the same command goes on.
"""

app = typer.Typer(
    name="distill",
    help=(
        "Distil small image models from large ones.\n\nA run is what its recipe says, and nothing"
        " else."
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
    """Train every student of a recipe behind one teacher.

    A run goes on from its newest whole checkpoint by itself (resume: auto).

    Examples:
      distill train quickstart/teacher
      distill train my.yaml output=runs/again train.budget='10 epochs'
      distill train imagenet1k/res50_beitv2b_a1_600ep data.root=/data
      accelerate launch --num_processes 8 -m distill train my.yaml
    """
    loaded = loaded_with_notes(recipe, overrides)
    refuse_foreign_output(loaded)
    show_recipe(loaded)  # at once: what comes next imports torch and timm, which takes seconds
    from distill.training.loop import train as run

    raise typer.Exit(run(loaded))


@app.command()
def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help=(
                "A run, one of its checkpoints, an export, or a file of weights (then with"
                " --model)."
            ),
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="timm name of the model, for a file of weights.")
    ] = None,
    student: Annotated[str | None, typer.Option(help="Only this student of a run.")] = None,
    weights: Annotated[
        str,
        typer.Option(
            help=(
                "Of a run: best; or of its newest checkpoint raw (not averaged), or an average:"
                " ema-0.999."
            )
        ),
    ] = "best",
    data: Annotated[
        str | None,
        typer.Option(
            help=(
                "Images to judge on: an image folder, a parquet or Arrow file, a saved data set; or"
                " fashion_mnist."
            )
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The split of --data, where it has several.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help=(
                "File of class names, a name a line, where the folder holds only some; or"
                " imagenet-1k."
            )
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a process judges at once.")] = 256,
    num_workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that decode; the cores of the machine if left out."),
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option(help="What the models compute in.")
    ] = "fp32",
    image_size: Annotated[
        int | None, typer.Option(min=8, help="Pixels; the model's own size if left out.")
    ] = None,
    unreadable: Annotated[
        Literal["error", "skip"], typer.Option(help="What to do with an unreadable image.")
    ] = "error",
) -> None:
    """Measure top-1 and top-5 exactly, on any number of processes.

    A run is judged on its own evaluation set and beside its own teacher,
    unless --data names other images.

    Examples:
      distill evaluate runs/quickstart/students
      distill evaluate runs/quickstart/students --student kd --weights raw
      distill evaluate exports/quickstart --data fashion_mnist
      distill evaluate resnet50.pth --model resnet50 --data val/ \\
          --classes imagenet-1k
    """
    from distill.release import evaluate_models

    evaluate_models(
        checkpoint,
        model=model,
        student=student,
        weights=weights,
        data=data,
        split=split,
        classes=classes,
        batch_size=batch_size,
        num_workers=num_workers,
        precision=precision,
        image_size=image_size,
        unreadable=unreadable,
    )


@app.command()
def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run, or one of its checkpoints.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder to write.")],
    student: Annotated[
        str | None, typer.Option(help="The student; the best one of the run if left out.")
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            help="best; or of the newest checkpoint raw (not averaged), or an average: ema-0.999."
        ),
    ] = "best",
) -> None:
    """Write a student as timm loads it: safetensors, config.json, class names.

    Examples:
      distill export runs/quickstart/students exports/quickstart
      distill export runs/my exports/kd --student kd --weights ema-0.999

    Load it with:
      timm.create_model("local-dir:exports/kd", pretrained=True)
    after "import distill.models" if it is a model of ours (cifar_...).
    """
    from distill.release import export_student

    export_student(run, output, student=student, weights=weights)


@app.command()
def doctor(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE", help="As for train; without one, only the machine is looked at."
        ),
    ] = None,
    overrides: Overrides = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes, one a GPU, to predict for; those here, or 8, if left out."
        ),
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines, instead of --gpus.")] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of a machine.")] = 8,
    gpu: Annotated[
        str | None,
        typer.Option(
            help=(
                "h100, h200, b200, a100-80, a100-40, v100, l40s, rtx4090, ...; the one here, or"
                " h100."
            )
        ),
    ] = None,
    network: Annotated[
        float | None,
        typer.Option(help="GB/s of a machine to others, one direction; 50 if left out."),
    ] = None,
    decode: Annotated[
        float | None,
        typer.Option(
            help="Images/s that a core decodes; measured where the data is here, else 260."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Decoding processes of each GPU's process.")
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(help="Fraction of the peak FLOP/s that your GPUs reach, once measured."),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Training images, where the data is not here.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Look at this machine, and say whether a recipe fits and what will bound it.

    Needs no GPU, no network and no data: what it cannot know it says, and
    each predicted number stands beside what it assumes. Under a launcher it
    measures the interconnect too. Exit code 2: something is certain to fail.

    Examples:
      distill doctor
      distill doctor imagenet1k/res50_beitv2l_a2_300ep --gpus 8 --gpu a100-80
      distill doctor my.yaml teacher.placement=zero3 --nodes 8 --network 400
      torchrun --nproc-per-node 8 -m distill doctor my.yaml --json
    """
    from distill.doctor.examine import Asked, examine

    for option, value in (("--network", network), ("--decode", decode), ("--mfu", mfu)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{option} {value}: should be above 0")
    if mfu is not None and mfu > 1:
        raise InputError(f"--mfu {mfu}: a fraction of the peak is at most 1, such as 0.35")
    asked = Asked(gpus, nodes, gpus_per_node, gpu, network, decode, workers, mfu, images)
    loaded = None if recipe is None else load_recipe(recipe, overrides or [])
    raise typer.Exit(examine(loaded, asked, as_json=json))


app.command("launchers")(launchers)


def whole_command() -> Any:
    """The commands as they are run: with our help, and hints at the keys that unknown
    options mean.
    """
    whole = get_command(app)
    add_hints(whole)
    _with_help(whole)
    return whole


def _with_help(command: Any) -> None:
    # An attribute of the object, whatever its class in this version of typer.
    command.format_help = lambda context, formatter: show_help(command, context)
    for each in command.commands.values() if hasattr(command, "commands") else ():
        _with_help(each)


def main() -> None:
    """Run a command: bad input is one panel and exit code 2, never a traceback (which
    DISTILL_TRACEBACK=1 shows).

    Of several processes the first to fail says why, since the others follow from it; a fault of our
    own is named by each.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a class name in Greek must not end a run on an ASCII terminal
            stream.reconfigure(errors="backslashreplace")
    try:
        whole_command()(prog_name="distill")
    except (
        KeyboardInterrupt
    ):  # before training has begun, or for the second time: there is nothing to save
        sys.exit(130)
    except Exception as error:
        shown = None if os.environ.get("DISTILL_TRACEBACK") else explained(error)
        first = speaks_first()
        if shown is None and (first or os.environ.get("DISTILL_TRACEBACK")):
            raise
        message, code = shown or (f"{type(error).__name__}: {error}", 1)
        if first or shown is None:
            error_panel(message)
        sys.exit(code)


def command() -> None:
    """Entry point of a process that is this command's own: main(), and then the end of
    the process.
    """
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
