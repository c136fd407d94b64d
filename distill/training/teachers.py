"""The teachers of a run: built and placed, what students learn from each, and what students are
compared with.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from distill.data.loading.loader import Batch
from distill.engine import Engine
from distill.errors import InputError, prefix_errors
from distill.losses.objective import Objective, combination_of
from distill.losses.outputs import FeatureKey
from distill.losses.teachers import Combination, Lessons
from distill.models.functional import functional_forward
from distill.models.teacher import Teacher, build_teacher
from distill.models.view import ModelView
from distill.recipe import Recipe, schema
from distill.recipe.teachers import TEACHER, hint_teacher, recipe_key, teachers_read
from distill.training.plan import Plan
from distill.training.stored_targets import StoredTargets

_FIX = (
    "learn from its features (objective.hint with loss: feature, and soft: null), or name a teacher"
    " with classes"
)


@contextmanager
def teacher_errors(row: str) -> Iterator[None]:
    """Return a context in which the messages of errors name a teacher by its key in the recipe,
    where the lower layers write "teacher".
    """
    key = recipe_key(row)
    with prefix_errors(key):
        try:
            yield
        except InputError as error:
            if key == row:
                raise
            raise InputError(with_key(str(error), row)) from error


_FIELDS = "|".join(schema.TeacherSpec.model_fields)
# Not a file of this name: teacher.pth, runs/teacher.
_KEY = re.compile(rf"(?<![\w./-])teacher(?=\.(?:{_FIELDS})(?![\w/])|: )")


def with_key(text: str, row: str) -> str:
    """Return a text of a lower layer, which writes "teacher" for the key of any teacher, with the
    key of this one.
    """
    return _KEY.sub(recipe_key(row), text)


def view_with_key(view: ModelView, row: str) -> ModelView:
    """Return the view of a teacher with its own key in the sources."""
    sources = {name: with_key(source, row) for name, source in view.sources.items()}
    return replace(view, sources=sources)


def _with_logits_read(objective: schema.ObjectiveSpec, rows: tuple[str, ...]) -> Collection[str]:
    """Return the teachers whose logits an objective reads."""
    return teachers_read(objective.model_copy(update={"hint": None}), rows)


def read_by_hints_alone(recipe: Recipe) -> set[str]:
    """Return the teachers whose features students read, and whose logits nothing reads."""
    if not recipe.evaluate.reads_labels:
        return set()
    rows = tuple(recipe.teacher_rows)
    objectives = [
        student.objective
        for index in range(recipe.num_stages)
        for student in recipe.at_stage(index).students.values()
    ]
    read = {row for each in objectives for row in teachers_read(each, rows)}
    return read - {row for each in objectives for row in _with_logits_read(each, rows)}


def refuse_readers_of_logits(recipe: Recipe, without_classes: Mapping[str, str]) -> None:
    """Check a recipe of which some teachers have no logits.

    Args:
        without_classes: model and weights of these teachers, for messages.

    Raises:
        InputError: a soft term or the metric reads their logits; names the key.
    """
    rows = tuple(recipe.teacher_rows)
    for index, prefix in enumerate(recipe.stage_keys if without_classes else ()):
        for name, student in recipe.at_stage(index).students.items():
            objective = student.objective
            if objective.soft is None:
                continue
            for row in _with_logits_read(objective, rows):
                if row in without_classes:
                    fix = (
                        f"{prefix}students.{name}.objective.soft_teachers chooses those with"
                        " classes, and objective.hint with loss: feature learns from the others"
                        if len(rows) > 1
                        else _FIX
                    )
                    teacher = "the teacher" if len(rows) == 1 else recipe_key(row)
                    raise InputError(
                        f"{prefix}students.{name}.objective.soft: {objective.soft.loss} reads the"
                        f" logits of {teacher} ({without_classes[row]}), which has no classifier:"
                        f" {fix}"
                    )
    reads_logits = recipe.trains_classifiers and not recipe.evaluate.reads_labels
    if without_classes and reads_logits and len(without_classes) == len(rows):
        raise InputError(
            f"evaluate.metric: {recipe.evaluate.metric} compares with the logits of a teacher, and"
            f" {next(iter(without_classes.values()))} has no classifier: use top1, top5 or loss, or"
            " name a teacher with classes"
        )


def references(recipe: Recipe, with_classes: Collection[str]) -> dict[str, Combination]:
    """Return for each student which logits its agreement and KL divergence are measured against, at
    temperature 1.

    These are what its soft term reads in the last stage (for a loss of each teacher the mean of
    their probabilities). Without a soft term they are those of its hint's teacher, if that one has
    classes, and else the mean of the probabilities of all teachers that have.

    Args:
        with_classes: the teachers that have classes; if there are none, no student is compared.
    """
    rows = tuple(recipe.teacher_rows)
    found = {}
    for name, student in recipe.at_stage(recipe.num_stages - 1).students.items():
        objective = student.objective
        if objective.soft is not None:
            own = combination_of(objective, rows)
            found[name] = Combination(
                own.weights, "logits" if own.how == "logits" else "probabilities"
            )
            continue
        chosen = [row for row in sorted(rows) if row in with_classes]
        if objective.hint is not None and hint_teacher(objective, rows) in with_classes:
            chosen = [hint_teacher(objective, rows)]
        if chosen:
            found[name] = Combination(tuple((row, 1 / len(chosen)) for row in chosen))
    return found


def build_teachers(plan: Plan, root: Path) -> dict[str, Teacher]:
    """Build and check the teachers of a run, on the CPU.

    Args:
        root: what paths to weights are relative to.

    Raises:
        InputError: unknown models, weights that do not fit, a teacher of other classes, or a
            student that needs classes of a teacher without.
    """
    recipe, teachers = plan.recipe, {}
    features_only = read_by_hints_alone(recipe)
    for row, spec in recipe.live_teachers.items():
        with teacher_errors(row):
            teachers[row] = build_teacher(
                spec,
                classes=plan.classes,
                root=root,
                device="cpu",
                data_image_size=recipe.data.image_size,
                order_given=plan.order_given,
                features_only=row in features_only,
            )
            refuse_teacher_size(teachers[row])
        _name(teachers[row], row)
    without = {row: each.source for row, each in teachers.items() if not each.has_classes}
    refuse_readers_of_logits(recipe, without)
    return teachers


def _name(teacher: Teacher, row: str) -> None:
    """Let what is printed of a teacher name it by its key."""
    teacher.view = view_with_key(teacher.view, row)
    teacher.notes = tuple(with_key(note, row) for note in teacher.notes)
    if teacher.match is not None and row != TEACHER:
        teacher.match = replace(teacher.match, who=recipe_key(row))


def refuse_teacher_size(teacher: Teacher) -> None:
    """Check the teacher's image size with one forward on the device "meta".

    Raises:
        InputError: it does not accept images of this size.
    """
    size = teacher.view.image_size
    tensors = {
        name: tensor.to("meta")
        for named in (teacher.net.named_parameters, teacher.net.named_buffers)
        for name, tensor in named(remove_duplicate=False)
    }
    image = torch.zeros(1, 3, size, size, dtype=teacher.dtype, device="meta")
    try:
        with torch.no_grad():
            functional_forward(teacher.net, tensors, image)
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        # An operation that needs memory.
        if isinstance(error, NotImplementedError) or "meta" in str(error):
            return
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(
            f"teacher.image_size: {teacher.source} does not take images of {size} pixels: {reason}"
        ) from error


def ask_teachers(
    teachers: Mapping[str, Teacher],
    objectives: Collection[Objective],
    batch: Batch,
    stored: StoredTargets | None = None,
) -> Lessons:
    """Run one forward of each teacher that an objective reads, or read what it said of the batch.

    Args:
        stored: of a run from a store.
    """
    if stored is not None:
        return stored.lessons(objectives, batch)
    read: dict[str, set[FeatureKey]] = {}
    for objective in objectives:
        for row, keys in objective.teachers.items():
            read.setdefault(row, set()).update(keys)
    return Lessons(
        {
            row: teachers[row].outputs(batch.images, tuple(sorted(keys)))
            for row, keys in read.items()
        }
    )


def place_teachers(
    teachers: Mapping[str, Teacher], engine: Engine, specs: Mapping[str, schema.TeacherSpec]
) -> dict[str, Teacher]:
    """Place each teacher as its part of the recipe says. Collective: every rank.

    Raises:
        InputError: one does not fit on the device.
    """
    placed = {}
    for row, teacher in teachers.items():
        with teacher_errors(row):
            found = place_teacher(
                teacher, engine, placement=specs[row].placement, offload=specs[row].offload
            )
        assert found is not None
        placed[row] = found
    return placed


def place_teacher(
    teacher: Teacher | None, engine: Engine, *, placement: str = "replicated", offload: bool = False
) -> Teacher | None:
    """Place the teacher as the recipe says, outside Accelerate's prepare, in its own dtype.
    Collective: every rank.

    Raises:
        InputError: it does not fit on the device.
    """
    if teacher is None:
        return None
    # One process has nothing to partition, except to offload it.
    partitioned = placement == "zero3" and (engine.world_size > 1 or offload)
    if not offload:
        fix = (
            "teacher.offload: true"
            if placement == "zero3"
            else "teacher.placement: zero3 on several processes"
        )
        refuse_too_large(teacher, engine, engine.world_size if partitioned else 1, fix)
    if partitioned:
        teacher.partition(partial(engine.partition_frozen, offload=offload, dtype=teacher.dtype))
        teacher.to(engine.device)  # what is not partitioned
    else:
        engine.place(teacher)
        engine.compile_(teacher.model)
    return teacher


def refuse_too_large(teacher: Teacher, engine: Engine, num_partitions: int, fix: str) -> None:
    """Raises InputError if the weights need more than the free memory of the device; it names what
    makes them fit.
    """
    free = engine.free_memory_bytes()
    needed = (
        sum(tensor.nbytes for tensor in (*teacher.parameters(), *teacher.buffers()))
        / num_partitions
    )
    if free is None or needed <= free:
        return
    fixes = ["teacher.dtype: bf16"] if teacher.dtype == torch.float32 else []
    raise InputError(
        f"teacher: {teacher.source} takes {needed / 2**30:.1f} GiB of {engine.device}, which has"
        f" {free / 2**30:.1f} GiB free: set {' or '.join([*fixes, fix])}; `distill doctor RECIPE`"
        " shows what fits"
    )
