"""Build engine, teacher, students and loaders from a plan. Models are built on the CPU, before any
GPU is used.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from distill.data.loading.loader import RankSlice, TrainLoader
from distill.data.mixing import Mixing
from distill.data.pipelines import train_view
from distill.data.targets import TargetStore
from distill.engine import Engine, Tracking
from distill.errors import InputError, prefix_errors
from distill.evaluation.sets import decoders
from distill.losses.build_hint import HintMaps
from distill.losses.objective import build_objective
from distill.models.hub.download import pinned_commits
from distill.models.student import create_student, student_view
from distill.models.teacher import Teacher
from distill.models.view import Frame, ModelView
from distill.recipe.teachers import TEACHER, hint_teacher
from distill.student.optimizer import build_optimizer, check_optimizer
from distill.student.schedule import resolve_schedule
from distill.student.student import StageSettings, Student
from distill.training.banks import refuse_large_banks, stage_samples
from distill.training.hints import FeatureSource, read_features
from distill.training.masked import masked_of, refuse_unmaskable
from distill.training.plan import Plan, StagePlan
from distill.training.share import Share
from distill.training.streams import fetch_ahead
from distill.training.targets import notes_on_rows, open_targets, stored_features, view_of
from distill.training.teachers import build_teachers

# Paths to weights are relative to the working directory, like paths on a command line; data has its
# own root.
_HERE = Path()


@dataclass
class Models:
    """Models on the CPU, checked against the recipe and the data."""

    teachers: dict[str, Teacher]
    nets: dict[str, nn.Module]
    views: dict[str, ModelView]  # of each teacher and of each student
    notes: list[str]  # what was adapted when weights were loaded
    schedules: dict[str, Callable[[int], float]]
    maps: dict[tuple[str, str], HintMaps]  # of each hint, by the keys of stage and student
    store: TargetStore | None  # of a run that reads what its teacher said; then teachers is empty

    @property
    def records(self) -> dict[str, Mapping[str, str]]:
        """What records say of each teacher: where its weights are from, licence and SHA-256."""
        if self.store is not None:
            return {TEACHER: self.store.teacher["record"]}
        return {row: teacher.record for row, teacher in self.teachers.items()}

    @property
    def frame(self) -> Frame:
        """How all students see an image in an evaluation."""
        return next(self.views[name].frame for name in self.nets)

    def describe(self) -> list[str]:
        """What each model sees, and what was adapted in its weights: a line each."""
        return [
            *(f"{name} sees {view.describe()}" for name, view in self.views.items()),
            *self.notes,
        ]


def build_engine(plan: Plan) -> Engine:
    """Start the engine that the recipe describes: device, processes, trackers."""
    log, settings = plan.recipe.log, plan.recipe.train
    directory = Path(log.directory).expanduser() if log.directory else None
    return Engine(
        precision=settings.precision,
        zero_stage=settings.zero_stage,
        zero_offload=settings.zero_offload,
        channels_last=settings.channels_last,
        compile=settings.compile,
        tracking=Tracking(
            log.trackers,
            log.project,
            log.entity,
            directory or plan.output / "trackers",
            trackio_directory=directory,
        ),
        timeout_s=settings.timeout_s,
    )


def refuse_other_commits(engine: Engine) -> None:
    """Check that all processes have the same commits of the Hub. Collective: every rank.

    Raises:
        InputError: a branch moved while the processes of several machines started.
    """
    ours = pinned_commits()
    for name, commit in engine.on_main(pinned_commits).items():
        if ours.get(name) != commit:
            raise InputError(
                f"{name}: changed on the Hub while the run started, so that processes have"
                f" different weights: start again, or name a commit, as in {name.split('@')[0]}"
                f"@{commit}"
            )


def build_models(plan: Plan) -> Models:
    """Build and check every model and schedule of a run.

    Raises:
        InputError: unknown models, weights that do not fit, a teacher of other classes, impossible
            schedules.
    """
    recipe = plan.recipe
    # First, since it needs no model.
    schedules = {name: run_schedule(plan, name) for name in recipe.students}
    store = None if recipe.targets is None else open_targets(plan)
    teachers = build_teachers(plan, _HERE)
    nets, views, maps = {}, {}, {}
    features = {
        row: FeatureSource(each.net, each.view.image_size, f"teacher {each.source}")
        for row, each in teachers.items()
    }
    notes = [note for teacher in teachers.values() for note in teacher.notes]
    for name, spec in recipe.students.items():
        key = f"students.{name}"
        with prefix_errors(key):
            views[name] = student_view(spec, _HERE, recipe.data, key)
            nets[name], adapted = create_student(
                spec,
                classes=plan.classes_of(name),
                image_size=recipe.data.image_size,
                seed=recipe.seed,
                root=_HERE,
            )
            notes += [f"{name}: {note}" for note in adapted]
            refuse_image_size(nets[name], recipe.data.image_size, f"{key}.model {spec.model}")
            if recipe.train.zero_stage:
                refuse_scalars(nets[name], recipe.train.zero_stage, f"{key}.model {spec.model}")
        of_student = FeatureSource(nets[name], recipe.data.image_size, f"{key}.model {spec.model}")
        for stage in plan.stages:
            own = stage.recipe.students[name]
            check_optimizer(nets[name], own.optimizer, key=f"{stage.key}{key}.optimizer")
            if hint := own.objective.hint:
                hint_key = f"{stage.key}{key}.objective.hint"
                ours = read_features(hint, of_student, "student", hint_key)
                if store is None:
                    of_teacher = features[hint_teacher(own.objective, tuple(teachers))]
                    theirs = read_features(hint, of_teacher, "teacher", hint_key)
                else:
                    theirs = stored_features(store)
                assert ours, "models with memory have feature maps"
                assert theirs, "models with memory have feature maps"
                maps[stage.key, name] = ours, theirs
            refuse_unmaskable(
                own.objective, nets[name], recipe.data.image_size, f"{stage.key}{key}"
            )
        notes += of_student.notes
    if store is not None:
        notes += notes_on_rows(store.rows, recipe)
    _refuse_frames(views)
    notes += [note for each in features.values() for note in each.notes]
    notes += [f"{name} is commit {commit}" for name, commit in pinned_commits().items()]
    seen = {row: teacher.view for row, teacher in teachers.items()}
    if store is not None:
        seen = {TEACHER: view_of(store)}
    return Models(teachers, nets, seen | views, notes, schedules, maps, store)


def _refuse_frames(views: Mapping[str, ModelView]) -> None:
    """Raises InputError if the students cannot be evaluated on the same images."""
    if len({view.frame for view in views.values()}) > 1:
        raise InputError(
            "data.eval_view.crop_mode: border pads with a model's mean, and the means of"
            f" {', '.join(views)} differ: give them one mean, or use another crop_mode"
        )


def run_schedule(plan: Plan, name: str) -> Callable[[int], float]:
    """A student's learning rate as a function of the run's step: one schedule a stage, or one for
    the run.

    Raises:
        InputError: a warm-up as long as its stage, or another error of `resolve_schedule`.
    """
    batch_size = plan.recipe.train.batch_size_global
    ends, schedules = [], []
    for stage in plan.stages:
        spec = stage.recipe.students[name]
        over_run = spec.schedule.over == "run"
        length = plan.total_steps if over_run else stage.last_step - stage.first_step
        steps_per_epoch = (plan.stages[0] if over_run else stage).order.steps_per_epoch
        at = resolve_schedule(
            spec.schedule,
            spec.optimizer.lr,
            length,
            steps_per_epoch,
            batch_size,
            key=f"{stage.key}students.{name}.schedule",
            budget_key=f"{stage.key}budget" if stage.key else "train.budget",
        )
        schedules.append((0 if over_run else stage.first_step, at))
        ends.append(stage.last_step)

    def lr_at(step: int) -> float:
        first_step, at = schedules[min(bisect_right(ends, step), len(ends) - 1)]
        return at(step - first_step)

    return lr_at


def refuse_image_size(net: nn.Module, image_size: int, what: str) -> None:
    """Check the image size with one forward in evaluation mode: some models can be built for any
    size and fail only there.

    Raises:
        InputError: the model does not accept images of this size, or returns no logits, or
            without classifier no vector.
    """
    try:
        with torch.no_grad():
            logits = net.eval()(torch.zeros(1, 3, image_size, image_size))
    except NotImplementedError:  # an operation that the device "meta" lacks
        return
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(
            f"{what} does not take images of data.image_size {image_size}: {reason}"
        ) from error
    finally:
        net.train()
    if not isinstance(logits, torch.Tensor) or logits.shape != (
        1,
        net.num_classes or logits.shape[-1],
    ):
        returned = "logits, one a class" if net.num_classes else "a vector for each image"
        raise InputError(f"{what} does not return {returned}")


def refuse_scalars(net: nn.Module, zero_stage: int, what: str) -> None:
    """Raises InputError for a parameter without dimensions: DeepSpeed cannot broadcast it."""
    if scalars := [name for name, parameter in net.named_parameters() if parameter.ndim == 0]:
        raise InputError(
            f"{what} has a parameter that is a single number, {scalars[0]}, which train.zero_stage"
            f" {zero_stage} cannot partition: use zero_stage: 0"
        )


def stage_settings(
    models: Models, plan: Plan, share: Share, engine: Engine
) -> list[dict[str, StageSettings]]:
    """Return for each stage how each student learns in it. Collective: every rank.

    Raises:
        InputError: the banks of hints do not fit in memory.
    """
    refuse_large_banks(plan.stages, engine)

    def of_stage(stage: StagePlan, name: str) -> StageSettings:
        spec = stage.recipe.students[name]
        return StageSettings(
            spec=spec,
            objective=build_objective(
                spec.objective,
                group=engine.statistics_group(share.group_size),
                maps=models.maps.get((stage.key, name)),
                teachers=tuple(plan.recipe.teacher_rows),
                samples=stage_samples(stage, plan.recipe.seed, engine),
                masked=masked_of(spec.objective, models.nets[name], plan.recipe),
            ),
            build_optimizer=lambda learner: build_optimizer(
                learner.net, spec.optimizer, learner.heads
            ),
        )

    return [{name: of_stage(stage, name) for name in models.nets} for stage in plan.stages]


def start_students(
    models: Models,
    plan: Plan,
    share: Share,
    engine: Engine,
    settings: Mapping[str, StageSettings],
) -> list[Student]:
    """Students on their device, ready for the first stage, whose settings are given. Collective:
    every rank.
    """
    recipe = plan.recipe
    return [
        Student(
            name=name,
            settings=settings[name],
            net=models.nets[name],
            view=models.views[name],
            lr_at=models.schedules[name],
            engine=engine,
            micro_batch_size=share.micro_batch_size,
            num_forwards=share.num_forwards,
            group_size=share.group_size,
            run_seed=recipe.seed,
        )
        for name in recipe.students
    ]


def rank_slice(share: Share, engine: Engine) -> RankSlice:
    """Return this process's part of each global batch."""
    return RankSlice(engine.rank, engine.world_size, share.micro_batch_size, share.num_forwards)


def train_loader(
    plan: Plan, stage: StagePlan, share: Share, engine: Engine, first_step: int
) -> TrainLoader:
    """Micro-batches of this process from `first_step` to the end of a stage."""
    part = rank_slice(share, engine)
    return batch_loader(plan, stage, part, engine.device, first_step, stage.last_step)


def batch_loader(
    plan: Plan,
    stage: StagePlan,
    part: RankSlice,
    device: torch.device,
    first_step: int,
    last_step: int,
) -> TrainLoader:
    """Micro-batches of a part of each global batch, from `first_step` up to, not including,
    `last_step`.
    """
    data = stage.recipe.data
    return TrainLoader(
        stage.source,
        stage.order,
        train_view(data.pipeline, data.image_size, data.augment),
        Mixing(
            num_classes=len(plan.classes),
            image_size=data.image_size,
            seed=plan.recipe.seed,
            labelled=stage.labelled,
            **data.mixing.model_dump(),
        ),
        part,
        num_workers=decoders(data.num_workers),
        prefetch_batches=data.prefetch_batches,
        device=device,
        unreadable=data.unreadable,
        first_step=first_step,
        last_step=last_step,
        order_starts=stage.first_step,
        distinct_epochs=data.distinct_epochs,
        ahead=fetch_ahead(stage.source, stage.order, stage.last_step - stage.first_step),
    )
