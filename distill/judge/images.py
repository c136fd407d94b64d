"""The images to judge on, as a command line names them."""

from pathlib import Path

from distill.data.guess import guess_source, in_options, known_classes
from distill.data.sources import Source, open_source
from distill.errors import InputError
from distill.recipe import Recipe


def open_images(data: str | None, classes: str | None, recipe: Recipe | None, path: Path) -> Source:
    """The source that `--data` and `--classes` name, or else the recipe's own evaluation set.

    Args:
        path: what is judged, for messages.

    Raises:
        InputError: nothing is there, or nobody says what to judge on.
    """
    if data is not None:
        spec = guess_source(data, known_classes(classes))
        try:
            return open_source(spec, Path(), "--data")
        except InputError as error:
            raise InputError(as_options(str(error))) from error
    if classes is not None:
        raise InputError("--classes names the classes of --data: give both")
    if recipe is None or recipe.data.eval is None:
        raise InputError(f"{path} does not say what to judge it on: give --data")
    try:
        return open_source(recipe.data.eval, Path(recipe.data.root), "data.eval")
    except InputError as error:
        raise InputError(f"{error}; or judge on something else with --data") from error


def as_options(message: str) -> str:
    """A message in the words of the command line."""
    return in_options(message, "--data")
