"""Builds the models of a recipe without memory and counts them. It reads no weights and needs no
data.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from distill.doctor.hints import HintCounter
from distill.doctor.meter import fake, forward_pass, held, training_pass
from distill.doctor.optimizer_state import optimizer_bytes
from distill.doctor.profiles import Line, Pass, StudentProfile, TeacherProfile
from distill.models.build import checkpoint_activations, create, student_without_memory
from distill.models.fitting import head_classes
from distill.models.origin import Origin, teacher_known_here
from distill.models.pixels import Network, Pixels
from distill.models.sizes import teacher_view
from distill.models.teacher import DTYPES
from distill.models.weights import load_state_dict
from distill.recipe import Recipe, schema
from distill.recipe.elementwise import ELEMENTWISE_OPTIMIZERS
from distill.recipe.teachers import recipe_key
from distill.training.masked import MaskedNetwork
from distill.training.share import Share, share_of_process

# The keys of a student that change its bytes and FLOPs, except the optimizer: students that only
# differ in objective or schedule are counted once.
_SHAPE = ("model", "model_args", "drop_path", "drop_rate", "grad_checkpointing", "mean", "std")


@dataclass(frozen=True)
class Profiles:
    """The counted models of a recipe.

    Attributes:
        teacher: all teachers as one; None without any.
        students: with the optimizers of the stage that needs most memory.
        unknown: a sentence for each model that could not be counted.
        of_stage: the name of that stage, if the stages differ.
        feature_bytes: of the features of an image that hints read from teachers, in that stage.
    """

    teacher: TeacherProfile | None
    students: tuple[StudentProfile, ...]
    unknown: tuple[str, ...] = ()
    of_stage: str | None = None
    feature_bytes: float = 0.0


def measure(
    recipe: Recipe,
    num_classes: int,
    share: Share | None = None,
    num_images: Sequence[int | None] = (),
) -> Profiles:
    """Counts the teacher and the students of a recipe, which takes seconds and no memory.

    Args:
        num_classes: the number of classes of the data.
        share: of a process, on which hints are counted; None: a single process.
        num_images: of the training set of each stage, where it is known, for CRD's bank.

    Raises:
        InputError: timm does not know or cannot build a model. `distill.training.check` runs before
            this and explains it better.
    """
    unknown, teachers = [], []
    for row, spec in recipe.live_teachers.items():
        key = recipe_key(row)
        origin = teacher_known_here(spec, Path())
        if origin is None:
            unknown.append(
                f"{key}: its weights {spec.weights}, which contain the name of the model, are not"
                f" available: the numbers are without it; set {key}.model=NAME"
            )
        else:
            has_head = spec.weights == "random" and origin.config["num_classes"]
            classes = num_classes if has_head else None
            teachers.append(measure_teacher(spec, origin, classes, recipe.data.image_size))
    if len({spec.placement for spec in recipe.live_teachers.values()}) > 1:
        unknown.append(
            "teachers: their placements differ, and the numbers are for all of them replicated"
        )
    train = recipe.train
    hints = HintCounter(
        recipe,
        num_classes,
        share or share_of_process(train.batch_size_global, train.micro_batch_size, 1),
        tuple(num_images) or (None,) * recipe.num_stages,
    )
    students, of_stage, feature_bytes = _measure_students(recipe, num_classes, hints)
    unknown += [
        f"students.{name}: its hint cannot be counted here, and is not in the numbers"
        for name in hints.unknown
    ]
    return Profiles(_together(teachers), students, tuple(unknown), of_stage, feature_bytes)


def _together(teachers: Sequence[TeacherProfile]) -> TeacherProfile | None:
    """Return the counts of several teachers that compute one after another. Of several dtypes the
    slowest counts for all.
    """
    if len(teachers) < 2:
        return teachers[0] if teachers else None
    slowest = max(teachers, key=lambda each: each.dtype == "fp32")
    most = max(teachers, key=lambda each: each.working.at(256))
    passes = [each.forward for each in teachers]
    return TeacherProfile(
        name=" + ".join(each.name for each in teachers),
        parameters=sum(each.parameters for each in teachers),
        weight_bytes=sum(each.weight_bytes for each in teachers),
        largest_bytes=max(each.largest_bytes for each in teachers),
        dtype=slowest.dtype,
        forward=Pass(
            products=tuple(product for each in passes for product in each.products),
            times=1,
            other_bytes=Line(
                sum(each.other_bytes.fixed for each in passes),
                sum(each.other_bytes.per_image for each in passes),
            ),
            num_kernels=sum(each.num_kernels for each in passes),
        ),
        working=most.working,
        num_classes=max(each.num_classes for each in teachers),
    )


def _measure_students(
    recipe: Recipe, num_classes: int, hints: HintCounter
) -> tuple[tuple[StudentProfile, ...], str | None, float]:
    """The students with the optimizers and hints of the stage that needs most memory; its name, or
    None if all stages need the same; and the bytes of the features of an image that they read.
    """
    counted: dict[str, StudentProfile] = {}
    stages: list[tuple[StudentProfile, ...]] = []
    for index in range(recipe.num_stages):
        students = []
        for name, spec in recipe.at_stage(index).students.items():
            own_classes = 0 if recipe.trains_backbone(name) else num_classes
            fields = (*(getattr(spec, field) for field in _SHAPE), spec.objective.masked)
            shape = repr([own_classes, *fields])
            key = shape + repr(spec.optimizer.model_copy(update={"lr": 1.0}))
            if shape not in counted:
                counted[shape] = counted[key] = measure_student(
                    name, spec, own_classes, recipe.data.image_size, recipe.train.precision
                )
            elif key not in counted:
                counted[key] = dataclasses.replace(
                    counted[shape],
                    state_bytes=optimizer_bytes(
                        _trained(_network(spec, own_classes, recipe.data.image_size)),
                        spec.optimizer,
                    ),
                    elementwise=_is_elementwise(spec.optimizer),
                )
            hint = hints.count(name, index)
            students.append(
                dataclasses.replace(
                    counted[key],
                    name=name,
                    num_emas=len(spec.ema.decays),
                    hint=hint.profile if hint else None,
                )
            )
        stages.append(tuple(students))
    needed = [sum(map(_varying_bytes, students)) for students in stages]
    largest = needed.index(max(needed))
    # All stages have the same placement, so every optimizer must allow it.
    shown = tuple(
        dataclasses.replace(
            student, elementwise=all(students[i].elementwise for students in stages)
        )
        for i, student in enumerate(stages[largest])
    )
    of_stage = recipe.stages[largest].name if len(set(needed)) > 1 else None
    return shown, of_stage, hints.feature_bytes(largest)


def _varying_bytes(student: StudentProfile) -> int:
    """The lasting bytes of a student in which the stages of a run differ."""
    hint = student.hint
    return student.all_state_bytes + (hint.weight_bytes + hint.bank_bytes if hint else 0)


def expected_classes(recipe: Recipe) -> int | None:
    """The number of classes according to the first teacher that has them, for data that is not
    available; None if none has.
    """
    for spec in recipe.teacher_rows.values():
        origin = None if spec.weights == "random" else teacher_known_here(spec, Path())
        if origin is None:
            continue
        found = int(origin.config["num_classes"])
        if origin.file is not None:
            found = head_classes(origin.config, load_state_dict(origin.file)[0])
        if found:
            return found
    return None


def measure_teacher(
    spec: schema.TeacherSpec, origin: Origin, num_classes: int | None, data_image_size: int
) -> TeacherProfile:
    """Counts the teacher with its own dtype and image size."""
    view = teacher_view(spec, origin, data_image_size)
    size, dtype = view.image_size, DTYPES[spec.dtype]
    with torch.device("meta"):
        model = create(
            origin.name, num_classes=num_classes, image_size=size, model_args=spec.model_args
        )
    pixels = Pixels(view.mean, view.std, size, view.interpolation, dtype)
    model.eval().requires_grad_(False)
    network = Network(model, pixels)
    with fake(network, dtype):
        weight_bytes, buffer_bytes, largest = held(model)
        forward, working = forward_pass(network, size)
    return TeacherProfile(
        name=spec.model or str(origin.config["architecture"]),
        parameters=sum(p.numel() for p in model.parameters()),
        weight_bytes=weight_bytes + buffer_bytes,
        largest_bytes=largest,
        dtype=spec.dtype,
        forward=forward,
        working=working,
        num_classes=int(model.num_classes),  # type: ignore[arg-type]
    )


def measure_student(
    name: str, spec: schema.StudentSpec, num_classes: int, image_size: int, precision: str
) -> StudentProfile:
    """Counts a student with float32 weights and the precision of the run."""
    network = _network(spec, num_classes, image_size)
    if spec.grad_checkpointing:
        checkpoint_activations(network.net, spec.model)
    with fake(network.train()):
        trained = _trained(network)
        weight_bytes, buffer_bytes, largest = held(trained)
        train, kept, working = training_pass(
            network, image_size, precision, checkpointing=spec.grad_checkpointing
        )
    return StudentProfile(
        name=name,
        model=spec.model,
        parameters=weight_bytes // 4,
        buffer_bytes=buffer_bytes,
        state_bytes=optimizer_bytes(trained, spec.optimizer),
        num_emas=len(spec.ema.decays),
        largest_bytes=largest,
        precision=precision,
        train=train,
        kept=kept,
        working=working,
        checkpointing=spec.grad_checkpointing,
        can_checkpoint=not any(isinstance(module, _BatchNorm) for module in network.modules()),
        elementwise=_is_elementwise(spec.optimizer),
    )


def _network(
    spec: schema.StudentSpec, num_classes: int, image_size: int
) -> Network | MaskedNetwork:
    """A student without memory, from images to logits; or with `masked` to predicted pixels."""
    net = student_without_memory(spec, num_classes=num_classes, image_size=image_size)
    pixels = Pixels((0.5,) * 3, (0.5,) * 3)  # any values
    masked = spec.objective.masked
    return MaskedNetwork(net, pixels, masked, image_size) if masked else Network(net, pixels)


def _trained(network: Network | MaskedNetwork) -> nn.Module:
    """The part of a student that is trained."""
    if isinstance(network, MaskedNetwork):
        return nn.ModuleList([network.net, network.heads])
    return network.net


def _is_elementwise(spec: schema.OptimizerSpec) -> bool:
    return spec.name.lower() in ELEMENTWISE_OPTIMIZERS
