"""distill targets."""

import re
from collections.abc import Iterable
from typing import Annotated, Literal

import typer

from distill.cli.recipes import Overrides, RecipeArgument, loaded_with_notes
from distill.errors import InputError
from distill.training.header import show_recipe

_MOST_EPOCHS = 100_000
_RANGE = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")


def targets(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|all|pre-logits",
            help=(
                "The number of largest logits kept of each image, with the sum of the rest; all:"
                " every logit, bit for bit; pre-logits: the features before the head, which give"
                " all logits and serve hints. Default: 14, or all of at most 14 classes."
            ),
        ),
    ] = None,
    sampled: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER",
            min=1,
            max=65536,
            help=(
                "The number of classes drawn from the other logits in proportion to their"
                " probability, so that the gradient at temperature 1 is the live one on average."
            ),
        ),
    ] = None,
    epochs: Annotated[
        str | None,
        typer.Option(
            metavar="EPOCHS", help="Epochs, such as 1-5 or 3,7-9. Default: those of the budget."
        ),
    ] = None,
    verify: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER",
            min=1,
            help=(
                "Write nothing: compare so many images, spread over the stored epochs, with the"
                " live teacher. 256 take a moment."
            ),
        ),
    ] = None,
) -> None:
    """Write what the teacher says of every image, in the folder of `targets`.

    A run with the same `targets` then trains without the teacher. The same
    command resumes, and writes damaged shards again. Exit code 75: stopped by a
    signal.

    Examples:
      distill targets quickstart/students targets=stores/quickstart
      distill targets my.yaml --keep 32 --epochs 1-10
      distill targets my.yaml --verify 256
      accelerate launch --num_processes 8 -m distill targets my.yaml
    """
    kept = None if keep is None else parse_keep(keep)
    chosen = [] if epochs is None else parse_epochs(epochs)
    loaded = loaded_with_notes(recipe, overrides)
    if loaded.targets is None:
        raise InputError("targets: missing: name the folder of the store with targets=FOLDER")
    if verify is not None and (keep is not None or sampled is not None):
        name = "--sampled" if keep is None else "--keep"
        raise InputError(f"{name}: --verify reads rows that are there: leave one of them out")
    show_recipe(loaded)
    if verify is not None:
        from distill.training.verify_targets import verify_targets

        verify_targets(loaded, verify, chosen)
        return
    from distill.training.write_targets import write_targets

    raise typer.Exit(write_targets(loaded, keep=kept, num_draws=sampled, epochs=chosen))


def parse_keep(text: str) -> int | Literal["all", "pre-logits"]:
    """Return what --keep says.

    Raises:
        InputError: it is neither a number nor all nor pre-logits.
    """
    if text == "all":
        return "all"
    if text == "pre-logits":
        return "pre-logits"
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InputError(f"--keep {text!r}: should be a number such as 14, all or pre-logits")
    return int(text)


def parse_epochs(text: str) -> list[int]:
    """Return the epochs that --epochs names, counted from 0, ascending.

    Raises:
        InputError: they are no numbers or ranges from 1 on.
    """
    found = set(_numbers(text))
    if not found or min(found) < 0:
        raise InputError(
            f"--epochs {text!r}: should be epochs counted from 1, such as 5, 1-5 or 3,7-9, up to"
            f" {_MOST_EPOCHS:,}"
        )
    return sorted(found)


def _numbers(text: str) -> Iterable[int]:
    """Yields epochs counted from 0; -1 for what is none."""
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first = int(match[1]) if match else 0
        last = int(match[2] or first) if match else 0
        yield from range(first - 1, last) if 1 <= first <= last <= _MOST_EPOCHS else (-1,)
