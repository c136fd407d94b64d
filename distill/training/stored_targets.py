"""The stored outputs of a teacher, for the batches of this process."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.data.loading.loader import Batch, RankSlice
from distill.data.targets import PRE_LOGITS, RowFormat, TargetStore
from distill.losses.objective import Objective
from distill.losses.outputs import POOLED, TeacherOutputs
from distill.losses.teachers import Lessons
from distill.models.head import Head, head_logits
from distill.models.teacher import Teacher
from distill.recipe.teachers import TEACHER


@dataclass(frozen=True)
class StoredTargets:
    """What takes the place of the teacher in a run from a store.

    Attributes:
        part: the slots of this process.
        device: of the run.
        distinct_epochs: of the run; later ones repeat them in turn. None: all differ.
        head: of a store of features, on the device.
    """

    store: TargetStore
    part: RankSlice
    device: torch.device
    distinct_epochs: int | None = None
    head: Head | None = None

    def lessons(self, objectives: Iterable[Objective], batch: Batch) -> Lessons:
        """Return what the teacher said of a micro-batch, if an objective reads it.

        Raises:
            DamagedShardError: names the shard and the fix.
        """
        readers = [objective for objective in objectives if objective.needs_teacher]
        if not readers:
            return Lessons({})
        epoch, step = divmod(batch.step, self.store.steps_per_epoch)
        if self.distinct_epochs is not None:
            epoch %= self.distinct_epochs
        slots = self.part.slots(batch.micro)
        decoded = self.store.decoded(epoch, step, slots, self.device)
        if self.head is None:
            return Lessons({TEACHER: TeacherOutputs(decoded)})
        reads_logits = any(objective.soft for objective in readers)
        logits = head_logits(self.head, decoded) if reads_logits else None
        return Lessons({TEACHER: TeacherOutputs(logits, {POOLED: decoded[..., None, None]})})


def asked(teacher: Teacher, rows: RowFormat, images: Tensor) -> Tensor:
    """Return what rows store of a teacher's outputs, before it is encoded.

    Args:
        images: [b, 3, H, W] in [0, 1].
    """
    if rows.kind == PRE_LOGITS:
        return teacher.outputs(images, (POOLED,)).features[POOLED].flatten(1)
    return teacher.forward(images)
