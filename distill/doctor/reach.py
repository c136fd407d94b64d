"""Examines the data and the disk space: opens the data, and measures reading and decoding."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from distill.data.classes import Named, run_classes
from distill.data.decode import UnreadableImageError, read_decoded
from distill.data.holdout import open_eval, open_train
from distill.data.loading.prefetch import MOST_READY
from distill.data.pipelines import train_view
from distill.data.sources import Source
from distill.doctor.findings import Diagnosis, Section
from distill.doctor.machine import free_bytes, gib
from distill.doctor.profiles import Layout, StudentProfile
from distill.errors import InputError
from distill.models.teacher import classes_of_teachers
from distill.recipe import Recipe
from distill.recipe.schema import StreamSpec
from distill.rng import seeded
from distill.training.known_data import OPEN_S
from distill.training.opened import within
from distill.training.sources import reader_of_labels

_DECODE_S = 2.0
_DECODE_IMAGES = 48


@dataclass(frozen=True)
class Reached:
    """What is known about the data.

    Attributes:
        num_images: the training images of each stage; None if unknown.
        images_s: images per second that one core decodes and augments, for the last stage; None if
            not measured.
    """

    num_images: tuple[int | None, ...]
    num_classes: int | None = None
    images_s: float | None = None
    record_bytes: float | None = None


def examine_data(diagnosis: Diagnosis, recipe: Recipe) -> Reached:
    """Opens the sources of a recipe, and reads and decodes some training images."""
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
        found = within(OPEN_S, opening)
        if isinstance(found, InputError):
            # Missing data is not a problem of the recipe, which may run on another machine.
            diagnosis.find(
                "warning",
                key,
                str(found).splitlines()[0],
                "the numbers below that depend on it are assumed",
            )
            section.add(key, "not available here")
        elif isinstance(found, Exception):
            diagnosis.find("problem", key, f"{type(found).__name__}: {found}")
        elif found is None:
            section.add(key, f"not open after {OPEN_S:.0f} s", "not counted")
            diagnosis.find(
                "unknown", key, f"opening it takes more than {OPEN_S:.0f} s: not counted"
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
    """The classes of the run, from the sources that are available. They are checked as in a run."""
    named = []
    for index, key in enumerate(keys):
        why = reader_of_labels(recipe.at_stage(index), key.removesuffix("data.train"))
        source = opened.get(key)
        if source is not None:
            named.append(Named(key, source, bool(why), why))
    evaluated = opened.get("data.eval")
    if not recipe.trains_classifiers or (not named and evaluated is None):
        return ()
    try:
        return run_classes(
            named,
            evaluated,
            reads_eval=recipe.evaluate.reads_labels,
            of_teacher=classes_of_teachers(recipe.teacher_rows.values(), Path()),
        )
    except InputError as error:
        # A source that is not available might have the class names.
        eval_names = evaluated is not None and recipe.evaluate.reads_labels
        if eval_names or recipe.data.eval is None or any(each.read for each in named):
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
    """Returns `reached` with the speed of reading and decoding, if it can be measured."""
    if not all(shard.is_local for shard in source.shards):
        section.add(
            "read, decode, augment",
            "not measured",
            "its shards are not on this machine; distill data inspect fetches some",
        )
        return reached
    data = recipe.data
    try:
        transform = train_view(data.pipeline, data.image_size, data.augment)
    except InputError:  # check_recipe reports it
        return reached
    indices = range(0, len(source), max(1, len(source) // _DECODE_IMAGES))
    done = 0
    try:
        with seeded(0):
            transform(
                read_decoded(source, indices[0], transform.decode)
            )  # not timed: opens files, fills caches
            start = time.perf_counter()
            for index in indices:
                transform(read_decoded(source, index, transform.decode))
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
        f"{done / seconds:,.0f} images/s on one core, {sizes / len(records) / 1e3:,.0f} kB per"
        " image",
        f"measured with {done} images",
    )
    return replace(reached, images_s=done / seconds, record_bytes=sizes / len(records))


def checkpoint_bytes(students: tuple[StudentProfile, ...]) -> int:
    """The bytes of a checkpoint: weights, buffers, optimizer state and averages of each student,
    and the heads and the bank of its hint.
    """
    return sum(
        (1 + student.num_emas) * (student.weight_bytes + student.buffer_bytes)
        + student.all_state_bytes
        + (hint.weight_bytes + hint.buffer_bytes + hint.bank_bytes if (hint := student.hint) else 0)
        for student in students
    )


def shared_memory_bytes(recipe: Recipe, layout: Layout, workers: int, processes_node: int) -> int:
    """The largest number of bytes in /dev/shm of a node's loaders: uint8 pixels and 16 bytes per
    sample, for the micro-batches that each worker has prefetched and builds, and for a stream also
    the micro-batches of a step, which starts when it has all of them.
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


def examine_space(
    diagnosis: Diagnosis,
    recipe: Recipe,
    students: tuple[StudentProfile, ...],
    *,
    layout: Layout,
    workers: int,
    processes_node: int,
) -> None:
    """Compares the bytes that a run writes with the free space."""
    section = Section("Disk space")
    diagnosis.sections.append(section)
    one = checkpoint_bytes(students)
    exports = sum(student.weight_bytes + student.buffer_bytes for student in students)
    # While a checkpoint is written, all those to keep exist too.
    need = one * (recipe.checkpoint.keep_last + 1) + exports
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
            "space",
            f"output needs {gib(need)} and {folder} has {gib(free)} free",
            "output=FOLDER on another disk, or a smaller checkpoint.keep_last",
        )
    if not os.access(folder, os.W_OK):
        diagnosis.find("problem", "space", f"{folder} cannot be written", "output=FOLDER")
    shm = Path("/dev/shm")
    if workers and shm.is_dir():
        need_shm = shared_memory_bytes(recipe, layout, workers, processes_node)
        folder, free_shm = free_bytes(shm)
        section.add(
            str(folder),
            f"{gib(need_shm)} needed, {gib(free_shm)} free",
            f"{processes_node} processes x {workers} workers x {recipe.data.prefetch_batches + 1}"
            f" micro-batches of {layout.micro_batch}",
        )
        if need_shm > free_shm:
            diagnosis.find(
                "warning",
                "space",
                f"{processes_node} processes per node use {gib(need_shm)} of /dev/shm, and"
                f" {gib(free_shm)} are free",
                "docker --shm-size, or lower data.num_workers or data.prefetch_batches",
            )
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    _, free_cache = free_bytes(cache)
    section.add(
        "Hugging Face cache",
        f"{cache}, {gib(free_cache)} free",
        "HF_HOME" if "HF_HOME" in os.environ else "default",
    )
    if (
        any(spec.weights == "pretrained" for spec in recipe.live_teachers.values())
        and not (cache.expanduser() / "hub").is_dir()
    ):
        diagnosis.find(
            "unknown",
            "teacher.weights",
            f"pretrained weights are not in {cache} yet, and are downloaded at the start",
            "run once with network access, and copy the cache",
        )
    diagnosis.numbers["space"] = {
        "checkpoint_bytes": one,
        "output_bytes": need,
        "output_free_bytes": free,
    }
