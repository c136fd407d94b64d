"""The sections of a recipe for training itself: budget, batches, precision, and the intervals of
evaluation, checkpoints and logs.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from distill.recipe.duration import DurationValue, Interval
from distill.recipe.hub_names import RepoName
from distill.recipe.values import Count, EvenBatch, Names, Seconds, Section, Within


class TrainSpec(Section):
    """Budget, batches and precision. The number of processes does not change the result."""

    budget: Interval | None = None
    """The length of the run, such as "300 epochs", "750k iterations" or "10M samples"; null: each
    of `stages` has its own budget.
    """
    batch_size_global: EvenBatch = 256
    """Number of samples in one optimizer step, over all processes."""
    micro_batch_size: EvenBatch | None = None
    """Number of samples over which BatchNorm and DIST compute, in one forward and backward pass.
    A process accumulates gradients over its micro-batches; where there are more processes than
    micro-batches, neighbouring processes share one. null: the global batch is one micro-batch.
    """
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """The data type of students' computations; their weights stay in float32. fp16 uses loss
    scaling; bf16 needs an NVIDIA Ampere GPU or newer.
    """
    channels_last: bool = True
    """Whether images are stored channels-last, which makes convolutions on GPUs faster."""
    compile: bool = False
    """Whether models are compiled with torch.compile: the start takes minutes, steps are faster."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What is partitioned over the processes: nothing (0, DDP), the optimizer state (1), also
    gradients (2), also weights (3). The result is the same.
    """
    zero_offload: bool = False
    """Whether the partitions are kept in host memory. A single process partitions nothing without
    offload.
    """
    timeout_s: Seconds = 600
    """Seconds that a process waits for the other processes before the run ends with an error."""

    @model_validator(mode="after")
    def _zero_is_possible(self) -> Self:
        if self.zero_offload and not self.zero_stage:
            raise ValueError(
                "zero_offload: true goes with zero_stage 1, 2 or 3; DDP partitions nothing"
            )
        if self.zero_stage and self.precision == "fp16":
            raise ValueError(
                "precision: fp16 needs a loss scale of each student's own, which zero_stage"
                f" {self.zero_stage} has no place for: use bf16, or zero_stage: 0"
            )
        if self.zero_stage and self.compile:
            raise ValueError(
                "compile: true goes with zero_stage: 0; what DeepSpeed wraps is not compiled here"
            )
        return self

    @model_validator(mode="after")
    def _micro_batches_divide_the_batch(self) -> Self:
        if self.micro_batch_size is not None and self.batch_size_global % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide batch_size_global"
                f" {self.batch_size_global}"
            )
        return self


class EvaluateSpec(Section):
    """When students are evaluated. The end of a stage and of the run always evaluates them."""

    every: Interval = DurationValue(1, "epochs")
    """The interval between evaluations."""
    batch_size_process: Annotated[
        int, Field(ge=1), Within(1, 65536, "no device holds more images at once")
    ] = 256
    """Number of images in an evaluation batch of each process."""
    metric: Literal["top1", "top5", "loss", "agreement", "teacher_kl"] = "top1"
    """The figure by which the best weights and the best student are chosen: `top1`, `top5` and
    `agreement` (the percentage of images to which student and teacher give the same class) are
    better if larger, `loss` (cross-entropy) and `teacher_kl` (KL divergence to the teacher) if
    smaller. `agreement` and `teacher_kl` need a teacher, and no labels: `data.eval` may then be
    images without labels or of other classes.
    """

    @property
    def reads_labels(self) -> bool:
        """Whether the best weights are chosen by the labels of the evaluation set."""
        return self.metric in ("top1", "top5", "loss")


class CheckpointSpec(Section):
    """When the state of the run is saved. It is always saved at the end of the run."""

    every: Interval = DurationValue(1, "epochs")
    """The interval between checkpoints."""
    keep_last: Count = 2
    """How many checkpoints are kept; older ones are deleted."""


class PublishSpec(Section):
    """A repository of the Hugging Face Hub that gets the best weights so far, a model card, the
    recipe and the log while the run trains. Failures are warnings and never end the run.
    """

    repo: RepoName
    """OWNER/NAME; the repository is made if it does not exist."""
    every: Interval = DurationValue(1, "epochs")
    """The interval between pushes. The end of the run always pushes, with the report."""
    private: bool = True
    """Whether a repository that is made for this is private."""
    checkpoint: bool = False
    """Whether the newest checkpoint is published too, so that resume=hf://OWNER/NAME continues the
    run on another machine. It is several times as large as the weights.
    """
    license: str | None = None
    """The licence of the weights, by its id on the Hub (mit, apache-2.0, ...) except other, whose
    text a run does not publish; null: none is chosen yet.
    """


class LogSpec(Section):
    """When and where losses are logged."""

    every: Interval = DurationValue(50, "iterations")
    """The interval between log entries."""
    gradient_norms: bool = False
    """Whether log entries contain the norm of each student's gradient in the last step, before
    clipping, and of the gradient of each of its loss terms, times the weight of the term, on the
    first micro-batch of that step. Each term costs a backward pass in that step, and all of them
    memory for one more gradient. Under zero_stage and compile only the total is recorded.
    """
    trackers: Names = ()
    """Trackers that get the same values as metrics.jsonl: tensorboard, wandb, trackio."""
    project: Annotated[str, Field(min_length=1)] = "distill"
    """The name of the project in trackers."""
    entity: str | None = None
    """The user or team in wandb; null: the default of the account."""
    directory: Annotated[str, Field(min_length=1)] | None = None
    """The folder that trackers write to; null: trackers/ in the folder of the run, and the default
    folder of trackio.
    """
    publish: PublishSpec | None = None
    """Where the run publishes its best weights while it trains; null: nowhere."""
