"""Compares the layers of one model with those of others, and writes what is found."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import get_args

import torch

from distill.checkpoint.layout import RECIPE_FILE
from distill.console import make_console, show_table, wrapped
from distill.data.guess import guess_source
from distill.data.order.sampled import random_order
from distill.data.sources import Source, open_source
from distill.engine import Engine
from distill.errors import InputError
from distill.evaluation.similarity import MIN_BATCH
from distill.files import atomic_directory
from distill.models.layers import ALL, LayeredNetwork, layered
from distill.recipe import load_recipe
from distill.recipe.hub_names import is_hub_name
from distill.release.evaluate import Precision
from distill.release.find import Found, find_model
from distill.release.images import in_command_words, open_images
from distill.release.passes import Unreadable
from distill.release.results import described
from distill.release.similarity.measure import measure
from distill.release.similarity.picture import draw
from distill.release.similarity.result import ComparedModel, Pair, Similarity, Values

FILES = tuple(f"similarity.{kind}" for kind in ("png", "svg", "csv", "json"))


@dataclass(frozen=True)
class Choice:
    """A model and its layers, as a user names them.

    Attributes:
        path: as `find_models` takes it; model, student, weights and image_size too.
        layers: as `layered` takes them.
    """

    path: str
    model: str | None = None
    student: str | None = None
    weights: str = "best"
    image_size: int | None = None
    layers: str = ALL

    def __str__(self) -> str:
        parts = [
            self.student or "",
            "" if self.weights == "best" else self.weights,
            "" if self.image_size is None else f"{self.image_size} px",
            "" if self.layers == ALL else f"layers {self.layers}",
        ]
        named = ", ".join(filter(None, parts))
        return f"{self.path} ({named})" if named else self.path


def compare_models(
    a: Choice,
    others: Sequence[Choice],
    output: Path | None,
    *,
    data: str | None = None,
    split: str | None = None,
    num_images: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    num_workers: int | None = None,
    precision: Precision = "fp32",
    unreadable: Unreadable = "error",
) -> Similarity:
    """Measure the unbiased minibatch CKA of all layers of A with all layers of others, in one pass
    over images, and write pictures, CSV and JSON. Collective under a launcher.

    Args:
        a, others: the models, their weights and their layers.
        output, data, ...: as of `interface.layer_similarity`.

    Raises:
        InputError: there are no such models, layers or images; `output` holds other files.
    """
    _refuse_options(output, num_images, batch_size, precision)
    choices = list(dict.fromkeys([a, *others]))  # a model that is named twice runs once
    sides = dict.fromkeys(others, "b") | {a: "a"}
    found = [_find(choice, sides[choice]) for choice in choices]
    labels = _labels(choices, found)
    networks = [
        _layered(*each, sides[each[0]]) for each in zip(choices, found, labels, strict=True)
    ]
    source = _open(data, split, Path(a.path))
    if len(source) < MIN_BATCH:
        raise InputError(
            f"{data or a.path}: CKA needs at least {MIN_BATCH} images, and this has {len(source)}"
        )
    order = random_order(source, min(num_images or len(source), len(source)), seed)
    engine = Engine(precision=precision)
    try:
        measured = measure(
            [_placed(network, engine) for network in networks],
            [each.view.frame for each in found],
            source,
            order,
            engine,
            batch_size,
            num_workers,
            unreadable,
        )
    except InputError as error:
        raise InputError(in_command_words(str(error))) from error
    finally:
        engine.close()
    models = [
        ComparedModel(label, network.layers, described(of))
        for label, of, network in zip(labels, found, networks, strict=True)
    ]
    of_pairs = _with_first(measured.cka, models)
    result = Similarity(
        tuple(of_pairs[choices.index(other)] for other in others),
        data or f"the evaluation images of {a.path}",
        measured.num_images,
        measured.num_left_out,
        measured.num_skipped,
        batch_size,
        seed,
        precision,
    )
    if engine.is_main:
        if output is not None:
            _write(result, output)
        warnings = [
            _named_for(sides[choice], each.size_warning)
            for choice, each in zip(choices, found, strict=True)
            if each.size_warning is not None
        ]
        _show(result, found, labels, warnings, output)
    return result


def _refuse_options(
    output: Path | None, num_images: int | None, batch_size: int, precision: str
) -> None:
    """Raise InputError for options that no model and no data can make right."""
    if precision not in get_args(Precision):
        raise InputError(
            f"--precision {precision}: should be one of {', '.join(get_args(Precision))}"
        )
    for option, value in (("--batch-size", batch_size), ("--images", num_images)):
        if value is not None and value < MIN_BATCH:
            raise InputError(
                f"{option} {value}: the unbiased estimate divides by n - 3: give at least"
                f" {MIN_BATCH}"
            )
    if output is not None:
        if find_spec("matplotlib") is None:
            raise InputError("distill similarity needs matplotlib: pip install 'vanillakd[report]'")
        _refuse_output(output)


def _refuse_output(output: Path) -> None:
    """Raise InputError for a folder that cannot be written, before the pass over the images."""
    if is_hub_name(str(output)):
        raise InputError(f"--output {output}: is a name on the Hub: name a folder")
    whole = output.absolute()
    place = next(place for place in (whole, *whole.parents) if place.exists())
    if not place.is_dir():
        raise InputError(f"--output {output}: {place} is a file: name a folder")
    # The folder is replaced, which is a change of the one that it is in.
    parent = whole.parent if place == whole else place
    if not os.access(parent, os.W_OK):
        raise InputError(f"--output {output}: {parent} cannot be written: name another folder")
    held = {each.name for each in output.iterdir()} if output.is_dir() else set()
    foreign = sorted(held - {*FILES})
    if foreign:
        raise InputError(
            f"--output {output}: holds {foreign[0]}, which is not of distill similarity: name"
            " another folder"
        )


@contextmanager
def _options_of(side: str) -> Iterator[None]:
    """Name in messages the options of a side: --model-a for the --model of other commands."""
    try:
        yield
    except InputError as error:
        raise InputError(_named_for(side, str(error))) from error


def _named_for(side: str, text: str) -> str:
    return re.sub(r"--(model|student|weights|image-size)\b(?!-)", rf"--\1-{side}", text)


def _find(choice: Choice, side: str) -> Found:
    with _options_of(side):
        return find_model(
            choice.path,
            side.upper(),
            model=choice.model,
            student=choice.student,
            weights=choice.weights,
            image_size=choice.image_size,
            student_option="--student",
        )


def _labels(choices: Sequence[Choice], found: Sequence[Found]) -> list[str]:
    """Return a name for each model: its own, or its path where two have the same."""
    names, paths = [each.name for each in found], [choice.path for choice in choices]
    labels = [
        name if names.count(name) == 1 else path for name, path in zip(names, paths, strict=True)
    ]
    return labels if len(set(labels)) == len(labels) else [str(choice) for choice in choices]


def _layered(choice: Choice, found: Found, label: str, side: str) -> LayeredNetwork:
    """Choose the layers, and see that the model takes images of its view's size."""
    size = found.view.image_size
    try:
        with torch.no_grad():
            found.net.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:  # timm's and torch's
        raise InputError(
            f"--image-size-{side}: {label} does not take images of {size} px"
            f" ({str(error).splitlines()[0]}): give another size"
        ) from error
    return layered(found.net, found.pixels, size, choice.layers, label, f"--layers-{side}")


def _open(data: str | None, split: str | None, path: Path) -> Source:
    """Open the images; labels do not matter."""
    if data is None:
        recipe = load_recipe(path / RECIPE_FILE) if (path / RECIPE_FILE).is_file() else None
        return open_images(None, split, None, recipe, path)[0]
    spec = guess_source(data, split=split, labelled=False)
    try:
        return open_source(spec, Path(), "--data")
    except InputError as error:
        raise InputError(in_command_words(str(error))) from error


def _placed(network: LayeredNetwork, engine: Engine) -> LayeredNetwork:
    engine.place(network).eval()
    return network


def _with_first(cka: Values, models: Sequence[ComparedModel]) -> list[Pair]:
    """Return the pair of the first model with each, from the values of all layers."""
    rows = cka[: len(models[0].layers)]
    ends = list(accumulate(len(model.layers) for model in models))
    return [
        Pair(models[0], model, [row[end - len(model.layers) : end] for row in rows])
        for model, end in zip(models, ends, strict=True)
    ]


def _write(result: Similarity, output: Path) -> None:
    """Write all files at once."""
    pictures = draw(result.pairs)
    with atomic_directory(output) as folder:
        for kind, content in pictures.items():
            (folder / f"similarity.{kind}").write_bytes(content)
        (folder / "similarity.csv").write_text(result.as_csv(), encoding="utf-8")
        text = json.dumps(result.as_dict(), indent=1, allow_nan=False) + "\n"
        (folder / "similarity.json").write_text(text, encoding="utf-8")


def _show(
    result: Similarity,
    found: Sequence[Found],
    labels: Sequence[str],
    warnings: Sequence[str],
    output: Path | None,
) -> None:
    console = make_console()

    def say(line: str) -> None:
        console.print(wrapped(console, line), markup=False, soft_wrap=True)

    say(f"{result.data}: {result.num_images} images in minibatches of {result.batch_size}")
    if result.num_left_out:
        say(
            f"left out: {result.num_left_out} images of minibatches with fewer than {MIN_BATCH},"
            " of which CKA has no unbiased estimate"
        )
    if result.num_skipped:
        say(f"{result.num_skipped} unreadable images skipped")
    show_table(console, result.table())
    for name in result.not_measurable:
        say(f"not measurable: {name}: its features are the same for all images, or not finite")
    for label, each in zip(labels, found, strict=True):
        say(f"{label} sees {each.view.describe()}")
        for note in each.notes:
            say(f"{label}: {note}")
    for warning in warnings:
        say(f"warning: {warning}")
    if output is not None:
        say(f"{output}: {', '.join(FILES)}")
