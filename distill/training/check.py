"""`distill recipe check`: what needs no GPU. Names, arguments, packages, shapes, and the data that
are on this machine.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from distill.checkpoint.layout import REPORT_FILE
from distill.errors import InputError, prefix_errors
from distill.models.build import checkpoint_activations, config, create, student_without_memory
from distill.models.hub.download import in_cache
from distill.models.sizes import given_size
from distill.models.student import student_notes, student_view
from distill.models.teacher import Loaded, load_teacher, match_loaded
from distill.recipe import DurationValue, Recipe, schema
from distill.recipe.hub_names import is_hub_name
from distill.recipe.teachers import hint_teacher, recipe_key
from distill.recipe.warmups import share_of
from distill.student.optimizer import check_optimizer
from distill.training.banks import described_banks
from distill.training.build import refuse_image_size, refuse_scalars, run_schedule
from distill.training.hints import FeatureSource, read_features, refuse_long_warmup
from distill.training.known_data import (
    OPEN_S,
    Sources,
    is_here,
    named_classes,
    paths_of_data,
    plan_here,
)
from distill.training.masked import refuse_unmaskable
from distill.training.output_folder import refuse_foreign_output
from distill.training.plan import Plan
from distill.training.settings import setting_problems
from distill.training.share import share_of_process
from distill.training.teachers import (
    read_by_hints_alone,
    refuse_readers_of_logits,
    teacher_errors,
    view_with_key,
    with_key,
)
from distill.training.units import not_compared, refuse_too_long

_SOME_CLASSES = 10


@dataclass(frozen=True)
class Checked:
    """What is known of a valid recipe, a line each.

    Attributes:
        not_here: data and weights that are not on this machine.
        not_compared: durations in epochs and iterations that data which are not here would decide.
        seen: what each model sees, and what is adapted in its weights if they are on this machine.
    """

    not_here: list[str]
    not_compared: list[str]
    seen: list[str]


def check_recipe(
    recipe: Recipe, num_processes: int | None = None, opened: Sources | None = None
) -> Checked:
    """Build what needs no device: models without memory, optimizers, policies. Plan the run, if its
    data are on this machine.

    Args:
        num_processes: also check that the batch divides among so many.
        opened: the data that earlier checks opened, for those of several recipes.

    Raises:
        InputError: all problems, a line each.
    """
    problems = setting_problems(recipe)
    of_teacher: list[str] = []  # reported after those of the students, which need its feature maps
    seen: list[str] = []

    @contextmanager
    def collecting(key: str, found: list[str] = problems) -> Iterator[None]:
        try:
            with prefix_errors(key):
                yield
        except InputError as error:
            found.append(str(error))

    if num_processes is not None:
        with collecting("train.batch_size_global"):
            share_of_process(
                recipe.train.batch_size_global, recipe.train.micro_batch_size, num_processes
            )
    plan: Plan | None = None
    of_data: list[str] = []
    opened = {} if opened is None else opened
    if not problems:
        with collecting("", of_data):
            plan = plan_here(recipe, opened)
    classes, order_given = (
        (plan.classes, plan.order_given) if plan else (named_classes(recipe), True)
    )
    teachers: dict[str, FeatureSource | None] = {}
    features_only = read_by_hints_alone(recipe)
    without_classes: dict[str, str] = {}
    for row, teacher in recipe.live_teachers.items():
        teachers[row] = None
        with collecting(recipe_key(row), of_teacher), teacher_errors(row):
            teachers[row], views, loaded = _check_teacher(teacher, row, recipe.data.image_size)
            seen += views
            source = teachers[row]
            if views and source is not None and int(source.net.num_classes) == 0:  # type: ignore[arg-type]
                without_classes[row] = source.what.removeprefix("teacher ")
            if loaded and row not in features_only:
                match_loaded(teacher, loaded, classes, Path(), order_given=order_given)
    with collecting("", of_teacher):  # it names the key
        refuse_readers_of_logits(recipe, without_classes)
    for name, spec in recipe.students.items():
        with collecting(f"students.{name}"):
            seen += _check_student(spec, recipe, name, teachers)
    seen += [note for found in teachers.values() if found is not None for note in found.notes]
    problems += [*of_teacher, *of_data]
    if not problems:
        with collecting(""):
            _check_lengths(recipe, plan)
    with collecting("output"):
        refuse_foreign_output(recipe)
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    not_here = _not_here(recipe)
    if None in opened.values():
        not_here.append(f"data: not open after {OPEN_S:.0f} s, so it is not compared")
    return Checked(not_here, [] if plan else not_compared(recipe), seen)


def _check_lengths(recipe: Recipe, plan: Plan | None) -> None:
    """Check the schedules and CRD's negatives on the data, or without them what can be known."""
    if plan is None:
        refuse_too_long(recipe)
        return
    described_banks(plan.stages)
    for name in recipe.students:
        run_schedule(plan, name)


def _check_student(
    spec: schema.StudentSpec,
    recipe: Recipe,
    name: str,
    teachers: Mapping[str, FeatureSource | None],
) -> list[str]:
    """Check a student's model and its settings in each stage.

    Args:
        teachers: None for one that is not known here, so that its side of hints cannot be checked;
            none with stored targets.

    Returns:
        What it sees and what is adapted in its weights, a line each.
    """
    image_size, key = recipe.data.image_size, f"students.{name}"
    backbone = recipe.trains_backbone(name)
    num_classes = 0 if backbone else _SOME_CLASSES
    net = student_without_memory(spec, num_classes=num_classes, image_size=image_size)
    with torch.device("meta"):
        refuse_image_size(net, image_size, f"{key}.model {spec.model}")
        if spec.grad_checkpointing:
            checkpoint_activations(net, spec.model)
        if recipe.train.zero_stage:
            refuse_scalars(net, recipe.train.zero_stage, f"{key}.model {spec.model}")
    view = student_view(spec, Path(), recipe.data, key, may_download=False)
    known = 0 if backbone else None
    adapted = student_notes(spec, num_classes=known, image_size=image_size, root=Path())
    student = FeatureSource(net, image_size, f"{key}.model {spec.model}")
    for index, prefix in enumerate(recipe.stage_keys):
        own = recipe.at_stage(index)
        if (hint := own.students[name].objective.hint) is not None:
            hint_key = f"{prefix}{key}.objective.hint"
            budget = own.train.budget
            if budget is not None and budget.unit == "epochs":
                refuse_long_warmup(hint, budget.amount, hint_key)
            read_features(hint, student, "student", hint_key)
            row = hint_teacher(own.students[name].objective, tuple(recipe.teacher_rows))
            if (teacher := teachers.get(row)) is not None:
                read_features(hint, teacher, "teacher", hint_key)
        refuse_unmaskable(own.students[name].objective, net, image_size, f"{prefix}{key}")
        budget_key = f"{prefix}budget" if prefix else "train.budget"
        _check_learning(net, own.students[name], own.train.budget, f"{prefix}{key}", budget_key)
    lines = [f"{name} sees {view.describe()}", *(f"{name}: {note}" for note in adapted)]
    return lines + student.notes


def _check_learning(
    net: torch.nn.Module,
    spec: schema.StudentSpec,
    budget: DurationValue | None,
    key: str,
    budget_key: str,
) -> None:
    check_optimizer(net, spec.optimizer, key=f"{key}.optimizer")
    if spec.schedule.min_lr > spec.optimizer.lr:
        raise InputError(
            f"{key}.schedule.min_lr: {spec.schedule.min_lr:g} is above optimizer.lr"
            f" {spec.optimizer.lr:g} of this batch size: lower one or raise the other"
        )
    if budget is not None and spec.schedule.over == "stage":
        shorter = f": write {key}.schedule.warmup='{share_of(budget)}', or lengthen {budget_key}"
        _shorter(spec.schedule.warmup, budget, f"{key}.schedule.warmup", budget_key, shorter)
        _cooldown_fits(spec.schedule, budget, key, budget_key)
        near = f"[{share_of(budget, 0.5)}, {share_of(budget, 0.75)}]"
        earlier = f": write {key}.schedule.milestones='{near}', or lengthen {budget_key}"
        for milestone in spec.schedule.milestones:
            _shorter(milestone, budget, f"{key}.schedule.milestones", budget_key, earlier)


def _check_teacher(
    spec: schema.TeacherSpec, row: str, data_image_size: int
) -> tuple[FeatureSource | None, list[str], Loaded | None]:
    """Build the teacher without memory. A file of weights is read, so that an error that `train`
    would raise appears here.

    Returns:
        The teacher for hints, if its model is known; what it sees and what is adapted in its
        weights, a line each, or nothing if these are not here; its model, if its head is known.
    """
    if spec.weights not in ("pretrained", "random") and not _are_here(spec.weights):
        if spec.model is None:
            return None, [], None
        with torch.device("meta"):
            model = create(
                spec.model,
                num_classes=None,
                image_size=spec.image_size,
                model_args=spec.model_args,
            )
        given = given_size(spec)
        image_size = given.image_size if given else int(config(spec.model)["input_size"][-1])
        return FeatureSource(model, image_size, f"teacher {spec.model}"), [], None
    if (
        spec.weights == "pretrained"
        and spec.model is not None
        and not _has_weights(config(spec.model))
    ):
        raise InputError(
            f"teacher.weights: timm has no pretrained weights of {spec.model}: give a file"
        )
    loaded = load_teacher(spec, Path(), data_image_size, _SOME_CLASSES, shapes_only=True)
    source = FeatureSource(loaded.model, loaded.view.image_size, f"teacher {loaded.source}")
    view = view_with_key(loaded.view, row)
    notes = (with_key(note, row) for note in loaded.notes)
    return source, [f"{row} sees {view.describe()}", *notes], loaded


def _are_here(weights: str) -> bool:
    """Whether a teacher's weights are on this machine: a file, an export, a complete run, or a
    model of the Hub in its cache.
    """
    if is_hub_name(weights):
        return in_cache(weights, "teacher.weights") is not None
    path = Path(weights).expanduser()
    ended = any((folder / REPORT_FILE).is_file() for folder in (path, path.parent))
    return path.is_file() or (path.is_dir() and ((path / "config.json").is_file() or ended))


def _has_weights(known: dict[str, object]) -> bool:
    return any(known.get(key) for key in ("url", "file", "hf_hub_id", "state_dict", "source"))


def _shorter(
    part: DurationValue, whole: DurationValue, key: str, whole_key: str, fix: str = ""
) -> None:
    """Raises InputError unless a duration is shorter than another of the same unit; other units
    cannot be compared without data.
    """
    if part.unit == whole.unit and part.amount >= whole.amount:
        raise InputError(f"{key}: {part} is not shorter than {whole_key}, {whole}{fix}")


def _cooldown_fits(
    schedule: schema.ScheduleSpec, budget: DurationValue, key: str, budget_key: str
) -> None:
    """Raises InputError if warm-up and cool-down overlap, where their units are that of the
    budget.
    """
    parts = [part for part in (schedule.warmup, schedule.cooldown) if part.amount]
    if any(part.unit != budget.unit for part in parts) or not schedule.cooldown.amount:
        return
    if sum(part.amount for part in parts) > budget.amount:
        raise InputError(
            f"{key}.schedule.cooldown: {schedule.cooldown} and the warm-up {schedule.warmup} are"
            f" longer than {budget_key}, {budget}: write"
            f" {key}.schedule.cooldown='{share_of(budget, 0.2)}', or lengthen {budget_key}"
        )


def _not_here(recipe: Recipe) -> list[str]:
    """Files that the recipe names and this machine lacks. That is no error of the recipe."""
    weights = {
        f"students.{name}.weights": spec.weights
        for name, spec in recipe.students.items()
        if spec.weights not in (None, "pretrained")
    }
    for row, spec in recipe.live_teachers.items():
        if spec.weights not in ("pretrained", "random"):
            weights[f"{recipe_key(row)}.weights"] = spec.weights
    files = {key: Path(path) for key, path in weights.items() if not is_hub_name(path)}
    if recipe.targets is not None:
        files["targets"] = Path(recipe.targets)
    of_hub = {key: name for key, name in weights.items() if is_hub_name(name)}
    files |= {key: path for key, path in paths_of_data(recipe).items() if path is not None}
    return [
        *(
            f"{key}: {name} is not in the cache; training downloads it"
            for key, name in of_hub.items()
            if in_cache(name, key) is None
        ),
        *(
            f"{key}: {path} is not here"
            for key, path in files.items()
            if not is_here(path.expanduser(), key)
        ),
    ]
