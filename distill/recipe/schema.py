"""What a run is, complete and immutable. Every number that shapes the result stands here, none in the environment.

Numbers carry their unit or scope in their name; optional is `X | None`. What can be checked without data or models is
checked here; the rest (model names, files, label spaces) in `distill.check`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from distill.recipe.duration import Duration, DurationValue, Interval

Probability = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1)]


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # YAML has lists only, and strict tuples refuse them


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"should be two numbers above 0, the smaller first, not {list(value)}")
    return value


Range = Annotated[tuple[float, float], BeforeValidator(_as_tuple), AfterValidator(_ascending)]
Triple = Annotated[tuple[float, float, float], BeforeValidator(_as_tuple)]
Std = Annotated[tuple[Positive, Positive, Positive], BeforeValidator(_as_tuple)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


# ---- data ------------------------------------------------------------------------------------------------------------


class ImageFolder(Section):
    """One folder a class, images below it. `classes`: a text file, a class a line, when the folders are only some of them."""

    kind: Literal["image_folder"]
    path: str
    classes: str | None = None


class Table(Section):
    """Parquet or Arrow files through `datasets`: a file, a folder of files, or a glob."""

    kind: Literal["parquet", "arrow"]
    path: str
    image_column: str = "image"
    label_column: str = "label"
    classes: str | None = None


class SavedDataset(Section):
    """A folder written by `datasets.Dataset.save_to_disk`, or a split of a saved `DatasetDict`."""

    kind: Literal["saved"]
    path: str
    split: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    classes: str | None = None


class FashionMnist(Section):
    """Fashion-MNIST: the balanced 6,000 + 1,000 subset shipped with the package, or with `path` the whole set in IDX files."""

    kind: Literal["fashion_mnist"]
    split: Literal["train", "test"]
    path: str | None = None


Source = Annotated[ImageFolder | Table | SavedDataset | FashionMnist, Field(discriminator="kind")]


class Augment(Section):
    """Training view of one image, through timm's and torchvision's transforms. Order: crop, flip, policy or jitter, erasing."""

    crop: Literal["random_resized", "padded", "none"] = "random_resized"
    scale: Range = (0.08, 1.0)
    ratio: Range = (0.75, 4 / 3)
    padding: Annotated[int, Field(ge=0)] = 4
    interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    horizontal_flip: Probability = 0.5
    vertical_flip: Probability = 0.0
    auto_augment: str | None = None
    color_jitter: NonNegative = 0.0
    random_erasing: Probability = 0.0
    repeats: Count = 1


class Mixing(Section):
    """Mixup and cutmix inside pairs of neighbours; `group_size` samples of a global batch share one lambda (released code: 256)."""

    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    probability: Probability = 1.0
    switch_probability: Probability = 0.5
    group_size: Annotated[int, Field(ge=2, multiple_of=2)] = 256


class EvalView(Section):
    """Evaluation view: resize so that the centre crop is `crop_fraction` of the shorter side."""

    crop_fraction: Annotated[float, Field(gt=0, le=1)] = 0.95
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"


class Data(Section):
    """`num_workers`: decoding processes of each training process; null takes its share of the machine's cores, at most 16."""

    root: str = "."
    train: Source
    eval: Source | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    image_size: Annotated[int, Field(ge=8)] = 224
    augment: Augment = Augment()
    mixing: Mixing = Mixing()
    eval_view: EvalView = EvalView()
    unreadable: Literal["error", "skip"] = "error"
    num_workers: Annotated[int, Field(ge=0)] | None = None
    prefetch_batches: Count = 2


# ---- models ----------------------------------------------------------------------------------------------------------


class Teacher(Section):
    """A frozen model. `weights`: "pretrained" (timm's own), "random", a .safetensors or .pth file, or a run or export of ours.

    `model` may be left out when the weights are ours, since they name it. The pixels it sees are its own: mean, std and size
    come from its timm config unless given here.
    """

    model: str | None = None
    weights: str
    student: str | None = None
    model_args: dict[str, Any] = {}
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    image_size: Annotated[int, Field(ge=8)] | None = None
    mean: Triple | None = None
    std: Std | None = None
    classes: str | None = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.model is None and self.weights in ("pretrained", "random"):
            raise ValueError(f"weights: {self.weights} needs model: the timm name of the teacher")
        return self


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
    """Hinton's KL divergence: summed over classes, averaged over the batch, times the temperature squared."""

    loss: Literal["kl"]
    weight: NonNegative = 1.0
    temperature: Positive = 1.0


class BKL(Section):
    """Binary KL of the paper's Eq. 3, summed over classes."""

    loss: Literal["bkl"]
    weight: NonNegative = 1.0
    temperature: Positive = 1.0


class BCETeacher(Section):
    """What the released code calls BKL: BCE-with-logits(student logits, softmax(teacher logits)), averaged over classes."""

    loss: Literal["bce_teacher"]
    weight: NonNegative = 1.0


class DKD(Section):
    """Decoupled KD (Eq. 4): alpha TCKD + beta NCKD."""

    loss: Literal["dkd"]
    weight: NonNegative = 1.0
    alpha: NonNegative = 1.0
    beta: NonNegative = 2.0
    temperature: Positive = 1.0


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

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.hard is None and self.soft is None:
            raise ValueError("a student needs something to learn from: give objective.hard, objective.soft or both")
        return self


class Optimizer(Section):
    """A timm optimizer by name; `args` are passed to it. Nothing clips unless `clip_grad_norm` says so, LAMB included."""

    name: str
    lr: Positive
    weight_decay: NonNegative = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    decay_norm_and_bias: bool = False
    clip_grad_norm: Positive | None = None
    args: dict[str, Any] = {}


class Schedule(Section):
    """Learning rate as a function of the step. Decay is measured from step 0, as in timm: warm-up only replaces its start."""

    name: Literal["cosine", "linear", "polynomial", "step", "constant"] = "cosine"
    warmup: Duration = DurationValue(0, "iterations")
    warmup_lr: NonNegative = 0.0
    min_lr: NonNegative = 0.0
    power: Positive = 1.0
    milestones: Annotated[tuple[Duration, ...], BeforeValidator(_as_tuple)] = ()
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
        BeforeValidator(_as_tuple),
    ] = ()
    warmup: bool = False


class Student(Section):
    """One setting: model, objective, optimizer, schedule, averages."""

    model: str
    weights: str | None = None
    model_args: dict[str, Any] = {}
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mean: Triple | None = None
    std: Std | None = None
    seed: Seed = 0
    objective: Objective
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    ema: Ema = Ema()


# ---- the run ---------------------------------------------------------------------------------------------------------


class Train(Section):
    """`batch_size_global` and `micro_batch_size` shape the result; the number of processes does not.

    `micro_batch_size`: the samples of one forward and backward. What looks at a batch as a whole (BatchNorm's statistics,
    DIST's relations) looks at exactly these, so 1 to batch_size_global / micro_batch_size processes compute the same run; each
    accumulates what its share needs. Null: every process takes its whole share at once, BatchNorm is synchronised and
    relations are gathered over the global batch.
    """

    budget: Interval
    batch_size_global: Annotated[int, Field(ge=2, multiple_of=2)]
    micro_batch_size: Annotated[int, Field(ge=2, multiple_of=2)] | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = True
    compile: bool = False
    zero_stage: Literal[0, 1, 2, 3] = 0

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.micro_batch_size is not None and self.batch_size_global % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide batch_size_global {self.batch_size_global}"
            )
        return self


class Evaluate(Section):
    every: Interval = DurationValue(1, "epochs")
    batch_size_process: Count = 256


class Checkpoint(Section):
    every: Interval = DurationValue(1, "epochs")
    keep_last: Count = 2


class Log(Section):
    every: Interval = DurationValue(50, "iterations")
    trackers: Names = ()


class Recipe(Section):
    """A complete run. `student` holds what all `students` share; each student is merged over it when the file is read."""

    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    output: Annotated[str, Field(min_length=1)] | None = None
    seed: Seed = 0
    resume: Literal["auto", "never"] = "auto"
    data: Data
    teacher: Teacher | None = None
    students: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], Student], Field(min_length=1)
    ]
    train: Train
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()

    @property
    def output_dir(self) -> str:
        return self.output or f"runs/{self.name}"

    @model_validator(mode="after")
    def _names(self) -> Self:
        if "teacher" in self.students:
            raise ValueError('students.teacher: the name "teacher" is taken by the teacher: give the student another')
        return self

    @model_validator(mode="after")
    def _teacher_where_needed(self) -> Self:
        for name, student in self.students.items():
            if self.teacher is None and student.objective.soft is not None:
                raise ValueError(
                    f"students.{name}.objective.soft learns from a teacher, and teacher is null: name a teacher, or set objective.soft to null"
                )
        return self

    @model_validator(mode="after")
    def _lamb_without_zero(self) -> Self:
        for name, student in self.students.items():
            if self.train.zero_stage and "lamb" in student.optimizer.name.lower():
                raise ValueError(
                    f"students.{name}.optimizer: LAMB needs the norm of whole layers and train.zero_stage {self.train.zero_stage} hands it flat "
                    "shards, which makes its trust ratio silently wrong: use zero_stage: 0, or AdamW"
                )
        return self
