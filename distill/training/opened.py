"""The sources of a run, opened."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from distill.data.holdout import open_eval, open_train, open_undivided
from distill.data.sources import Source
from distill.recipe import Recipe

_T = TypeVar("_T")


@dataclass(frozen=True)
class Opened:
    """The sources of a run.

    Attributes:
        train: of each stage.
        eval: None where nothing is evaluated.
    """

    train: tuple[Source, ...]
    eval: Source | None


def open_sources(recipe: Recipe) -> Opened:
    """Open what a run trains and evaluates on.

    Raises:
        InputError: data that is missing or wrong, with the key or path.
    """
    root = Path(recipe.data.root).expanduser()
    undivided = open_undivided(recipe.data, root)
    train = tuple(
        open_train(recipe.data, recipe.at_stage(i).data.train, root, f"{key}data.train", undivided)
        for i, key in enumerate(recipe.stage_keys)
    )
    has_classes = recipe.trains_classifiers
    return Opened(train, open_eval(recipe.data, root, whole=undivided) if has_classes else None)


def within(seconds: float, function: Callable[[], _T]) -> _T | Exception | None:
    """Return the result or the exception of a function; None if it takes longer than `seconds`. It
    then continues in a thread that ends with the process.
    """
    results: list[_T | Exception] = []

    def run() -> None:
        try:
            results.append(function())
        except Exception as error:  # returned
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
