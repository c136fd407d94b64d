"""The command `distill publish`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill.console import make_console

if TYPE_CHECKING:
    from distill.models.hub.licences import Noted


def publish(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="The folder of a finished run, or of an export."),
    ],
    repo: Annotated[
        str,
        typer.Argument(metavar="OWNER/NAME", help="The repository; it is made if it is new."),
    ],
    student: Annotated[
        str | None, typer.Option(help="Of a run: the student. Default: the best one.")
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            help="Of a run: best; or from its newest checkpoint raw or an average, ema-0.999."
        ),
    ] = "best",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the files and the card, and publish nothing.")
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="The branch. Default: main.")
    ] = None,
    pull_request: Annotated[
        bool, typer.Option("--pull-request", help="Propose the commit in a pull request.")
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="The licence: mit, apache-2.0, ..."),
    ] = None,
    licence_file: Annotated[
        Path | None,
        typer.Option("--license-file", metavar="FILE", help="The text of the licence."),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Figures that distill evaluate --json wrote."),
    ] = None,
    curves: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A picture of the training curves.")
    ] = None,
    message: Annotated[str | None, typer.Option(help="The message of the commit.")] = None,
) -> None:
    """Publish a model on the Hugging Face Hub.

    One commit contains weights, config.json with the names of the classes, a
    model card, and of a run its recipe, metrics and report; other files of the
    repository stay. The model is then loaded back, and its logits are compared.
    If anything is refused or interrupted, the repository is as before, and the
    same command finishes it.

    Examples:
      distill publish exports/quickstart alice/fashion-resnet8 --license mit
      distill publish runs/my alice/net --student kd --license mit --dry-run
      distill publish runs/my lab/net --private --evaluation scores.json
    """
    from distill.release.publish import publish_model

    publish_model(
        source,
        repo,
        student=student,
        weights=weights,
        private=private,
        branch=revision,
        pull_request=pull_request,
        licence=licence,
        licence_file=licence_file,
        evaluation=evaluation,
        curves=curves,
        message=message,
        dry_run=dry_run,
        ask=_ask if sys.stdin.isatty() and sys.stdout.isatty() else None,
    )


def _ask(noted: "Sequence[Noted]") -> str:
    console = make_console()
    console.print("The model derives from", markup=False)
    for each in noted:
        console.print(f"  {each.describe()}", markup=False, soft_wrap=True)
    question = "The licence of its weights (mit, apache-2.0, ...)"
    answer: str = typer.prompt(question, default="", show_default=False)
    return answer
