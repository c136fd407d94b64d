"""distill init and distill launchers, as the command line has them: flags, questions, and what they
say.
"""

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
            metavar="FOLDER", help="A folder a class, or train/ and val/ with such folders."
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="A file of weights, a run, an export, or a timm name. None: labels alone."
        ),
    ] = None,
    teacher_model: Annotated[
        str | None, typer.Option(help="timm name, for a file of weights.")
    ] = None,
    teacher_image_size: Annotated[
        int | None, typer.Option(min=8, help="Pixels it was trained at, for a file of weights.")
    ] = None,
    teacher_classes: Annotated[
        str | None, typer.Option(help="File of class names, a line for each of its logits.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="timm name; a small model if left out.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, help="Pixels; the teacher's if left out.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="By the number of images if left out.")
    ] = None,
    holdout: Annotated[
        float, typer.Option(help="Part of each class to evaluate on, where there is no val/.")
    ] = 0.2,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The recipe; FOLDER.yaml if left out.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing: take the defaults, and say which.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the recipe.")] = False,
) -> None:
    """Write a recipe for a folder of images and a teacher.

    Looks at the folder, asks what it cannot know (or takes flags), and writes
    a recipe whose batch, learning rate, epochs and augmentation suit that many
    images, each line with its reason. Then: distill train RECIPE.

    Examples:
      distill init photos
      distill init photos --teacher teacher.pth --teacher-model resnet18 \\
          --teacher-image-size 96 --yes
      distill init photos --teacher runs/teacher --student resnet18 -o my.yaml
      distill init photos --student resnet50 --yes    # trains a teacher first
    """
    from distill.console import make_console
    from distill.init.draft import Asked, default_image_size, draft_recipe, write_draft
    from distill.init.folder import look_at
    from distill.init.teacher import look_at_teacher, says_nothing

    if not 0 < holdout < 1:
        raise InputError(f"--holdout {holdout}: should be above 0 and below 1, such as 0.2")
    asks = not yes and sys.stdin.isatty()
    console = make_console()

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    if folder is None:
        folder = Path(typer.prompt("Folder of images", default=".") if asks else ".")
    if teacher_classes is not None and Path(teacher_classes).expanduser().exists():
        teacher_classes = os.path.abspath(Path(teacher_classes).expanduser())
    facts = look_at(folder.expanduser(), teacher_classes)
    fewest, most = facts.images_a_class
    say(
        f"{folder}: {facts.num_images:,} images in {facts.num_classes} classes, {fewest:,} to"
        f" {most:,} a class, shorter side about {facts.shorter_side} pixels"
    )
    if teacher is None and asks:
        teacher = typer.prompt(
            "Teacher (weights, run, export or timm name; empty: none)",
            default="",
            show_default=False,
        )
    found = None
    if teacher:
        if asks and says_nothing(teacher):
            teacher_model = teacher_model or typer.prompt("timm name of the teacher's model")
            teacher_image_size = teacher_image_size or typer.prompt(
                "Pixels it was trained at", type=int
            )
        found = look_at_teacher(
            teacher,
            facts.source.classes,
            model=teacher_model,
            image_size=teacher_image_size,
            class_file=teacher_classes,
        )
        say(
            f"teacher: {teacher}, {found.parameters / 1e6:.1f} M parameters, sees"
            f" {found.view.image_size} pixels ({found.why_size})"
        )
        for note in found.notes:
            say(f"note: {note}")
        if found.classes:
            say(f"note: {found.classes}; --teacher-classes FILE says it")
    if asks:
        image_size = image_size or typer.prompt(
            "Image size", type=int, default=default_image_size(facts, found)
        )
        student = student or typer.prompt(
            "Student (timm name; empty: a small one)", default="", show_default=False
        )
    if output is None:
        output = Path(f"{facts.root.name or 'mine'}.yaml")
        output = Path(typer.prompt("Recipe to write", default=str(output))) if asks else output
    asked = Asked(student or None, image_size, epochs, holdout)
    draft = draft_recipe(
        facts, found, asked, command=shlex.join(["distill", *sys.argv[1:]]), file=output
    )
    write_draft(draft, output, force)
    for note in draft.notes:
        say(f"note: {note}")
    if not asks:
        say(f"chosen by default: {', '.join(draft.defaults)}")
    say(f"{output}: written, and checked with the data and the models. Next:")
    say(f"  distill train {shlex.quote(str(output))}")
    say(f"  distill export runs/{draft.name} exports/{draft.name}")


def launchers(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder to write; it may be there.")
    ],
) -> None:
    """Write the launch files: SLURM, torchrun, Accelerate, Kubernetes.

    They say how processes meet, and nothing of a recipe; DIR/README.md says
    which to take. Nothing is overwritten.

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
