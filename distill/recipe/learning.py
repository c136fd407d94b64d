"""The part of a recipe that says who learns what from whom: teacher, objectives, optimizer, schedule, averages, student."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from distill.recipe.duration import Duration, DurationValue
from distill.recipe.values import Count, NonNegative, Positive, Section, Seed, Std, Triple, as_tuple


class Teacher(Section):
    """A frozen model. `weights`: "pretrained" (timm's own), "random", a .safetensors or .pth file, or a run or export of ours.

    `model` may be left out when the weights are ours, since they name it. The pixels it sees are its own: mean, std and size
    come from its timm config unless given here.

    `placement`: "replicated" holds it whole on every process; "zero3" shards its weights over the processes and gathers them layer
    by layer in each forward, with `offload` from host memory, and is not compiled. What it answers is the same. One process alone shards
    nothing unless it offloads.
    """

    model: str | None = None
    weights: str
    student: str | None = None
    model_args: dict[str, Any] = Field(default_factory=dict)
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    placement: Literal["replicated", "zero3"] = "replicated"
    offload: bool = False
    image_size: Annotated[int, Field(ge=8)] | None = None
    mean: Triple | None = None
    std: Std | None = None
    classes: str | None = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.model is None and self.weights in ("pretrained", "random"):
            raise ValueError(f"weights: {self.weights} needs model: the timm name of the teacher")
        return self

    @model_validator(mode="after")
    def _offload_of_shards(self) -> Self:
        if self.offload and self.placement != "zero3":
            raise ValueError("offload: true goes with placement: zero3; a replicated teacher lies on the device")
        return self


# A teacher's largest probability; 0 and 1 would keep every sample and none but the rounded.
Confidence = Annotated[float, Field(gt=0, lt=1)]


class CE(Section):
    """Cross-entropy against the mixed, smoothed label distribution."""

    loss: Literal["ce"]
    weight: NonNegative = 1.0
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class BCE(Section):
    """Binary cross-entropy a class, averaged over the batch, and over classes by their mean (timm) or their sum."""

    loss: Literal["bce"]
    weight: NonNegative = 1.0
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_reduction: Literal["mean", "sum"] = "mean"


class KL(Section):
    """Hinton's KL divergence: summed over classes, averaged over the batch, times the temperature squared.

    `min_confidence`: samples whose largest teacher probability (temperature 1) is below it count zero; null: all count. The mean is
    still over all samples of the batch.
    """

    loss: Literal["kl"]
    weight: NonNegative = 1.0
    temperature: Positive = 1.0
    min_confidence: Confidence | None = None


class BKL(Section):
    """Binary KL of the paper's Eq. 3, summed over classes. `min_confidence` as in `kl`."""

    loss: Literal["bkl"]
    weight: NonNegative = 1.0
    temperature: Positive = 1.0
    min_confidence: Confidence | None = None


class BCETeacher(Section):
    """What the released code calls BKL: BCE-with-logits(student logits, softmax(teacher logits)), averaged over classes."""

    loss: Literal["bce_teacher"]
    weight: NonNegative = 1.0


class DKD(Section):
    """Decoupled KD (Eq. 4): alpha TCKD + beta NCKD.

    `target`: the class that is set apart, the image's label (under mixing, the larger share), or the teacher's first choice,
    which images need whose labels are of another space or missing.
    """

    loss: Literal["dkd"]
    weight: NonNegative = 1.0
    alpha: NonNegative = 1.0
    beta: NonNegative = 2.0
    temperature: Positive = 1.0
    target: Literal["label", "teacher"] = "label"


class DIST(Section):
    """DIST (Eq. 5): beta inter-class + gamma intra-class Pearson distance, over the samples of `train.micro_batch_size`."""

    loss: Literal["dist"]
    weight: NonNegative = 1.0
    beta: NonNegative = 1.0
    gamma: NonNegative = 1.0
    temperature: Positive = 1.0


Hard = Annotated[CE | BCE, Field(discriminator="loss")]
Soft = Annotated[KL | BKL | BCETeacher | DKD | DIST, Field(discriminator="loss")]


class Objective(Section):
    """total = hard.weight * hard + soft.weight * soft. Null leaves a term out."""

    hard: Hard | None = None
    soft: Soft | None = None

    @property
    def reads_labels(self) -> bool:
        """Whether it learns from the images' labels, so that these must be of the student's classes."""
        return self.hard is not None or (isinstance(self.soft, DKD) and self.soft.target == "label")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.hard is None and self.soft is None:
            raise ValueError("a student needs something to learn from: give objective.hard, objective.soft or both")
        return self


class LrScaling(Section):
    """Ties a learning rate to the batch: `lr` is that of `batch_size`, and the run takes it times batch_size_global / batch_size, or the
    square root of that. `warmup_lr` and `min_lr` are not scaled."""

    rule: Literal["linear", "sqrt"]
    batch_size: Count

    def factor(self, batch_size_global: int) -> float:
        """What the learning rate is multiplied with."""
        ratio = batch_size_global / self.batch_size
        return ratio if self.rule == "linear" else math.sqrt(ratio)


class Optimizer(Section):
    """A timm optimizer by name; `args` are passed to it. Nothing clips unless `clip_grad_norm` says so, LAMB included."""

    name: str
    lr: Positive
    lr_scaling: LrScaling | None = None
    weight_decay: NonNegative = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    decay_norm_and_bias: bool = False
    clip_grad_norm: Positive | None = None
    args: dict[str, Any] = Field(default_factory=dict)

    def at_batch(self, batch_size_global: int) -> "Optimizer":
        """The optimizer with the learning rate that it has at this batch size."""
        if self.lr_scaling is None:
            return self
        lr = self.lr * self.lr_scaling.factor(batch_size_global)
        return self.model_copy(update={"lr": lr, "lr_scaling": None})


class Schedule(Section):
    """Learning rate as a function of the step. Decay is measured from step 0, as in timm: warm-up only replaces its start.

    `over`: of a run in stages, each stage has its schedule from start to end (the default: a second stage is fine-tuning, and the
    paper does not say), or one schedule goes through all of them.
    """

    over: Literal["stage", "run"] = "stage"
    name: Literal["cosine", "linear", "polynomial", "step", "constant"] = "cosine"
    warmup: Duration = DurationValue(0, "iterations")
    warmup_lr: NonNegative = 0.0
    min_lr: NonNegative = 0.0
    power: Positive = 1.0
    milestones: Annotated[tuple[Duration, ...], BeforeValidator(as_tuple)] = ()
    decay_factor: Positive = 0.1

    @model_validator(mode="after")
    def _milestones(self) -> Self:
        if (self.name == "step") != bool(self.milestones):
            raise ValueError("schedule.milestones goes with name: step, and step needs at least one milestone")
        return self


class Ema(Section):
    """Weight averages in float32, one a decay. `warmup` uses min(decay, (1 + t) / (10 + t))."""

    decays: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...],
        BeforeValidator(as_tuple),
    ] = ()
    warmup: bool = False


class Student(Section):
    """One setting: model, objective, optimizer, schedule, averages.

    `grad_checkpointing`: compute activations again in the backward instead of keeping them, block by block.
    """

    model: str
    weights: str | None = None
    model_args: dict[str, Any] = Field(default_factory=dict)
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    grad_checkpointing: bool = False
    mean: Triple | None = None
    std: Std | None = None
    seed: Seed = 0
    objective: Objective
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    ema: Ema = Ema()
