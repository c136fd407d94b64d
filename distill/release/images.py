"""The images to evaluate on, as a command line names them."""

from pathlib import Path

from distill.checkpoint.layout import checkpoints_dir, is_checkpoint
from distill.checkpoint.store import load, load_newest
from distill.data.guess import guess_source, in_options, known_classes
from distill.data.holdout import Part, open_eval
from distill.data.relabelled import Relabelled
from distill.data.sources import Source, has_class_order, open_source
from distill.errors import InputError
from distill.models.labels import Match, match_classes
from distill.recipe import Recipe, schema
from distill.recipe.hub_names import is_hub_name
from distill.release.find import Found
from distill.training.inputs import contents_of


def open_images(
    data: str | None, split: str | None, classes: str | None, recipe: Recipe | None, path: Path
) -> tuple[Source, bool]:
    """Open what `--data` and `--classes` name, or else the recipe's own evaluation set.

    Args:
        path: what is evaluated, for messages.

    Returns:
        The source, and whether the user gives the order of its classes.

    Raises:
        InputError: there are no images, or neither command line nor recipe names any.
    """
    if data is not None:
        spec = guess_source(data, known_classes(classes), split=split)
        try:
            return open_source(spec, Path(), "--data"), has_class_order(spec)
        except InputError as error:
            raise InputError(in_command_words(str(error))) from error
    for option, given, what in (("--classes", classes, "classes"), ("--split", split, "split")):
        if given is not None:
            raise InputError(f"{option} names the {what} of --data: give both")
    if recipe is None or recipe.data.eval is None:
        raise InputError(f"{path} does not say what to evaluate it on: give --data")
    try:
        source = open_eval(recipe.data, Path(recipe.data.root).expanduser())
    except InputError as error:
        raise InputError(f"{error}; or evaluate on other images with --data") from error
    assert source is not None
    if not source.classes:
        raise InputError(
            f"{path}: its evaluation images have no labels: evaluate on others with --data"
        )
    _refuse_other_images(source, path)
    eval_spec = recipe.data.eval
    if isinstance(eval_spec, schema.HoldOutSpec):
        eval_spec = recipe.data.train
    return source, has_class_order(eval_spec)


def _refuse_other_images(source: Source, path: Path) -> None:
    """Check that the images held out are the same as when the run trained.

    Args:
        path: the run, or one of its checkpoints.

    Raises:
        InputError: they are others, and the run may have trained on them.
    """
    if not isinstance(source, Part):
        return
    now = contents_of(source, "evaluation")
    try:
        before = (
            load(path, verify=False)
            if is_checkpoint(path)
            else load_newest(checkpoints_dir(path), verify=False)
        ).values
    except InputError as error:
        raise InputError(
            f"data.eval: only a checkpoint records which images were held out ({error}): give"
            " --data"
        ) from error
    if any(before["inputs"].get(key) != value for key, value in now.items()):
        raise InputError(
            "data.eval: data.train has changed since the run, so that other images are held out"
            " now, which it may have trained on: put the earlier images back, or evaluate on others"
            " with --data"
        )


def labelled_in_logits(source: Source, order_given: bool, found: Found) -> tuple[Source, Match]:
    """Return the source with the logits of a model as labels, and how its classes were matched.

    Args:
        order_given: the user gave the order of the data's classes.

    Raises:
        InputError: the classes of data and model cannot be compared, or are others.
    """
    num_logits = int(found.net.num_classes)  # type: ignore[arg-type]
    match = match_classes(
        found.classes or None,
        num_logits,
        source.classes,
        who=found.name,
        order_given=order_given,
    )
    if match.in_order:
        return source, match
    names = found.classes or tuple(map(str, range(num_logits)))
    return Relabelled(source, match.logits, names), match


def title_of(data: str) -> str:
    """Return the name of images without folders, host and password: cards are public."""
    if is_hub_name(data):
        return data
    path = data.partition("?")[0] if "://" in data else data
    return Path(path).name or Path(path).resolve().name


def in_command_words(message: str, option: str = "--data") -> str:
    """A message that names options instead of recipe keys. An evaluation always reads labels."""
    message = message.replace(", or set labelled: false", "")
    return in_options(message.replace(": set labelled: false", ": give labelled images"), option)
