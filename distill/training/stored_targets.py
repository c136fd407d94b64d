"""The stored outputs of a teacher, for the batches of this process."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from distill.data.loading.loader import Batch, RankSlice
from distill.data.targets import TargetStore
from distill.losses.objective import Objective
from distill.losses.outputs import TeacherOutputs
from distill.losses.teachers import Lessons
from distill.recipe.teachers import TEACHER


@dataclass(frozen=True)
class StoredTargets:
    """What takes the place of the teacher in a run from a store.

    Attributes:
        part: the slots of this process.
        device: of the run.
    """

    store: TargetStore
    part: RankSlice
    device: torch.device

    def lessons(self, objectives: Iterable[Objective], batch: Batch) -> Lessons:
        """Return what the teacher said of a micro-batch, if an objective reads it.

        Raises:
            DamagedShardError: names the shard and the fix.
        """
        if not any(objective.needs_teacher for objective in objectives):
            return Lessons({})
        epoch, step = divmod(batch.step, self.store.steps_per_epoch)
        slots = self.part.slots(batch.micro)
        logits = self.store.logits(epoch, step, slots, self.device)
        return Lessons({TEACHER: TeacherOutputs(logits)})
