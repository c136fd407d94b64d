"""What this version or this machine cannot do of a recipe, before data and models are read."""

import importlib.util
import os
from collections.abc import Iterable, Iterator

from distill.data.order.lanes import fitting_lanes, lanes_fit
from distill.data.pipelines import train_view
from distill.engine import TRACKERS
from distill.errors import InputError, did_you_mean
from distill.models.hub.licences import OTHER, check_licence
from distill.recipe import Recipe, schema
from distill.recipe.teachers import recipe_key
from distill.training.share import nearest_numbers


def setting_problems(recipe: Recipe) -> list[str]:
    """What this version or this machine cannot do of a recipe, a sentence each. Reads neither data
    nor models.
    """
    return [
        *_output_problems(recipe),
        *_tracker_problems(recipe.log.trackers),
        *_licence_problems(recipe.log.publish),
        *_stage_problems(recipe),
        *_deepspeed_problems(recipe),
    ]


def _output_problems(recipe: Recipe) -> Iterator[str]:
    first = os.path.normpath(recipe.name).split(os.sep)[0]
    if recipe.output is None and first in ("", os.curdir, os.pardir):
        yield (
            f"name: {recipe.name!r} would put the run elsewhere than below runs/: write a name such"
            " as imagenet1k/res50, or set output"
        )


def _tracker_problems(trackers: Iterable[str]) -> Iterator[str]:
    for name in trackers:
        if name not in TRACKERS:
            yield (
                f"log.trackers: no tracker {name!r}{did_you_mean(name, TRACKERS)}; known are"
                f" {', '.join(TRACKERS)}"
            )
        elif importlib.util.find_spec(name) is None:
            yield (
                f"log.trackers: the package {name} is not installed: pip install {name}, or leave"
                " it out"
            )


def _licence_problems(publish: schema.PublishSpec | None) -> Iterator[str]:
    if publish is None or publish.license is None:
        return
    try:
        check_licence(publish.license, "log.publish.license")
    except InputError as error:
        yield str(error)
        return
    if publish.license == OTHER:
        yield (
            "log.publish.license other: needs a file of its text, which a run does not publish: use"
            " an id such as mit or apache-2.0, or leave it out and, after the run, use distill"
            " publish --license other --license-file FILE"
        )


def _stage_problems(recipe: Recipe) -> Iterator[str]:
    """Augmentation and lanes of each stage."""
    size, micro = recipe.train.batch_size_global, recipe.train.micro_batch_size
    for index, prefix in enumerate(recipe.stage_keys):
        data = recipe.at_stage(index).data
        try:
            train_view(data.pipeline, data.image_size, data.augment)
        except InputError as error:
            yield f"{prefix}{error}"
        if isinstance(data.train, schema.StreamSpec) and data.train.lanes:
            try:
                refuse_lanes(data.train.lanes, size, micro, f"{prefix}data.train")
            except InputError as error:
                yield str(error)


def _deepspeed_problems(recipe: Recipe) -> Iterator[str]:
    needed_by = [
        *(["train.zero_stage"] if recipe.train.zero_stage else []),
        *(
            f"{recipe_key(row)}.placement"
            for row, spec in recipe.live_teachers.items()
            if spec.placement == "zero3"
        ),
    ]
    if needed_by and importlib.util.find_spec("deepspeed") is None:
        yield (
            f"{' and '.join(needed_by)}: the package deepspeed is not installed: pip install"
            " 'vanillakd[deepspeed]', or set train.zero_stage: 0 and the placement of teachers to"
            " replicated"
        )


def refuse_lanes(
    lanes: int, batch_size_global: int, micro_batch_size: int | None, key: str
) -> None:
    """Raises InputError if a batch does not divide evenly into the lanes; it names the nearest
    numbers that work.
    """
    if lanes_fit(lanes, batch_size_global, micro_batch_size):
        return
    good = nearest_numbers(fitting_lanes(batch_size_global, micro_batch_size), lanes)
    what = f"batches of {batch_size_global}" + (
        f" in micro-batches of {micro_batch_size}" if micro_batch_size else ""
    )
    raise InputError(
        f"{key}.lanes: {what} do not divide into {lanes} lanes: use {' or '.join(map(str, good))}"
    )
