"""The commands `distill evaluate`, `distill average` and `distill export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from distill.errors import InputError


def evaluate(
    weights_of: Annotated[
        str,
        typer.Argument(
            metavar="WEIGHTS",
            help=(
                "The folder of a run, a checkpoint or an export, a file of weights (with --model),"
                " hf://OWNER/NAME, or the name of a model of timm."
            ),
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="For a file of weights: the timm name of the model.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="For a run: evaluate only this student.")
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            help=(
                "For a run: best; or from its newest checkpoint raw (not averaged) or an average"
                " such as ema-0.999."
            )
        ),
    ] = "best",
    data: Annotated[
        str | None,
        typer.Option(
            help=(
                "The images: an image folder, a parquet or Arrow file, a saved data set, a stream"
                " or fashion_mnist. Default: the evaluation images of the run."
            )
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The split of --data, if it has several.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help=(
                "A file with one class name per line, or imagenet-1k, if --data contains only some"
                " of the classes."
            )
        ),
    ] = None,
    sets: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help=(
                "Instead of --data: sets of ImageNet (val, real, v2, v2-threshold, v2-top, a, r,"
                " sketch), and others as NAME=PATH."
            ),
        ),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="The folder in which those --sets are.")] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="A model to compare with, named as WEIGHTS. Default: that of a run on its images."
        ),
    ] = None,
    teacher_model: Annotated[
        str | None, typer.Option(help="For a file as --teacher: the timm name of its model.")
    ] = None,
    batch_size: Annotated[
        str,
        typer.Option(metavar="NUMBER|auto", help="Images in a batch of each process."),
    ] = "256",
    num_workers: Annotated[
        int | None,
        typer.Option(min=0, help="Number of decoding processes. Default: the CPU cores."),
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option(help="The data type of computations.")
    ] = "fp32",
    image_size: Annotated[
        int | None, typer.Option(min=8, help="Image size in pixels. Default: that of the model.")
    ] = None,
    use_train_size: Annotated[
        bool,
        typer.Option(
            "--use-train-size",
            help="Not the size for tests that a model's config may have beside it.",
        ),
    ] = False,
    unreadable: Annotated[
        Literal["error", "skip"], typer.Option(help="What to do with an image that cannot be read.")
    ] = "error",
    json: Annotated[
        Path | None, typer.Option("--json", help="A file to write all results to.")
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", help="A folder to write a CSV for each set to, in timm's columns."),
    ] = None,
) -> None:
    """Measure the accuracy and calibration of models.

    Without --data and --sets, the students of a run are evaluated on the
    evaluation images of the run, together with its teacher. Every image counts
    exactly once, for any number of processes.

    Examples:
      distill evaluate runs/quickstart/students
      distill evaluate runs/quickstart/students --student kd --weights raw
      distill evaluate exports/quickstart --data fashion_mnist
      distill evaluate resnet50.pth --model resnet50 --data val/ \\
          --classes imagenet-1k
      distill evaluate exports/mine --sets val,real,v2,a,r,sketch --root /data \\
          --json scores.json --csv tables
    """
    from distill.release.evaluate import evaluate_models

    evaluate_models(
        weights_of,
        model=model,
        student=student,
        weights=weights,
        data=data,
        split=split,
        classes=classes,
        sets=sets,
        root=root,
        teacher=teacher,
        teacher_model=teacher_model,
        batch_size=_batch_size(batch_size),
        num_workers=num_workers,
        precision=precision,
        image_size=image_size,
        use_train_size=use_train_size,
        unreadable=unreadable,
        json=json,
        csv=csv,
    )


def _batch_size(text: str) -> int | None:
    """Return the number of --batch-size; None for "auto"."""
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 65536:
        raise InputError(f"--batch-size {text}: give a number from 1 to 65536, or auto")
    return int(text)


def average(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="WEIGHTS...",
            help=(
                "A run, whose checkpoints are averaged; or several runs, checkpoints, exports or"
                " files of weights of the same model."
            ),
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    model: Annotated[
        str | None, typer.Option(help="For files of weights: the timm name of their model.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="For runs of several students: which one.")
    ] = None,
    weights: Annotated[
        str,
        typer.Option(help="Of the checkpoints of a run: raw, or an average such as ema-0.999."),
    ] = "raw",
    last: Annotated[
        int | None,
        typer.Option(min=2, help="The last checkpoints of a run. Default: all that it has."),
    ] = None,
    best: Annotated[
        int | None, typer.Option(min=2, help="The best checkpoints of a run, by its own metric.")
    ] = None,
    greedy: Annotated[
        bool,
        typer.Option(
            "--greedy", help="Take only what does not make the mean worse on a part of the images."
        ),
    ] = False,
    choose_on: Annotated[
        float,
        typer.Option(
            help="The part of the images that --greedy chooses on; the rest measures the result."
        ),
    ] = 0.5,
    data: Annotated[
        str | None, typer.Option(help="The images for --greedy. Default: those of the run.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The split of --data, if it has several.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="As for distill evaluate: the class list of --data.")
    ] = None,
    batch_size: Annotated[
        str, typer.Option(metavar="NUMBER|auto", help="Images in a batch.")
    ] = "256",
    num_workers: Annotated[
        int | None,
        typer.Option(min=0, help="Number of decoding processes. Default: the CPU cores."),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=8, help="For files of weights: the size that they were trained on."),
    ] = None,
) -> None:
    """Average the weights of several checkpoints or models.

    Examples:
      distill average runs/my --last 5 -o exports/mean
      distill average runs/seed0 runs/seed1 runs/seed2 --greedy -o exports/soup

    The result is an export like any other.
    """
    from distill.release.average import average_models

    average_models(
        paths,
        output,
        model=model,
        student=student,
        weights=weights,
        last=last,
        best=best,
        greedy=greedy,
        choose_on=choose_on,
        data=data,
        split=split,
        classes=classes,
        batch_size=_batch_size(batch_size),
        num_workers=num_workers,
        image_size=image_size,
    )


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run, a checkpoint or an export.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder to write.")],
    student: Annotated[
        str | None, typer.Option(help="The student to export. Default: the best one of the run.")
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            help="best; or from the newest checkpoint raw (not averaged) or an average, ema-0.999."
        ),
    ] = "best",
    format: Annotated[
        Literal["timm", "onnx", "torch-export"],
        typer.Option(help="What is written; onnx needs the extra onnx."),
    ] = "timm",
) -> None:
    """Write a student in the format of timm: safetensors, config.json, class names.

    With --format onnx or torch-export it is one program that takes images in
    [0, 1]; its answers are compared with those of the model.

    Examples:
      distill export runs/quickstart/students exports/quickstart
      distill export runs/my exports/kd --student kd --weights ema-0.999
      distill export exports/kd exports/kd-onnx --format onnx

    Load it with:
      timm.create_model("local-dir:exports/kd", pretrained=True)
    after "import distill.models" for the models of this package (cifar_...).
    """
    from distill.release.export import export_student

    export_student(run, output, student=student, weights=weights, format=format)
