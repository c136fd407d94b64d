"""A recipe on given GPUs: the input of a forecast, and the possible placements."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from distill.doctor.measure import Profiles
from distill.doctor.memory import Memory, Reserve, estimate
from distill.doctor.model import Assumptions, Cluster, Step, step
from distill.doctor.profiles import Layout
from distill.recipe import Recipe
from distill.training.share import share_of_process


@dataclass(frozen=True)
class Setting:
    """The input of a forecast.

    Attributes:
        num_images: of each stage's training set (after its fraction); None if it is unknown.
        limit_bytes: memory of one GPU.
        sources: the source of each number, by name.
    """

    recipe: Recipe
    profiles: Profiles
    cluster: Cluster
    assumed: Assumptions
    reserve: Reserve
    num_classes: int
    num_images: tuple[int | None, ...]
    limit_bytes: float
    sources: dict[str, str]

    @property
    def total_steps(self) -> int | None:
        """The number of steps of all stages; None if a budget is in epochs of unknown data."""
        batch, steps = self.recipe.train.batch_size_global, 0
        for index, num_images in enumerate(self.num_images):
            budget = self.recipe.at_stage(index).train.budget
            assert budget
            if budget.unit == "epochs" and num_images is None:
                return None
            steps += budget.steps(
                steps_per_epoch=(num_images or 0) // batch, batch_size_global=batch
            )
        return steps

    @property
    def images_text(self) -> str:
        """The number of training images, of each stage, as text."""
        numbers = ["unknown" if number is None else f"{number:,}" for number in self.num_images]
        if not self.recipe.stages:
            return numbers[0]
        return ", ".join(
            f"{stage.name} {number}"
            for stage, number in zip(self.recipe.stages, numbers, strict=True)
        )

    def layout(self, num_processes: int) -> Layout:
        """The layout of the recipe on a number of processes.

        Raises:
            InputError: the batch does not divide.
        """
        train, teachers = self.recipe.train, list(self.recipe.live_teachers.values())
        partitioned = bool(teachers) and all(each.placement == "zero3" for each in teachers)
        share = share_of_process(train.batch_size_global, train.micro_batch_size, num_processes)
        return Layout(
            num_processes=num_processes,
            micro_batch=share.micro_batch_size,
            num_forwards=share.num_forwards,
            teacher_placement="zero3" if partitioned else "replicated",
            teacher_offload=partitioned and all(each.offload for each in teachers),
            zero_stage=train.zero_stage,
            zero_offload=train.zero_offload,
        )

    def memory(self, layout: Layout) -> Memory:
        return estimate(
            self.profiles.teacher,
            self.profiles.students,
            layout,
            image_size=self.recipe.data.image_size,
            num_classes=self.num_classes,
            reserve=self.reserve,
            feature_bytes=self.profiles.feature_bytes,
        )

    def step(self, layout: Layout) -> Step:
        cluster = replace(self.cluster, num_gpus=layout.num_processes)
        return step(self.profiles.teacher, self.profiles.students, layout, cluster, self.assumed)

    def placements(self, own: Layout) -> Iterator[Layout]:
        """Yields every placement that the optimizers of the recipe allow, the simplest first."""
        stages = (
            (0, 1, 2, 3) if all(student.elementwise for student in self.profiles.students) else (0,)
        )
        for stage in stages if self.recipe.train.precision != "fp16" else (0,):
            for placement in ("replicated", "zero3") if self.profiles.teacher else ("replicated",):
                yield replace(
                    own,
                    teacher_placement=placement,
                    teacher_offload=own.teacher_offload and placement == "zero3",
                    zero_stage=stage,
                    zero_offload=own.zero_offload and stage > 0,
                )
