"""The store that belongs to a run: what its rows must be of, and the checks before it is read."""

import hashlib
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, assert_never

from distill import __version__
from distill.checkpoint.differences import flattened
from distill.data.pipelines import pipeline_versions
from distill.data.targets import PRE_LOGITS, RowFormat, TargetStore, difference_lines, open_store
from distill.errors import InputError
from distill.files import sha256_of
from distill.losses.outputs import POOLED, FeatureMap
from distill.models.origin import origin_of_teacher
from distill.models.view import ModelView
from distill.recipe import Recipe, schema
from distill.training.plan import Plan

# They decode, resize and augment images, or draw the random numbers for it.
_LIBRARIES = ("torch", "torchvision", "timm", "pillow", "numpy")
_WEIGHTS_FILE = "teacher.weights, the file (SHA-256)"
# What a manifest says of the teacher: its rounding depends on it.
FORWARD = "images in a forward"
Identity = dict[str, dict[str, Any]]


def store_folder(recipe: Recipe) -> Path:
    """Return the folder that `targets` names."""
    assert recipe.targets is not None
    return Path(recipe.targets).expanduser()


def without_repeats(recipe: Recipe) -> Recipe:
    """Return a recipe whose epochs all differ: the rows of an epoch do not depend on how many
    epochs a run repeats.
    """
    data = recipe.data.model_copy(update={"distinct_epochs": None})
    return recipe.model_copy(update={"data": data})


def identity_of(plan: Plan) -> Identity:
    """Return what the rows of a store for a run are of. Reads the data and the teacher's weights,
    so only the main process calls this.

    Two runs with the same identity see the same pixels at the same positions, and learn from the
    same teacher.
    """
    recipe = plan.recipe
    assert recipe.teacher is not None
    keys = recipe.model_dump(
        mode="json",
        include={
            "seed": True,
            "data": {"image_size", "fraction", "keep_classes", "pipeline", "augment", "mixing"},
            "train": {"batch_size_global"},
        },
    )
    classes = "\n".join(plan.classes)
    return {
        "batches": {
            **flattened(keys),
            **plan.stages[0].inputs(),
            "classes (SHA-256)": hashlib.sha256(classes.encode()).hexdigest(),
        },
        "teacher": _teacher_identity(recipe.teacher),
        "libraries": {
            "python": f"{sys.version_info.major}.{sys.version_info.minor}",
            "distill": __version__,
            # Without the build: that of torch for a GPU draws the same numbers.
            **{name: metadata.version(name).partition("+")[0] for name in _LIBRARIES},
            **pipeline_versions(recipe.data.pipeline),
        },
    }


def _teacher_identity(spec: schema.TeacherSpec) -> dict[str, Any]:
    keys = spec.model_dump(mode="json", exclude={"placement", "offload"})
    found: dict[str, Any] = flattened({"teacher": keys})
    if (file := weights_here(spec)) is not None:
        found[_WEIGHTS_FILE] = sha256_of(file)
    return found


def weights_here(spec: schema.TeacherSpec) -> Path | None:
    """Return the file of a teacher's weights; None if it is not on this machine, where a run from a
    store does not need it, or the weights are timm's or random.
    """
    try:
        return origin_of_teacher(spec, Path(), may_download=False).file
    except InputError:
        return None


def refuse_other_identity(store: TargetStore, now: Identity) -> None:
    """Check that a store is of the batches, teacher and libraries of a run.

    Weights at another path are the same teacher if their file is the same.

    Raises:
        InputError: names what differs, and the fix.
    """
    teacher = dict(now["teacher"])
    had: Mapping[str, Any] = store.identity["teacher"]
    if _WEIGHTS_FILE in teacher and teacher[_WEIGHTS_FILE] == had.get(_WEIGHTS_FILE):
        teacher.pop("teacher.weights")
        teacher.pop("teacher.student")
    lines = difference_lines(store.identity, {**now, "teacher": teacher})
    if lines:
        raise InputError(
            f"targets: {store.folder} is a store of other rows than this run reads:\n"
            + "\n".join(lines)
            + "\nanother store: distill targets RECIPE targets=FOLDER"
        )


def open_targets(plan: Plan) -> TargetStore:
    """Return the store that a run names. Reads its manifest alone.

    Raises:
        InputError: there is none, or it is damaged or of another number of classes.
    """
    folder = store_folder(plan.recipe)
    store = open_store(folder)
    if store is None:
        raise InputError(
            f"targets: {folder} is no store of targets (it has no manifest.json): write it with"
            " distill targets RECIPE, or remove targets"
        )
    if store.rows.num_classes != len(plan.classes):
        raise InputError(
            f"targets: {folder} has logits of {store.rows.num_classes} classes, and the data have"
            f" {len(plan.classes)}: name the store of these data"
        )
    refuse_unserved(store.rows, plan.recipe, str(folder))
    return store


def refuse_unserved(rows: RowFormat, recipe: Recipe, what: str) -> None:
    """Check that rows have what the students of a recipe read.

    Args:
        what: the store or the option that the rows are of, for messages.

    Raises:
        InputError: a hint reads features and the rows have none, or a loss would be wrong with
            drawn classes.
    """
    for name, student in recipe.students.items():
        soft, hint = student.objective.soft, student.objective.hint
        if rows.kind != PRE_LOGITS and hint is not None:
            raise InputError(
                f"students.{name}.objective.hint: {hint.loss} reads features of the teacher, and"
                f" {what} has logits alone: write a store with distill targets RECIPE"
                " targets=FOLDER --keep pre-logits, or set hint to null"
            )
        if rows.num_draws is not None and soft is not None and not reads_draws(soft):
            raise InputError(
                f"students.{name}.objective.soft: {what} has classes drawn for kl and bkl at"
                " temperature 1 without min_confidence and for bce_teacher, and this is"
                f" {_in_words(soft)}: take a store without --sampled"
            )


def notes_on_rows(rows: RowFormat, recipe: Recipe) -> list[str]:
    """Return a note for each student whose gradient the rows distort: above temperature 1 most of
    the probability is in the classes that share the rest evenly.
    """
    if rows.kind != "top-k":
        return []
    notes = []
    for name, student in recipe.students.items():
        soft = student.objective.soft
        if soft is None or isinstance(soft, schema.BCETeacherSpec) or soft.temperature <= 1:
            continue
        notes.append(
            f"{name}: targets has {rows.describe()}, which are spread evenly, and {soft.loss} reads"
            f" them at temperature {soft.temperature:g}: its gradient is far from the teacher's; a"
            " store with --keep all has it exactly (docs/targets.md)"
        )
    return notes


def reads_draws(soft: schema.SoftSpec) -> bool:
    """Return whether the gradient of a loss is linear in the teacher's probabilities at
    temperature 1, so that drawn classes give it on average. `min_confidence` is not: a drawn class
    can get a larger probability than the teacher gives to any.
    """
    match soft:
        case schema.KLSpec() | schema.BKLSpec():
            return soft.temperature == 1 and soft.min_confidence is None
        case schema.BCETeacherSpec():
            return True
        case schema.DKDSpec() | schema.DISTSpec():
            return False
        case _:
            assert_never(soft)


def _in_words(soft: schema.SoftSpec) -> str:
    """Return a loss with what decides whether it reads drawn classes."""
    if isinstance(soft, schema.BCETeacherSpec):
        return soft.loss
    confidence = None
    if isinstance(soft, schema.KLSpec | schema.BKLSpec):
        confidence = soft.min_confidence
    of_confidence = "" if confidence is None else f" with min_confidence {confidence:g}"
    return f"{soft.loss} at temperature {soft.temperature:g}{of_confidence}"


def refuse_other_rows(store: TargetStore, plan: Plan) -> None:
    """Check that the rows of a store are of a run's batches, teacher and libraries. The main
    process alone calls this.

    Raises:
        InputError: names what differs, and the fix.
    """
    refuse_other_identity(store, identity_of(plan))


def check_targets(store: TargetStore, plan: Plan) -> None:
    """Check that a store has the rows of a run. The main process alone calls this.

    Raises:
        InputError: it is of other batches, another teacher or other libraries, or lacks rows.
    """
    refuse_other_rows(store, plan)
    distinct = plan.recipe.data.distinct_epochs
    num_steps = plan.total_steps
    if distinct is not None:
        num_steps = min(num_steps, distinct * store.steps_per_epoch)
    store.refuse_missing(num_steps)


def stored_features(store: TargetStore) -> tuple[FeatureMap, ...]:
    """Return the features of the teacher that a store has; () if it has logits alone."""
    width = store.rows.width
    return () if width is None else (FeatureMap(POOLED, width, 1, 1),)


def view_of(store: TargetStore) -> ModelView:
    """Return what the teacher of a store saw."""
    values = dict(store.teacher["view"])
    return ModelView(**values | {key: tuple(values[key]) for key in ("mean", "std")})
