"""Opens what SOURCE names on the command line: a path, a URL, fashion_mnist, or the data of a
recipe (my.yaml:data.train).
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distill.data.guess import guess_source, in_options, known_classes
from distill.data.holdout import open_eval, open_train
from distill.data.sources import Source, open_source
from distill.data.stream.names import display_url
from distill.errors import InputError, did_you_mean
from distill.recipe import Recipe, load_recipe, schema

OPTION = "SOURCE"
_OPTIONS = {
    "data.shards.cache_gb": "--cache-gb",
    "data.shards.cache": "--cache",
    "set labelled: false": "give --unlabelled",
}
_OF_A_RECIPE = re.compile(
    r"(?P<recipe>.+):(?:stages\.(?P<stage>[^.:]+)\.)?data\.(?P<part>train|eval)"
)


@dataclass(frozen=True)
class Named:
    """An opened source. `text`: its name for people, without passwords. `recipe`: the recipe that
    it is part of, in the named stage.
    """

    source: Source
    spec: schema.SourceSpec
    root: Path
    text: str
    recipe: Recipe | None = None


def open_named(
    name: str,
    *,
    classes: str | None = None,
    split: str | None = None,
    labelled: bool = True,
    shards: schema.ShardsSpec | None = None,
    count: Callable[[schema.StreamSpec, schema.ShardsSpec], object] | None = None,
) -> Named:
    """Open the source that SOURCE names.

    Args:
        split: if None, "train" where a split is needed.
        shards: settings for the shards of a stream; a recipe has its own.
        count: called before a stream is opened, to count its samples.

    Raises:
        InputError: nothing is there, or it cannot be opened; the message speaks of options.
    """
    shards = shards or schema.ShardsSpec()
    if found := _OF_A_RECIPE.fullmatch(name):
        if classes is not None or split is not None:
            given = "--split" if split is not None else "--classes"
            raise InputError(f"{given}: {name} says that itself, in the recipe; leave it out")
        return _of_recipe(name, found["recipe"], found["stage"], found["part"])
    spec = guess_source(
        name,
        known_classes(classes),
        split=split,
        default_split="train",
        labelled=labelled,
        option=OPTION,
    )
    with in_command_words():
        if count is not None and isinstance(spec, schema.StreamSpec):
            count(spec, shards)
        return Named(open_source(spec, Path(), OPTION, shards), spec, Path(), display_url(name))


@contextmanager
def in_command_words() -> Iterator[None]:
    """Inside the block, messages about recipe keys are rephrased in terms of the command line."""
    try:
        yield
    except InputError as error:
        raise InputError(command_words(str(error))) from error


def command_words(message: str) -> str:
    """Rephrase a message about recipe keys in terms of the command line."""
    message = in_options(message, OPTION)
    for key, option in _OPTIONS.items():
        message = message.replace(key, option)
    return message


def in_stage(recipe: Recipe, stage: str, key: str) -> Recipe:
    """The recipe as it stands in a stage.

    Args:
        key: what names the stage, for messages.

    Raises:
        InputError: there is none of that name.
    """
    stages = [each.name for each in recipe.stages]
    if stage not in stages:
        have = ", ".join(stages) or "none"
        raise InputError(
            f"{key}: the recipe has no stage {stage!r}{did_you_mean(stage, stages)}; it has {have}"
        )
    return recipe.at_stage(stages.index(stage))


def _of_recipe(name: str, recipe_name: str, stage: str | None, part: str) -> Named:
    recipe = load_recipe(recipe_name)
    run_data = recipe.data
    if stage is not None:
        recipe = in_stage(recipe, stage, name)
    key = f"stages.{stage}.data.{part}" if stage else f"data.{part}"
    root = Path(recipe.data.root).expanduser()
    if part == "train":
        return Named(
            open_train(run_data, recipe.data.train, root, key),
            recipe.data.train,
            root,
            name,
            recipe,
        )
    source = open_eval(run_data, root, key)
    if source is None or run_data.eval is None:
        raise InputError(f"{name}: data.eval of the recipe is null: it names no images")
    spec = run_data.train if isinstance(run_data.eval, schema.HoldOutSpec) else run_data.eval
    return Named(source, spec, root, name, recipe)
