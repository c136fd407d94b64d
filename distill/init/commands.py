"""The commands distill init and distill launchers: their options, questions and messages."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from distill.errors import InputError


def init(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER", help="A folder with one folder per class, or with train/ and val/."
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="A file of weights, a run, an export, or a timm name. Default: no teacher."
        ),
    ] = None,
    teacher_model: Annotated[
        str | None, typer.Option(help="For a file of weights: the timm name of the model.")
    ] = None,
    teacher_image_size: Annotated[
        int | None,
        typer.Option(min=8, help="For a file of weights: the image size in training, in pixels."),
    ] = None,
    teacher_classes: Annotated[
        str | None,
        typer.Option(help="A file with one class name per line, in the order of its logits."),
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="The timm name of the student. Default: a small model.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, help="Image size in pixels. Default: that of the teacher.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Default: chosen by the number of images.")
    ] = None,
    holdout: Annotated[
        float, typer.Option(help="Without val/: the fraction of each class for evaluation.")
    ] = 0.2,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The recipe to write. Default: FOLDER.yaml."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing, use defaults and print them.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing recipe.")] = False,
) -> None:
    """Write a recipe for a folder of images and a teacher.

    It examines the folder, asks for what it cannot know (unless options say it),
    and writes a recipe whose batch size, learning rate, epochs and augmentation
    fit the number of images, with a reason for each. Then: distill train RECIPE.

    Examples:
      distill init photos
      distill init photos --teacher teacher.pth --teacher-model resnet18 \\
          --teacher-image-size 96 --yes
      distill init photos --teacher runs/teacher --student resnet18 -o my.yaml
      distill init photos --student resnet50 --yes    # trains a teacher first
    """
    from distill.console import make_console, wrapped
    from distill.init.draft import Choices, default_image_size, draft_recipe, write_draft
    from distill.init.folder import examine_folder
    from distill.init.teacher import examine_teacher, is_bare_file

    if not 0 < holdout < 1:
        raise InputError(
            f"--holdout {holdout}: should be larger than 0 and smaller than 1, such as 0.2"
        )
    can_ask = not yes and sys.stdin.isatty()
    console = make_console()

    def say(text: str) -> None:
        is_command = text.startswith("  ")  # a line break would be copied with it
        shown = text if is_command else wrapped(console, text)
        console.print(shown, markup=False, soft_wrap=True)

    if folder is None:
        folder = Path(typer.prompt("Folder of images", default=".") if can_ask else ".")
    if teacher_classes is not None and Path(teacher_classes).expanduser().exists():
        teacher_classes = os.path.abspath(Path(teacher_classes).expanduser())
    facts = examine_folder(folder.expanduser(), teacher_classes)
    fewest, most = facts.images_per_class
    say(
        f"{folder}: {facts.num_images:,} images in {facts.num_classes} classes, {fewest:,} to"
        f" {most:,} per class, shorter side about {facts.shorter_side} pixels"
    )
    if teacher is None and can_ask:
        teacher = typer.prompt(
            "Teacher (weights, run, export or timm name; empty: none)",
            default="",
            show_default=False,
        )
    found = None
    if teacher:
        if can_ask and is_bare_file(teacher):
            teacher_model = teacher_model or typer.prompt("timm name of the teacher's model")
            teacher_image_size = teacher_image_size or typer.prompt(
                "Image size in training, in pixels", type=int
            )
        found = examine_teacher(
            teacher,
            facts.source.classes,
            model=teacher_model,
            image_size=teacher_image_size,
            class_file=teacher_classes,
        )
        say(
            f"teacher: {teacher}, {found.parameters / 1e6:.1f} M parameters, image size"
            f" {found.view.image_size} pixels ({found.why_size})"
        )
        for note in found.notes:
            say(f"note: {note}")
        if found.classes:
            say(f"note: {found.classes}; --teacher-classes FILE sets the order")
    if can_ask:
        image_size = image_size or typer.prompt(
            "Image size", type=int, default=default_image_size(facts, found)
        )
        student = student or typer.prompt(
            "Student (timm name; empty: a small one)", default="", show_default=False
        )
    if output is None:
        output = Path(f"{facts.root.name or 'mine'}.yaml")
        output = Path(typer.prompt("Recipe to write", default=str(output))) if can_ask else output
    choices = Choices(student or None, image_size, epochs, holdout)
    draft = draft_recipe(
        facts, found, choices, command=shlex.join(["distill", *sys.argv[1:]]), file=output
    )
    write_draft(draft, output, force)
    for note in draft.notes:
        say(f"note: {note}")
    if not can_ask:
        say(f"defaults: {', '.join(draft.defaults)}")
    say(f"{output}: written, and checked with the data and the models. Next:")
    say(f"  distill train {shlex.quote(str(output))}")
    say(f"  distill export runs/{draft.name} exports/{draft.name}")


def launchers(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder to write to; it may exist.")
    ],
) -> None:
    """Write the launch files: SLURM, torchrun, Accelerate, Kubernetes.

    They start the processes of a run, with any recipe; DIR/README.md explains
    which one to use. No file is overwritten.

    Example:
      distill launchers launchers
      sbatch -N 4 --gpus-per-node=8 launchers/slurm/train.sbatch my.yaml
    """
    from distill.console import make_console
    from distill.init.launchers import write_launchers

    written = write_launchers(folder)
    console = make_console()
    console.print(
        f"{folder}: {len(written)} files; start with {folder / 'README.md'}",
        markup=False,
        soft_wrap=True,
    )
