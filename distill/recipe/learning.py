"""The part of a recipe that says who learns from whom, and how: teacher, optimizer, schedule,
averages, student.
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from distill.recipe.duration import Duration, DurationValue
from distill.recipe.objective import ObjectiveSpec
from distill.recipe.values import (
    ModelArgs,
    NonNegative,
    Pixels,
    Positive,
    Section,
    Seed,
    Std,
    Triple,
    Within,
    as_tuple,
)


class TeacherSpec(Section):
    """A frozen model, which sees pixels of its own: size, mean and std of its timm config unless
    given here.
    """

    model: str | None = None
    """The timm name of the model; null when the weights are a run or an export of ours, which name
    it.
    """
    weights: str = "pretrained"
    """`pretrained` (timm's own), `random`, a .safetensors or .pth file, or the folder of a run or
    export of ours.
    """
    student: str | None = None
    """The student to take from a run of several; null is its best."""
    model_args: ModelArgs = Field(default_factory=dict)
    """Arguments of the timm model by name."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What the teacher computes in."""
    placement: Literal["replicated", "zero3"] = "replicated"
    """`replicated` holds it whole on every process; `zero3` shards its weights over the processes
    and gathers them layer by layer in each forward, uncompiled. It answers the same.
    """
    offload: bool = False
    """With `zero3`: keep the shards in host memory. One process alone shards nothing unless it
    offloads.
    """
    image_size: Pixels | None = None
    """Side in pixels of the images it sees; null is its own."""
    mean: Triple | None = None
    """Mean of its pixels, a number from 0 to 1 for red, green and blue; null is its own."""
    std: Std | None = None
    """Standard deviation of its pixels, likewise."""
    classes: str | None = None
    """What its outputs stand for, where its weights do not say: a text file, a class a line, or a
    label space by name.
    """

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.model is None and self.weights in ("pretrained", "random"):
            raise ValueError(f"weights: {self.weights} needs model: the timm name of the teacher")
        return self

    @model_validator(mode="after")
    def _offload_of_shards(self) -> Self:
        if self.offload and self.placement != "zero3":
            raise ValueError(
                "offload: true goes with placement: zero3; a replicated teacher lies on the device"
            )
        return self


class LrScalingSpec(Section):
    """Ties a learning rate to the batch; `warmup_lr` and `min_lr` are not scaled."""

    rule: Literal["linear", "sqrt"]
    """The run takes `lr` times train.batch_size_global / batch_size (`linear`: SGD, LAMB), or times
    the square root of that (`sqrt`: Adam and its kin).
    """
    batch_size: Annotated[
        int, Field(ge=1), Within(1, 2**20, "no machine holds more images at once")
    ]
    """The global batch size that `lr` is meant for."""

    def factor(self, batch_size_global: int) -> float:
        """What the learning rate is multiplied with."""
        ratio = batch_size_global / self.batch_size
        return ratio if self.rule == "linear" else math.sqrt(ratio)


class OptimizerSpec(Section):
    """A timm optimizer."""

    name: str
    """Its name in timm: adamw, lamb, momentum (SGD with classical momentum; timm's sgd is
    Nesterov's), ...
    """
    lr: Positive
    """The learning rate at its largest, at the end of warm-up."""
    lr_scaling: LrScalingSpec | None = None
    """How `lr` follows the batch size; null takes it as it stands."""
    weight_decay: NonNegative = 0.0
    """Weight decay, decoupled or not as the optimizer does it."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD; Adam and its kin take betas in `args`."""
    decay_norm_and_bias: bool = False
    """Whether normalisation weights and biases decay too, as torch's own optimizers do it."""
    clip_grad_norm: Positive | None = None
    """Largest norm of the whole gradient; null clips nothing, LAMB included."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the optimizer by name; also timm's layer_decay and
    layer_decay_min_scale.
    """

    def at_batch(self, batch_size_global: int) -> "OptimizerSpec":
        """The optimizer with the learning rate that it has at this batch size."""
        if self.lr_scaling is None:
            return self
        lr = self.lr * self.lr_scaling.factor(batch_size_global)
        return self.model_copy(update={"lr": lr, "lr_scaling": None})


class ScheduleSpec(Section):
    """Learning rate as a function of the step. Decay is measured from step 0, as in timm: warm-up
    only replaces its start.
    """

    over: Literal["stage", "run"] = "stage"
    """Of a run in stages: each stage has its schedule from start to end, or one schedule goes
    through all of them.
    """
    name: Literal["cosine", "linear", "polynomial", "step", "constant"] = "cosine"
    """How the learning rate falls."""
    warmup: Duration = DurationValue(0, "iterations")
    """How long the learning rate rises first; in a file also a share of the budget that the
    schedule spans, such as 5%.
    """
    warmup_lr: NonNegative = 0.0
    """The learning rate that warm-up starts at."""
    min_lr: NonNegative = 0.0
    """The learning rate at the end of the budget, and the smallest of all."""
    power: Annotated[float, Field(gt=0), Within(1e-3, 1e3, "the learning rate would be a step")] = (
        1.0
    )
    """Exponent of `polynomial`."""
    milestones: Annotated[tuple[Duration, ...], BeforeValidator(as_tuple)] = ()
    """Of `step`: when the learning rate is multiplied by `decay_factor`."""
    decay_factor: Positive = 0.1
    """Of `step`: what the learning rate is multiplied with at each milestone."""

    @model_validator(mode="after")
    def _milestones(self) -> Self:
        if (self.name == "step") != bool(self.milestones):
            raise ValueError(
                "schedule.milestones goes with name: step, and step needs at least one milestone"
            )
        if len(self.milestones) * math.log10(self.decay_factor) > 38:
            raise ValueError(
                f"decay_factor {self.decay_factor:g} over {len(self.milestones)} milestones leaves"
                " float32: lower it"
            )
        return self


def _different(decays: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(decays)) < len(decays):
        raise ValueError("two decays are the same: give each average one of its own")
    return decays


class EmaSpec(Section):
    """Weight averages in float32."""

    decays: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...],
        BeforeValidator(as_tuple),
        AfterValidator(_different),
    ] = ()
    """An average for each of these decays a step: 0.9999 looks back over about 10,000 steps."""
    warmup: bool = False
    """Whether early steps use min(decay, (1 + t) / (10 + t))."""


class StudentSpec(Section):
    """One setting: model, objective, optimizer, schedule, averages."""

    model: str
    """The timm name of the model."""
    weights: str | None = None
    """What it starts from: `pretrained` (timm's own), a .safetensors or .pth file; null starts from
    scratch.
    """
    model_args: ModelArgs = Field(default_factory=dict)
    """Arguments of the timm model by name."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth: the probability that a sample skips the last block; earlier blocks have
    less.
    """
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the classifier."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward instead of keeping them, block by block: less
    memory, more time.
    """
    mean: Triple | None = None
    """Mean of its pixels, a number from 0 to 1 for red, green and blue; null is that of its timm
    config.
    """
    std: Std | None = None
    """Standard deviation of its pixels, likewise."""
    seed: Seed = 0
    """Of its first weights and dropout; batches and their order follow the run's seed."""
    objective: ObjectiveSpec
    """What it learns from; left out, cross-entropy and the teacher's KL, 1 + 1, or cross-entropy
    alone without a teacher.
    """
    optimizer: OptimizerSpec
    """How its weights move; left out, AdamW (see `optimizer.name`)."""
    schedule: ScheduleSpec = ScheduleSpec()
    """How its learning rate moves."""
    ema: EmaSpec = EmaSpec()
    """Averages of its weights, which are evaluated and saved beside them."""
