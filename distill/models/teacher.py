"""The teacher: a frozen model in eval mode, with its own pixels and its own precision."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distill import rng
from distill.data.label_sets import class_list
from distill.errors import InputError
from distill.losses.outputs import FeatureKey, TeacherOutputs
from distill.models.build import create, timm_name
from distill.models.features import Featured
from distill.models.fitting import fitted, head_classes, refuse_not_finite
from distill.models.labels import Match, match_teacher
from distill.models.origin import RANDOM, Origin, origin_of_teacher
from distill.models.pixels import Pixels
from distill.models.plausible import Promise, read_promise
from distill.models.sizes import (
    refuse_other_head,
    refuse_unsaid_size,
    resampled_by_timm,
    resized_on_device,
    teacher_view,
)
from distill.models.view import ModelView
from distill.models.weights import load_state_dict
from distill.recipe import schema

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher(nn.Module):
    """Images [B, 3, H, W] in [0, 1] to logits [B, K] in float32, without gradients.

    Always in eval mode: `.train()` on it or on a parent does nothing. Autocast is off inside, since
    it would cast frozen float32 weights again each step; the teacher computes in `dtype`. BatchNorm
    has float32 parameters and statistics in any dtype: running variances can leave fp16's range.
    Measured with
    EfficientNet-Lite0 on 800 crops of 20 ImageNet images (CPU), against float32: bf16 agrees in
    top-1 on 98.9 %, mean KL 1.7e-3 (98.6 %, 2.3e-3 with BatchNorm in bf16 too); fp16 on 99.6 %,
    9e-6.

    Args:
        model: timm model with its weights; it is frozen and cast, and stays on its device.
        view: its view, and the source of each value.
        num_classes: of its logits; 0 for a model without classifier (DINOv2 and its like), whose
            features alone are read.
        source: where the weights come from, for reports.
        classes: names in the order of the logits, if known.
        notes: what was adapted when its weights were loaded.
        promised: the accuracy that the weights' record states.
        origin: its architecture, where its weights are from, and their licence, by name, for
            records; `record` adds the SHA-256.
    """

    def __init__(
        self,
        model: nn.Module,
        view: ModelView,
        *,
        num_classes: int,
        dtype: torch.dtype = torch.float32,
        source: str = "",
        classes: tuple[str, ...] | None = None,
        notes: tuple[str, ...] = (),
        promised: Promise | None = None,
        origin: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.net = model.requires_grad_(False)
        # The module to call; under ZeRO-3 DeepSpeed's engine around it.
        self.model: nn.Module = Featured(model)
        self.pixels = Pixels(view.mean, view.std, view.image_size, view.interpolation)
        self.num_classes = num_classes
        self.fingerprint = _fingerprint(model)
        self.dtype = dtype
        self.source = source
        self.classes = classes
        self.match: Match | None = None  # of its logits with the classes; None for random weights
        self.view = view
        self.notes = notes
        self.promised = promised
        self.record = {**(origin or {}), "sha256": self.fingerprint}
        _cast(self.net, dtype)
        self.pixels.dtype = dtype
        super().train(False)

    def train(self, mode: bool = True) -> Self:
        """Do nothing: a teacher stays in eval mode."""
        return self

    @property
    def has_classes(self) -> bool:
        """Whether it has logits; else only hints learn from it, and nothing is compared with it."""
        return self.num_classes > 0

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K] in float32, without gradient.

        Args:
            images: [B, 3, H, W] in [0, 1], of any size.
        """
        logits = self.outputs(images).logits
        assert logits is not None, "a teacher without classes has no logits"
        return logits

    def outputs(self, images: Tensor, keys: tuple[FeatureKey, ...] = ()) -> TeacherOutputs:
        """Return the logits, if it has classes, and from the same forward some features.

        Args:
            images: [B, 3, H, W] in [0, 1], of any size.
            keys: ascending.
        """
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            logits, features = self.model(self.pixels(images), keys)
        return TeacherOutputs(
            logits.float() if self.has_classes else None, dict(zip(keys, features, strict=True))
        )

    def partition(self, partition_frozen: Callable[[nn.Module], nn.Module]) -> None:
        """Let `partition_frozen` partition the weights, and call what it returns from now on.
        Collective: every rank.

        BatchNorm's parameters become buffers first, which every process has in full and in float32;
        so do scalars, which DeepSpeed cannot partition.
        """
        for module in self.net.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if isinstance(module, _BatchNorm) or parameter.ndim == 0:
                    delattr(module, name)
                    module.register_buffer(name, parameter.data, persistent=False)
        self.model = partition_frozen(self.model)


def _fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of the loaded weights: about a second for each gigabyte, once a run."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_floating_point():
                setattr(module, name, buffer.to(dtype))


def build_teacher(
    spec: schema.TeacherSpec,
    *,
    classes: Sequence[str],
    root: Path,
    device: torch.device | str,
    data_image_size: int,
    order_given: bool = False,
    features_only: bool = False,
) -> Teacher:
    """Return the teacher of a recipe, checked against the data's classes, frozen, on `device`.

    It has the number of classes of its weights: for any other, timm would give it a random head.
    Weights without classifier make a teacher without classes, as does a run without classes, in
    which nothing reads logits.

    Args:
        classes: the data's class names, in the order of the labels; none of a run that trains
            backbones alone.
        root: the folder that paths in the recipe are relative to.
        data_image_size: the recipe's data.image_size, which a teacher sees that takes any size, if
            nothing gives its own.
        order_given: the recipe gives the order of the classes; else it follows from their names.
        features_only: hints read it, and nothing reads its logits: with other classes than the
            data's it becomes a teacher without classes.

    Raises:
        InputError: no such model or weights, weights of another architecture or size, or other
            classes than the data's.
    """
    loaded = load_teacher(spec, root, data_image_size, len(classes))
    num_classes = int(loaded.model.num_classes) if classes else 0  # type: ignore[arg-type]
    notes = loaded.notes
    try:
        recorded, match = match_loaded(spec, loaded, classes, root, order_given=order_given)
    except InputError:
        if not features_only:
            raise
        num_classes, recorded, match = 0, None, None
        notes += (
            "teacher: its classes are not the data's: hints read its features, and nothing is"
            " compared with it",
        )
    teacher = Teacher(
        loaded.model,
        loaded.view,
        num_classes=num_classes,
        dtype=DTYPES[spec.dtype],
        source=loaded.source,
        classes=recorded,
        notes=notes,
        promised=read_promise(loaded.origin.file),
        origin=_recorded_origin(spec, loaded.origin),
    )
    teacher.match = match
    return teacher.to(device)


def match_loaded(
    spec: schema.TeacherSpec,
    loaded: "Loaded",
    classes: Sequence[str],
    root: Path,
    *,
    order_given: bool,
) -> tuple[tuple[str, ...] | None, Match | None]:
    """Compare the classes of a teacher with the data's. The arguments are those of `build_teacher`.

    Returns:
        Its classes in the order of its logits, if they are recorded, and the match; neither where
        one has no classes, and no match for random weights.

    Raises:
        InputError: they are others.
    """
    num_classes = int(loaded.model.num_classes)  # type: ignore[arg-type]
    if not num_classes or not classes:
        return None, None
    if spec.weights == "random":
        return tuple(classes), None
    recorded = _recorded_classes(spec, loaded.origin, root)
    pretrained = spec.weights == "pretrained"
    return recorded, match_teacher(
        recorded, num_classes, classes, pretrained=pretrained, order_given=order_given
    )


def _recorded_origin(spec: schema.TeacherSpec, origin: Origin) -> dict[str, str]:
    """Return what records say of a teacher's weights: their licence may bind its students."""
    names = {
        "random": RANDOM,
        "pretrained": f"pretrained {timm_name(origin.name, origin.config)}",
    }
    weights = str(origin.hub) if origin.hub else names.get(spec.weights, spec.weights)
    licence = {"license": origin.licence} if origin.licence else {}
    return {"model": str(origin.config["architecture"]), "weights": weights, **licence}


@dataclass(frozen=True)
class Loaded:
    """A teacher's model with its weights, before it is compared with the data.

    Attributes:
        source: where the weights come from.
        notes: what was adapted to fit the model, a sentence each.
    """

    model: nn.Module
    origin: Origin
    view: ModelView
    source: str
    notes: tuple[str, ...]


def load_teacher(
    spec: schema.TeacherSpec,
    root: Path,
    data_image_size: int,
    num_random_classes: int,
    *,
    shapes_only: bool = False,
) -> Loaded:
    """Build a recipe's teacher and load its weights.

    Args:
        num_random_classes: of the head, if the weights are random and timm's have a head.
        shapes_only: build it on torch's device "meta", check whether a file of weights fits, and
            download nothing.

    Raises:
        InputError: as `build_teacher`, except for the classes.
    """
    origin = origin_of_teacher(spec, root, may_download=not shapes_only)
    state_dict, which, num_classes = None, f"{spec.weights} weights", None
    if origin.file is not None:
        state_dict, note = load_state_dict(origin.file)
        which = f"{note} of {origin.place}"
        num_classes = head_classes(origin.config, state_dict)
        refuse_other_head(origin, num_classes)
    elif spec.weights == "random":
        num_classes = num_random_classes if int(origin.config["num_classes"]) else 0
    view = teacher_view(spec, origin, data_image_size, state_dict)
    with (
        rng.seeded(rng.hash64("teacher", "init")),
        torch.device("meta") if shapes_only else nullcontext(),
    ):
        model = create(
            origin.name,
            num_classes=num_classes,
            pretrained=spec.weights == "pretrained" and not shapes_only,
            image_size=view.image_size,
            model_args=spec.model_args,
        )
    if spec.classes is not None and int(model.num_classes) == 0:  # type: ignore[arg-type]
        raise InputError(
            f"teacher.classes: {origin.name}, {which}, has no classifier, so that its outputs are"
            " no classes: remove this key"
        )
    notes: tuple[str, ...] = ()
    if spec.weights == "pretrained":
        notes = resampled_by_timm(
            origin, spec.model_args, view.image_size, view.sources["image_size"]
        )
    if state_dict is not None:
        what = f"teacher.weights {origin.place} for {origin.name}"
        found = fitted(model, state_dict, what)
        refuse_not_finite(model, found.state_dict, what)
        refuse_unsaid_size(origin, found, view, "teacher.image_size")
        notes = found.notes
        if not shapes_only:
            model.load_state_dict(found.state_dict)
    notes += resized_on_device(view, data_image_size)
    return Loaded(
        model, origin, view, f"{origin.name}, {which}", tuple(f"teacher: {note}" for note in notes)
    )


def _recorded_classes(
    spec: schema.TeacherSpec, origin: Origin, root: Path
) -> tuple[str, ...] | None:
    return given_classes(spec, root) or origin.classes


def given_classes(spec: schema.TeacherSpec, root: Path) -> tuple[str, ...]:
    """Return the class list that a recipe names for its teacher; () if it names none."""
    if spec.classes is None:
        return ()
    return class_list(spec.classes, root, "teacher", distinct=False)


def classes_of_teachers(specs: Iterable[schema.TeacherSpec], root: Path) -> tuple[str, ...]:
    """Return the class list of the first teacher for which a recipe names one; () if there is none.
    The others are compared with the run's classes when they are built.
    """
    return next((found for spec in specs if (found := given_classes(spec, root))), ())
