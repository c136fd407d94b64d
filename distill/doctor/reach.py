"""Room on disks, and the data: opened, counted, a few images read and decoded against the clock."""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from distill.data.augment import TrainTransform
from distill.data.classes import Named, run_classes
from distill.data.decode import UnreadableImageError, read_image
from distill.data.holdout import open_eval, open_train
from distill.data.loading.prefetch import MOST_READY
from distill.data.sources import Source
from distill.doctor.findings import Diagnosis, Section
from distill.doctor.machine import free_bytes, gib
from distill.doctor.profiles import Layout, StudentProfile
from distill.errors import InputError
from distill.recipe import Recipe
from distill.recipe.schema import StreamSpec
from distill.rng import seeded
from distill.training.plan import reader_of_labels

_OPEN_S = 8.0  # patience with a source: listing a million files over a network can take minutes
_DECODE_S = 2.0
_DECODE_IMAGES = 48


@dataclass(frozen=True)
class Reached:
    """What is known of the data. `num_images`: of each stage's training set. `images_s`: of the
    last stage's, measured on one core of this machine, decoded and augmented; None: not measured.
    """

    num_images: tuple[int | None, ...]
    num_classes: int | None = None
    images_s: float | None = None
    record_bytes: float | None = None


def examine_data(diagnosis: Diagnosis, recipe: Recipe) -> Reached:
    """Open the sources of a recipe, and read and decode some images of the training set."""
    section = Section("Data")
    diagnosis.sections.append(section)
    root = Path(recipe.data.root).expanduser()
    opened: dict[str, Source | None] = {}
    trained = [
        (f"{prefix}data.train", recipe.at_stage(i).data.train)
        for i, prefix in enumerate(recipe.stage_keys)
    ]
    openings: dict[str, Callable[[], Source | None]] = {
        key: partial(open_train, recipe.data, spec, root, key) for key, spec in trained
    }
    if recipe.data.eval is not None:
        openings["data.eval"] = partial(open_eval, recipe.data, root)
    for key, opening in openings.items():
        found = _within(_OPEN_S, opening)
        if isinstance(found, InputError):
            # What is not here is no fault of the recipe: it may be read on another machine.
            diagnosis.find(
                "warning",
                key,
                str(found).splitlines()[0],
                "what depends on it below is assumed, and says so",
            )
            section.add(key, "not reachable here")
        elif isinstance(found, Exception):
            diagnosis.find("problem", key, f"{type(found).__name__}: {found}")
        elif found is None:
            section.add(key, f"still being opened after {_OPEN_S:.0f} s", "not counted")
            diagnosis.find(
                "unknown", key, f"opening it takes more than {_OPEN_S:.0f} s: not counted here"
            )
        else:
            opened[key] = found
            section.add(key, f"{len(found):,} images, {len(found.classes):,} classes", "opened")
    classes = _classes(diagnosis, recipe, [key for key, _ in trained], opened)
    sizes = tuple(
        None if (source := opened.get(key)) is None else len(source) for key, _ in trained
    )
    reached = Reached(sizes, len(classes) or None)
    train = opened.get(trained[-1][0])
    if train is None:
        return reached
    return _decode(
        diagnosis, section, recipe.at_stage(recipe.num_stages - 1), train, trained[-1][0], reached
    )


def _classes(
    diagnosis: Diagnosis, recipe: Recipe, keys: Sequence[str], opened: Mapping[str, Source | None]
) -> tuple[str, ...]:
    """The run's class list, as far as its sources are here; those that must agree are held to it as
    a run holds them.
    """
    named = []
    for index, key in enumerate(keys):
        why = reader_of_labels(recipe.at_stage(index), key.removesuffix("data.train"))
        source = opened.get(key)
        if source is not None:
            named.append(Named(key, source, bool(why), why))
    judged = opened.get("data.eval")
    if not named and judged is None:
        return ()
    try:
        return run_classes(named, judged)
    except InputError as error:
        # What is not here might name them.
        if judged is not None or recipe.data.eval is None or any(each.read for each in named):
            diagnosis.find("problem", "data", str(error))
        return ()


def _decode(
    diagnosis: Diagnosis,
    section: Section,
    recipe: Recipe,
    source: Source,
    key: str,
    reached: Reached,
) -> Reached:
    """What was reached, with the speed of reading and decoding where it can be measured."""
    if not all(shard.is_local for shard in source.shards):
        section.add(
            "read, decode, augment",
            "not measured",
            "its shards are elsewhere; distill data inspect fetches some",
        )
        return reached
    augment = recipe.data.augment.model_dump(exclude={"repeats"})
    try:
        transform = TrainTransform(image_size=recipe.data.image_size, **augment)
    except InputError:  # found by check_recipe, which names it
        return reached
    indices = range(0, len(source), max(1, len(source) // _DECODE_IMAGES))
    done = 0
    try:
        with seeded(0):
            transform(
                read_image(source, indices[0])
            )  # opens files and fills caches of code: not timed
            start = time.perf_counter()
            for index in indices:
                transform(read_image(source, index))
                done += 1
                if time.perf_counter() - start > _DECODE_S:
                    break
            seconds = time.perf_counter() - start
        records = [source.read(index) for index in indices[:8]]
    except (UnreadableImageError, OSError) as error:
        diagnosis.find(
            "problem" if recipe.data.unreadable == "error" else "warning", key, str(error)
        )
        return reached
    sizes = sum(len(record) if isinstance(record, bytes) else record.nbytes for record in records)
    section.add(
        "read, decode, augment",
        f"{done / seconds:,.0f} images/s on one core, {sizes / len(records) / 1e3:,.0f} kB an"
        " image",
        f"measured here, {done} images",
    )
    return replace(reached, images_s=done / seconds, record_bytes=sizes / len(records))


def _within(seconds: float, act: Callable[[], Any]) -> Any:
    """What `act` returns or raises; None when it takes longer, and then it goes on in a thread that
    dies with the process.
    """
    box: list[Any] = []

    def run() -> None:
        try:
            box.append(act())
        except Exception as error:  # handed on
            box.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return box[0] if box else None


def checkpoint_bytes(students: tuple[StudentProfile, ...]) -> int:
    """One checkpoint: of each student weights, buffers, optimizer state and averages,
    in float32.
    """
    return sum(
        (1 + student.num_emas) * (student.weight_bytes + student.buffer_bytes) + student.state_bytes
        for student in students
    )


def shared_memory_bytes(recipe: Recipe, layout: Layout, workers: int, processes_node: int) -> int:
    """/dev/shm that the loaders of a node fill at most: uint8 pixels and 16 bytes a sample, for
    each worker's prefetched micro-batches and the one it builds, and of a stream for the
    micro-batches of a step, which begins when all are there.
    """
    sample = 3 * recipe.data.image_size**2 + 16
    recipes = [recipe.at_stage(index) for index in range(recipe.num_stages)]
    streams = any(isinstance(each.data.train, StreamSpec) for each in recipes)
    waiting = min(layout.num_forwards, MOST_READY) if streams else 0
    return (
        processes_node
        * (workers * (recipe.data.prefetch_batches + 1) + waiting)
        * layout.micro_batch
        * sample
    )


def examine_room(
    diagnosis: Diagnosis,
    recipe: Recipe,
    students: tuple[StudentProfile, ...],
    *,
    layout: Layout,
    workers: int,
    processes_node: int,
) -> None:
    """Compare what a run writes with what is free."""
    section = Section("Room")
    diagnosis.sections.append(section)
    one = checkpoint_bytes(students)
    exports = sum(student.weight_bytes + student.buffer_bytes for student in students)
    need = (
        one * (recipe.checkpoint.keep_last + 1) + exports
    )  # the one being written stands beside those kept
    folder, free = free_bytes(Path(recipe.output_dir))
    section.add("a checkpoint", gib(one), "counted")
    section.add(
        "output",
        f"{gib(need)} needed, {gib(free)} free in {folder}",
        f"(keep_last {recipe.checkpoint.keep_last} + 1) checkpoints, best exports",
    )
    if need > free:
        diagnosis.find(
            "problem",
            "room",
            f"output needs {gib(need)} and {folder} has {gib(free)} free",
            "output=FOLDER on another disk, or a smaller checkpoint.keep_last",
        )
    if not os.access(folder, os.W_OK):
        diagnosis.find("problem", "room", f"{folder} cannot be written", "output=FOLDER")
    shm = Path("/dev/shm")
    if workers and shm.is_dir():
        need_shm = shared_memory_bytes(recipe, layout, workers, processes_node)
        there, free_shm = free_bytes(shm)
        section.add(
            str(there),
            f"{gib(need_shm)} needed, {gib(free_shm)} free",
            f"{processes_node} processes x {workers} workers x {recipe.data.prefetch_batches + 1}"
            f" micro-batches of {layout.micro_batch}",
        )
        if need_shm > free_shm:
            diagnosis.find(
                "warning",
                "room",
                f"{processes_node} processes a node fill {gib(need_shm)} of /dev/shm, and"
                f" {gib(free_shm)} are free here",
                "docker --shm-size, or lower data.num_workers or data.prefetch_batches",
            )
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    there, free_cache = free_bytes(cache)
    section.add(
        "Hugging Face cache",
        f"{cache}, {gib(free_cache)} free",
        "HF_HOME" if "HF_HOME" in os.environ else "default",
    )
    if (
        recipe.teacher is not None
        and recipe.teacher.weights == "pretrained"
        and not (cache.expanduser() / "hub").is_dir()
    ):
        diagnosis.find(
            "unknown",
            "teacher.weights",
            f"pretrained weights are not in {cache} yet, and are fetched at the start",
            "run once where there is network, and copy the cache",
        )
    diagnosis.numbers["room"] = {
        "checkpoint_bytes": one,
        "output_bytes": need,
        "output_free_bytes": free,
    }
