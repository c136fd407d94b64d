"""A recipe on given GPUs: what a forecast is made for, and the placements it may choose from."""

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
    """What a forecast is made for.

    Attributes:
        num_images: of each stage's training set (after its fraction); None when nothing tells it,
            and then its epochs have no length.
        limit_bytes: memory of one GPU.
        sources: where each number comes from, by its name.
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
        """Steps of all stages; None where epochs of data that is not known count. An epoch is one
        of its stage's data.
        """
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
    def images_said(self) -> str:
        """How many training images there are, for people; of a run in stages, in each of them."""
        numbers = ["unknown" if number is None else f"{number:,}" for number in self.num_images]
        if not self.recipe.stages:
            return numbers[0]
        return ", ".join(
            f"{stage.name} {number}"
            for stage, number in zip(self.recipe.stages, numbers, strict=True)
        )

    def layout(self, num_processes: int) -> Layout:
        """The recipe's own on so many processes.

        Raises:
            InputError: the batch does not divide.
        """
        train, teacher = self.recipe.train, self.recipe.teacher
        share = share_of_process(train.batch_size_global, train.micro_batch_size, num_processes)
        return Layout(
            num_processes=num_processes,
            micro_batch=share.micro_batch_size,
            num_forwards=share.num_forwards,
            teacher_placement=teacher.placement if teacher else "replicated",
            teacher_offload=teacher.offload if teacher else False,
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
        )

    def step(self, layout: Layout) -> Step:
        cluster = replace(self.cluster, num_gpus=layout.num_processes)
        return step(self.profiles.teacher, self.profiles.students, layout, cluster, self.assumed)

    def placements(self, own: Layout) -> Iterator[Layout]:
        """Every placement that the recipe's optimizers allow, the plainest first."""
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
