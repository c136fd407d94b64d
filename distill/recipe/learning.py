"""The sections of a recipe for models and learning: teacher, student, optimizer, learning rate
schedule and weight averages.
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from distill.recipe.duration import Duration, DurationValue
from distill.recipe.hub_names import Weights
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
    """The frozen model that students learn from. It gets images with its own size, mean and std,
    those of its timm config if they are not set here.
    """

    model: str | None = None
    """The timm name of the model; null: `weights` is a run or an export of this package, which
    contains the name.
    """
    weights: Weights = "pretrained"
    """`pretrained` (the weights of timm), `random`, a .safetensors or .pth file, the folder of a
    run or an export of this package, or a model of the Hub: hf://OWNER/NAME, with @REVISION behind
    for a branch, tag or commit.
    """
    student: str | None = None
    """The student to use, if `weights` is a run with several students; null: the best one."""
    model_args: ModelArgs = Field(default_factory=dict)
    """Arguments of the timm model, by name. An argument that is null is left out, as in timm."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """The data type of the teacher's weights and computations."""
    placement: Literal["replicated", "zero3"] = "replicated"
    """replicated: every process has all weights. zero3: the weights are partitioned over the
    processes and gathered layer by layer in each forward pass, without torch.compile. The outputs
    are the same.
    """
    offload: bool = False
    """With `zero3`: keep the partitions in host memory. A single process partitions nothing without
    offload.
    """
    image_size: Pixels | None = None
    """Side of the images that the teacher gets, in pixels; null: its own size."""
    mean: Triple | None = None
    """Mean of the pixels for red, green and blue, from 0 to 1; null: that of its timm config."""
    std: Std | None = None
    """Standard deviation of the pixels for red, green and blue, each from 0 to 1; null: that of its
    timm config.
    """
    classes: str | None = None
    """The classes of its outputs, if they are not stored with its weights: a text file with one
    class per line, or the name of a label set (imagenet-1k, ...). null: as stored.
    """

    @model_validator(mode="after")
    def _has_a_model(self) -> Self:
        if self.model is None and self.weights in ("pretrained", "random"):
            raise ValueError(f"weights: {self.weights} needs model: the timm name of the teacher")
        return self

    @model_validator(mode="after")
    def _offload_needs_zero3(self) -> Self:
        if self.offload and self.placement != "zero3":
            raise ValueError(
                "offload: true goes with placement: zero3; a replicated teacher stays on the GPU"
            )
        return self


class LrScalingSpec(Section):
    """Scales the learning rate with the batch size. `warmup_lr` and `min_lr` are not scaled."""

    rule: Literal["linear", "sqrt"]
    """The factor of `lr`: train.batch_size_global / batch_size (`linear`, for SGD and LAMB), or its
    square root (`sqrt`, for Adam and similar optimizers).
    """
    batch_size: Annotated[
        int, Field(ge=1), Within(1, 2**20, "no machine holds more images at once")
    ]
    """The global batch size for which `lr` was chosen."""

    def factor(self, batch_size_global: int) -> float:
        """The factor that the learning rate is multiplied by at this batch size."""
        ratio = batch_size_global / self.batch_size
        return ratio if self.rule == "linear" else math.sqrt(ratio)


class OptimizerSpec(Section):
    """An optimizer of timm."""

    name: str
    """The timm name of the optimizer: adamw, lamb, momentum (SGD with classical momentum; `sgd` of
    timm has Nesterov momentum), ...
    """
    lr: Positive
    """The largest learning rate, at the end of warm-up."""
    lr_scaling: LrScalingSpec | None = None
    """How `lr` is scaled with the batch size; null: not scaled."""
    weight_decay: NonNegative = 0.0
    """Weight decay; the optimizer decides whether it is decoupled from the gradient."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD. For Adam and similar optimizers set betas in `args`."""
    decay_norm_and_bias: bool = False
    """Whether weight decay also applies to normalisation weights and biases, as in torch."""
    clip_grad_norm: Positive | None = None
    """The gradient is clipped to this norm, taken over all weights; null: no clipping, not even in
    LAMB.
    """
    args: dict[str, Any] = Field(default_factory=dict)
    """Other arguments of the optimizer, by name; also layer_decay and layer_decay_min_scale of
    timm.
    """

    def at_batch(self, batch_size_global: int) -> "OptimizerSpec":
        """The same optimizer, with its learning rate scaled to a batch size."""
        if self.lr_scaling is None:
            return self
        lr = self.lr * self.lr_scaling.factor(batch_size_global)
        return self.model_copy(update={"lr": lr, "lr_scaling": None})


class ScheduleSpec(Section):
    """The learning rate as a function of the step. As in timm, decay is counted from step 0:
    warm-up only replaces its first part.
    """

    over: Literal["stage", "run"] = "stage"
    """For a run with several stages: every stage has a full schedule (`stage`), or one schedule
    spans all stages (`run`).
    """
    name: Literal["cosine", "linear", "polynomial", "step", "constant"] = "cosine"
    """The shape of the decay."""
    warmup: Duration = DurationValue(0, "iterations")
    """The duration in which the learning rate rises at the start; in a recipe file also a
    percentage of the budget, such as 5%.
    """
    warmup_lr: NonNegative = 0.0
    """The learning rate at the start of warm-up."""
    min_lr: NonNegative = 0.0
    """The smallest learning rate, at the end of the budget."""
    cooldown: Duration = DurationValue(0, "iterations")
    """For `constant`: the duration at the end of the budget in which the learning rate falls
    linearly to `min_lr`; in a recipe file also a percentage of the budget, such as 20%. Runs that
    differ only in budget and cool-down do the same steps up to the first cool-down.
    """
    power: Annotated[float, Field(gt=0), Within(1e-3, 1e3, "the learning rate would be a step")] = (
        1.0
    )
    """For `polynomial`: the exponent."""
    milestones: Annotated[tuple[Duration, ...], BeforeValidator(as_tuple)] = ()
    """For `step`: the durations after which the learning rate is multiplied by `decay_factor`."""
    decay_factor: Positive = 0.1
    """For `step`: the factor at each milestone."""

    @model_validator(mode="after")
    def _cooldown_fits_the_name(self) -> Self:
        if self.cooldown.amount and self.name != "constant":
            raise ValueError(
                f"schedule.cooldown goes with name: constant; {self.name} decays over the whole"
                " budget by itself: remove cooldown, or set name: constant"
            )
        return self

    @model_validator(mode="after")
    def _milestones_fit_the_name(self) -> Self:
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


def _distinct(decays: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(decays)) < len(decays):
        raise ValueError("two decays are the same: give each average a different one")
    return decays


class EmaSpec(Section):
    """Exponential moving averages (EMA) of the weights, in float32."""

    decays: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...],
        BeforeValidator(as_tuple),
        AfterValidator(_distinct),
    ] = ()
    """The decay per step of each average; 0.9999 averages over about 10,000 steps."""
    warmup: bool = False
    """Whether early updates t use a smaller decay, min(decay, (1 + t) / (10 + t))."""


class StudentSpec(Section):
    """A student: its model, objective, optimizer, schedule and averages."""

    model: str
    """The timm name of the model."""
    weights: Weights | None = None
    """The initial weights: `pretrained` (the weights of timm), a .safetensors or .pth file, or a
    model of the Hub (hf://OWNER/NAME, with @REVISION behind); null: random weights.
    """
    model_args: ModelArgs = Field(default_factory=dict)
    """Arguments of the timm model, by name. An argument that is null is left out, as in timm."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth: the probability that a sample skips the last block. It is smaller for
    earlier blocks.
    """
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability before the classifier."""
    grad_checkpointing: bool = False
    """Compute the activations of each block again in the backward pass instead of storing them:
    less memory, more time.
    """
    mean: Triple | None = None
    """Mean of the pixels for red, green and blue, from 0 to 1; null: that of its timm config."""
    std: Std | None = None
    """Standard deviation of the pixels for red, green and blue, each from 0 to 1; null: that of its
    timm config.
    """
    seed: Seed = 0
    """Seed of the initial weights and of dropout. Data order and augmentation use the seed of the
    run.
    """
    objective: ObjectiveSpec
    """The losses that the student minimises. Default: cross-entropy plus KL divergence to the
    teacher, with weights 1 and 1; without a teacher cross-entropy.
    """
    optimizer: OptimizerSpec
    """The optimizer. Default: AdamW."""
    schedule: ScheduleSpec = ScheduleSpec()
    """The learning rate schedule."""
    ema: EmaSpec = EmaSpec()
    """Averages of the weights, which are evaluated and saved in addition to the weights."""
