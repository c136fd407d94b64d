"""The part of a recipe that says how long it trains, on what, and when it evaluates, saves and
logs.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from distill.recipe.duration import DurationValue, Interval
from distill.recipe.values import Count, EvenBatch, Names, Seconds, Section, Within


class TrainSpec(Section):
    """How long, in which batches, in which precision. One process or many compute the same run."""

    budget: Interval | None = None
    """How long the run trains: "300 epochs", "750k iterations", "10M samples"; null where `stages`
    have their own.
    """
    batch_size_global: EvenBatch = 256
    """Samples of one optimizer step, over all processes together."""
    micro_batch_size: EvenBatch | None = None
    """Samples of one forward and backward, which is what BatchNorm and DIST look at; each process
    accumulates as many as its share needs. Null: every process takes its whole share at once,
    BatchNorm is synchronised and relations are gathered over the global batch.
    """
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What students compute in; their weights stay float32. fp16 scales the loss; bf16 wants an
    Ampere GPU or newer.
    """
    channels_last: bool = True
    """Whether images lie channels-last in memory, which convolutions on GPUs prefer."""
    compile: bool = False
    """Whether models are compiled with torch.compile: minutes at the start, faster steps."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What lies in shards over the processes: nothing (0, DDP), optimizer state (1), gradients too
    (2), weights too (3). The result is the same.
    """
    zero_offload: bool = False
    """Keep what is sharded in host memory. One process alone shards nothing unless it offloads."""
    timeout_s: Seconds = 600
    """Seconds that a process waits for the others before the run ends."""

    @model_validator(mode="after")
    def _zero(self) -> Self:
        if self.zero_offload and not self.zero_stage:
            raise ValueError(
                "zero_offload: true goes with zero_stage 1, 2 or 3; under DDP nothing is sharded"
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
    def _divides(self) -> Self:
        if self.micro_batch_size is not None and self.batch_size_global % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide batch_size_global"
                f" {self.batch_size_global}"
            )
        return self


class EvaluateSpec(Section):
    """When students are evaluated; the end of the run, and of each stage, always is."""

    every: Interval = DurationValue(1, "epochs")
    """The interval."""
    batch_size_process: Annotated[
        int, Field(ge=1), Within(1, 65536, "no device holds more images at once")
    ] = 256
    """Images that a process evaluates at once."""


class CheckpointSpec(Section):
    """When the whole state is saved; the end of the run always is."""

    every: Interval = DurationValue(1, "epochs")
    """The interval."""
    keep_last: Count = 2
    """How many of the newest are kept."""


class LogSpec(Section):
    """When losses are written down."""

    every: Interval = DurationValue(50, "iterations")
    """The interval."""
    trackers: Names = ()
    """Where figures go besides metrics.jsonl: tensorboard, wandb, trackio."""
    project: Annotated[str, Field(min_length=1)] = "distill"
    """What trackers group runs under."""
    entity: str | None = None
    """The user or team of wandb; null is the account's own."""
    directory: Annotated[str, Field(min_length=1)] | None = None
    """The folder that trackers write to; null is trackers/ in the run's folder, and trackio's own
    place.
    """
