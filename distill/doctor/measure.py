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

from distill.doctor.meter import fake, forward_pass, held, training_pass
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
from distill.student.optimizer import check_optimizer, take_two_steps

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
    """

    teacher: TeacherProfile | None
    students: tuple[StudentProfile, ...]
    unknown: tuple[str, ...] = ()
    of_stage: str | None = None


def measure(recipe: Recipe, num_classes: int) -> Profiles:
    """Counts the teacher and the students of a recipe, which takes seconds and no memory.

    Args:
        num_classes: the number of classes of the data.

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
    students, of_stage = _measure_students(recipe, num_classes)
    return Profiles(_together(teachers), students, tuple(unknown), of_stage)


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
    recipe: Recipe, num_classes: int
) -> tuple[tuple[StudentProfile, ...], str | None]:
    """The students with the optimizers of the stage that needs most memory, and its name; None if
    all stages need the same.
    """
    counted: dict[str, StudentProfile] = {}
    stages: list[tuple[StudentProfile, ...]] = []
    for index in range(recipe.num_stages):
        students = []
        for name, spec in recipe.at_stage(index).students.items():
            own_classes = 0 if recipe.trains_backbone(name) else num_classes
            shape = repr([own_classes, *(getattr(spec, field) for field in _SHAPE)])
            key = shape + repr(spec.optimizer.model_copy(update={"lr": 1.0}))
            if shape not in counted:
                counted[shape] = counted[key] = measure_student(
                    name, spec, own_classes, recipe.data.image_size, recipe.train.precision
                )
            elif key not in counted:
                net = student_without_memory(
                    spec, num_classes=own_classes, image_size=recipe.data.image_size
                )
                counted[key] = dataclasses.replace(
                    counted[shape],
                    state_bytes=optimizer_bytes(net, spec.optimizer),
                    elementwise=_is_elementwise(spec.optimizer),
                )
            students.append(
                dataclasses.replace(counted[key], name=name, num_emas=len(spec.ema.decays))
            )
        stages.append(tuple(students))
    state_bytes = [sum(student.state_bytes for student in students) for students in stages]
    largest = state_bytes.index(max(state_bytes))
    # All stages have the same placement, so every optimizer must allow it.
    shown = tuple(
        dataclasses.replace(
            student, elementwise=all(students[i].elementwise for students in stages)
        )
        for i, student in enumerate(stages[largest])
    )
    return shown, recipe.stages[largest].name if len(set(state_bytes)) > 1 else None


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
    net = student_without_memory(spec, num_classes=num_classes, image_size=image_size)
    if spec.grad_checkpointing:
        checkpoint_activations(net, spec.model)
    network = Network(net, Pixels((0.5,) * 3, (0.5,) * 3)).train()  # any values
    with fake(network):
        weight_bytes, buffer_bytes, largest = held(net)
        train, kept, working = training_pass(
            network, image_size, precision, checkpointing=spec.grad_checkpointing
        )
    return StudentProfile(
        name=name,
        model=spec.model,
        parameters=weight_bytes // 4,
        buffer_bytes=buffer_bytes,
        state_bytes=optimizer_bytes(net, spec.optimizer),
        num_emas=len(spec.ema.decays),
        largest_bytes=largest,
        precision=precision,
        train=train,
        kept=kept,
        working=working,
        checkpointing=spec.grad_checkpointing,
        can_checkpoint=not any(isinstance(module, _BatchNorm) for module in net.modules()),
        elementwise=_is_elementwise(spec.optimizer),
    )


def _is_elementwise(spec: schema.OptimizerSpec) -> bool:
    return spec.name.lower() in ELEMENTWISE_OPTIMIZERS


def optimizer_bytes(net: nn.Module, spec: schema.OptimizerSpec) -> int:
    """The bytes of the optimizer's state, extrapolated from two steps on a small matrix and a small
    vector.

    It is exact for optimizers that store moments of each weight (AdamW, LAMB, SGD, Lion ...), and
    too high for those that factor them (Adafactor). Step counters are not counted.
    """
    check_optimizer(net, spec, key="student.optimizer")
    each = {}
    for parameter, slots in take_two_steps(spec).items():
        state = [
            value for value in slots.values() if isinstance(value, torch.Tensor) and value.dim()
        ]
        each["weight" if parameter.dim() > 1 else "bias"] = (
            sum(tensor.numel() * tensor.element_size() for tensor in state) / parameter.numel()
        )
    scalars = [parameter for parameter in net.parameters() if parameter.requires_grad]
    total: float = sum(each["weight" if p.dim() > 1 else "bias"] * p.numel() for p in scalars)
    return round(total)
