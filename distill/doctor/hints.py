"""Counts the hints of a recipe without memory: their heads and losses, the features that they read,
and the size of CRD's bank.
"""

import dataclasses
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from distill.doctor.meter import HALVES, Meter, autocast, fake, held
from distill.doctor.optimizer_state import optimizer_bytes
from distill.doctor.profiles import HintProfile, Line, Pass, Product
from distill.models.build import create, student_without_memory
from distill.models.origin import teacher_known_here
from distill.models.sizes import teacher_view
from distill.models.teacher import DTYPES
from distill.recipe import Recipe, schema
from distill.recipe.teachers import hint_teacher
from distill.training.hints import FeatureSource
from distill.training.share import Share
from distill.training.unplaced import UnplacedHint, size_of_bank, unplaced_hint


@dataclass(frozen=True)
class Hint:
    """A hint as it is counted.

    Attributes:
        profile: its counts.
        reads: the bytes of an image of each feature of a teacher that it reads, by the teacher.
    """

    profile: HintProfile
    reads: Mapping[Hashable, int]


class HintCounter:
    """Counts hints, each kind once.

    Args:
        share: of a process.
        num_images: of the training set of each stage, where it is known.
    """

    def __init__(
        self, recipe: Recipe, num_classes: int, share: Share, num_images: tuple[int | None, ...]
    ) -> None:
        self._recipe, self._num_classes, self._share = recipe, num_classes, share
        self._num_images = num_images
        self._teachers: dict[str, FeatureSource | None] = {}
        self._counted: dict[str, Hint | None] = {}
        self.unknown: dict[str, None] = {}  # students whose hint cannot be counted here

    def count(self, name: str, stage: int) -> Hint | None:
        """Count the hint of a student in a stage.

        Returns:
            None if it has none, or if a model cannot be counted here.

        Raises:
            InputError: the maps do not fit; `distill recipe check` explains it.
        """
        own = self._recipe.at_stage(stage)
        student = own.students[name]
        spec = student.objective.hint
        if spec is None:
            return None
        row = hint_teacher(student.objective, tuple(self._recipe.teacher_rows))
        images = self._num_images[stage]
        shape = student.model_dump(include={"model", "model_args", "optimizer"})
        key = repr((spec.heads, row, images, shape))
        if key not in self._counted:
            self._counted[key] = self._count(name, student, spec, row, images)
        if self._counted[key] is None:
            self.unknown[name] = None
        return self._counted[key]

    def feature_bytes(self, stage: int) -> int:
        """Return the bytes of the features of an image that the students read in a stage."""
        found = [self.count(name, stage) for name in self._recipe.students]
        return sum(
            {key: size for hint in found if hint for key, size in hint.reads.items()}.values()
        )

    def _count(
        self,
        name: str,
        student: schema.StudentSpec,
        spec: schema.HintSpec,
        row: str,
        num_images: int | None,
    ) -> Hint | None:
        teacher = self._teacher(row)
        if teacher is None:
            return None
        size = self._recipe.data.image_size
        classes = 0 if self._recipe.trains_backbone(name) else self._num_classes
        net = student_without_memory(student, num_classes=classes, image_size=size)
        ours = FeatureSource(net, size, f"students.{name}.model {student.model}")
        found = unplaced_hint(spec, ours, teacher, f"students.{name}.objective.hint")
        if found is None:
            return None
        dtype = DTYPES[self._recipe.teacher_rows[row].dtype]
        profile = self._measured(found, spec.loss, dtype)
        profile = dataclasses.replace(
            profile,
            state_bytes=(
                optimizer_bytes(found.heads, student.optimizer) if profile.parameters else 0
            ),
            bank_bytes=size_of_bank(spec, num_images),
            bank_place=spec.bank if isinstance(spec, schema.CRDSpec) else None,
        )
        reads: dict[Hashable, int] = {
            (row, key): math.prod(shape) * dtype.itemsize for key, shape in found.teacher.items()
        }
        return Hint(profile, reads)

    def _teacher(self, row: str) -> FeatureSource | None:
        if row not in self._teachers:
            spec = self._recipe.teacher_rows[row]
            origin = teacher_known_here(spec, Path())
            self._teachers[row] = None
            if origin is not None:
                size = teacher_view(spec, origin, self._recipe.data.image_size).image_size
                with torch.device("meta"):
                    net = create(
                        origin.name, num_classes=None, image_size=size, model_args=spec.model_args
                    )
                self._teachers[row] = FeatureSource(net, size, f"teacher {origin.name}")
        return self._teachers[row]

    def _measured(self, hint: UnplacedHint, loss: str, teacher_dtype: torch.dtype) -> HintProfile:
        """Count forward and backward of the heads and the loss, on as many images as a process has
        in a forward: relations of samples grow with the square of their number, or its cube.
        """
        images, precision = self._share.micro_batch_size, self._recipe.train.precision
        own_dtype = HALVES.get(precision, torch.float32)
        with fake(nn.ModuleList([hint.heads])):
            hint.empty_bank()
            weight_bytes, buffer_bytes, _ = held(hint.heads)
            for parameter in hint.heads.parameters():
                parameter.grad = torch.empty_like(parameter)  # as the buckets of DDP
            ours = [torch.empty(images, *each, dtype=own_dtype) for each in hint.student]
            theirs = [
                torch.empty(images, *each, dtype=teacher_dtype) for each in hint.teacher.values()
            ]
            for each in ours:
                each.requires_grad_()
            with Meter() as meter:
                with autocast(precision):
                    made = hint.heads(tuple(ours), tuple(theirs))
                if (size := self._share.group_size) > 1 and hint.relates:
                    # The processes of a group relate all of their samples.
                    made = tuple(torch.cat([each] * size) for each in made)
                    theirs = [torch.cat([each] * size) for each in theirs]
                total = hint.loss(made, tuple(theirs))
                meter.forward = False
                total.backward()  # type: ignore[no-untyped-call]
        products = tuple(
            Product(Line(0, flops / images), Line(0, traffic / images))
            for flops, traffic in meter.products
        )
        return HintProfile(
            loss=loss,
            parameters=weight_bytes // 4,
            buffer_bytes=buffer_bytes,
            train=Pass(products, 3, Line(0, meter.other_bytes / images), meter.kernels),
            working=Line(0, meter.peak / images),
        )
