"""The part of a recipe that says which images, and how they are seen."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from distill.recipe.policy import checked_policy
from distill.recipe.values import (
    Count,
    EvenBatch,
    Fraction,
    Pixels,
    Positive,
    Probability,
    Range,
    Section,
    Within,
)


class ImageFolderSpec(Section):
    """One folder a class, images below it."""

    kind: Literal["image_folder"]
    """The kind of source."""
    path: str
    """The folder that holds the class folders, below `data.root`."""
    classes: str | None = None
    """When the folders are only some of the classes: a text file, a class a line, or a label space
    by name (imagenet-1k, imagenet-22k, ...).
    """


class TableSpec(Section):
    """Parquet or Arrow files through `datasets`."""

    kind: Literal["parquet", "arrow"]
    """The kind of source."""
    path: str
    """A file, a folder of files, or a glob, below `data.root`."""
    split: str | None = None
    """Whose files count, told by their names; null where they are of one split."""
    image_column: str = "image"
    """The column of images."""
    label_column: str = "label"
    """The column of labels."""
    classes: str | None = None
    """The class list, as for `image_folder`; null takes it from the data."""


class SavedDatasetSpec(Section):
    """A folder written by `datasets.Dataset.save_to_disk`, or a split of a saved `DatasetDict`."""

    kind: Literal["saved"]
    """The kind of source."""
    path: str
    """The folder, below `data.root`."""
    split: str | None = None
    """The split of a saved `DatasetDict`."""
    image_column: str = "image"
    """The column of images."""
    label_column: str = "label"
    """The column of labels."""
    classes: str | None = None
    """The class list, as for `image_folder`; null takes it from the data."""


class FashionMnistSpec(Section):
    """Fashion-MNIST."""

    kind: Literal["fashion_mnist"]
    """The kind of source."""
    split: Literal["train", "test"]
    """Which of its two parts."""
    path: str | None = None
    """A folder with the whole set in IDX files, below `data.root`; null is the balanced subset of
    6,000 + 1,000 images that comes with the package.
    """


class StreamSpec(Section):
    """Shards of many images, fetched as the run comes to them: webdataset tar files, or Parquet.

    The order: the epoch's shuffled shards, end to end, are cut into `lanes` equal parts; each
    global batch takes as many from every lane, shuffled within `block` samples. A continuation may
    say either, as long as the numbers come out the same, and may name another `path` with the same
    shards. Tar files behind plain URLs are known by their URL: what is replaced under the same one
    is not noticed unless a manifest says so.
    """

    kind: Literal["stream"]
    """The kind of source."""
    path: str
    """A folder that `distill data shard` wrote, a glob, or names in braces
    (train-{0000..0127}.tar), local or under http(s)://, s3://, gs:// and whatever else fsspec
    opens; or a repository of the Hub, hf://datasets/OWNER/NAME.
    """
    split: str | None = None
    """The split, where `path` holds several."""
    container: Literal["tar", "parquet"] | None = None
    """The format of the shards; null tells it by the file names."""
    image: str | None = None
    """The column of images in Parquet (null: image), or the extension of images in a tar (null:
    jpg, jpeg, png, webp).
    """
    label: str | None = None
    """The column of labels in Parquet (null: label), or the extension of labels in a tar (null:
    cls), or a key of the json member.
    """
    labelled: bool = True
    """Whether labels are read; false for images of another label space than the teacher's."""
    classes: str | None = None
    """The class list, as for `image_folder`; null takes it from the data."""
    lanes: (
        Annotated[
            int, Field(ge=2, multiple_of=2), Within(2, 65536, "a lane holds at least one shard")
        ]
        | None
    ) = None
    """How many shards are read side by side; null: 64, or the next number that the batch allows."""
    block: Count | None = None
    """Samples that are shuffled together within a lane; null: a quarter of the mean shard, at least
    256 and at most 4096. Shards that were written unshuffled want more.
    """


class HoldOutSpec(Section):
    """For evaluation: a fixed part of each class of `data.train`, which training never sees.

    Each class gives round(fraction * its size) images: at least 1, and never its last one, so that
    a class of a single image is only trained on. Which ones depends on the class name and the place
    in the class, not on `seed`: runs of different seeds are compared on the same images.
    """

    kind: Literal["holdout"]
    """The kind of source."""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The part of each class that is held out."""


SourceSpec = Annotated[
    ImageFolderSpec | TableSpec | SavedDatasetSpec | FashionMnistSpec | StreamSpec,
    Field(discriminator="kind"),
]
EvalSourceSpec = Annotated[
    ImageFolderSpec | TableSpec | SavedDatasetSpec | FashionMnistSpec | StreamSpec | HoldOutSpec,
    Field(discriminator="kind"),
]


class ShardsSpec(Section):
    """How the shards of a stream come here; nothing of it shapes the result."""

    cache: str | None = None
    """The folder that the processes of a machine share; null: distill-shards-USER in the temporary
    folder.
    """
    cache_gb: Positive = 100.0
    """What that folder may hold, in units of 10^9 bytes."""
    retries: Annotated[
        int, Field(ge=0), Within(0, 100, "the waits grow, and a hundred take hours")
    ] = 5
    """How often a request that fails is tried again, after growing waits."""
    timeout_s: Annotated[float, Field(gt=0), Within(1e-3, 1e5, "that is a day")] = 30.0
    """Seconds without a byte after which a request is given up as stalled."""


class AugmentSpec(Section):
    """Training view of one image, through timm's and torchvision's transforms, in this order: crop,
    flips, policy or jitter, erasing.
    """

    crop: Literal["random_resized", "padded", "none"] = "random_resized"
    """The crop: of random size and shape; `padded` (of CIFAR: pad, then cut at a random place); or
    none.
    """
    scale: Range = (0.08, 1.0)
    """Fraction of the image that a `random_resized` crop covers, smallest and largest."""
    ratio: Range = (0.75, 4 / 3)
    """Width through height of a `random_resized` crop, smallest and largest."""
    padding: Annotated[
        int, Field(ge=0), Within(0, 4096, "no classifier looks at larger images")
    ] = 4
    """Pixels that a `padded` crop adds on each side."""
    interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    """How images are resized; `random` draws bilinear or bicubic for each."""
    horizontal_flip: Probability = 0.5
    """Probability of a mirror image."""
    vertical_flip: Probability = 0.0
    """Probability of an image upside down."""
    auto_augment: Annotated[str, AfterValidator(checked_policy)] | None = None
    """A policy of timm (rand-m7-mstd0.5-inc1, augmix-m3-w3, v0, original, 3a, ...), or cifar10;
    null is none.
    """
    color_jitter: Annotated[
        float, Field(ge=0), Within(0, 10, "colours are scaled by 1 plus or minus it")
    ] = 0.0
    """Strength of random brightness, contrast and saturation, instead of a policy; 0 is off."""
    random_erasing: Probability = 0.0
    """Probability that noise covers a random box."""
    repeats: Annotated[
        int, Field(ge=1), Within(1, 1024, "more views of an image than a batch has room for")
    ] = 1
    """Views of an image in one global batch (repeated augmentation)."""


_Alpha = Annotated[
    float, Field(ge=0), Within(0, 1000, "Beta(1000, 1000) is one half to within a few percent")
]


class MixingSpec(Section):
    """Mixup and cutmix inside pairs of neighbours."""

    mixup: _Alpha = 0.0
    """Alpha of mixup's Beta(alpha, alpha); 0 is off."""
    cutmix: _Alpha = 0.0
    """Alpha of cutmix's Beta(alpha, alpha); 0 is off."""
    probability: Probability = 1.0
    """Probability that a group is mixed at all."""
    switch_probability: Probability = 0.5
    """Probability of cutmix when both are on."""
    group_size: EvenBatch = 256
    """Samples of a global batch that share one lambda (released code: 256)."""


CropMode = Literal["center", "squash", "border"]
Interpolation = Literal["bicubic", "bilinear", "nearest", "lanczos", "box", "hamming"]


class EvalViewSpec(Section):
    """Evaluation view, timm's: images are resized to image_size / `crop_fraction`, then the centre
    is cut out.
    """

    crop_fraction: Annotated[
        float, Field(gt=0, le=1), Within(0.05, 1, "the image would be resized to twenty times")
    ] = 0.95
    """The centre crop as a share of the resized image."""
    crop_mode: CropMode = "center"
    """center resizes the shorter side and cuts what hangs over; squash resizes both sides and loses
    the aspect ratio; border resizes the longer side and pads with the model's mean.
    """
    interpolation: Interpolation = "bicubic"
    """How images are resized."""


class DataSpec(Section):
    """Which images, and how they are seen."""

    root: str = "."
    """The folder that the paths of `train` and `eval` start from."""
    train: SourceSpec
    """The training images."""
    eval: EvalSourceSpec | None = None
    """The evaluation images: of the kinds that `train` has, or held out from it; null evaluates
    nothing.
    """
    fraction: Fraction = 1.0
    """The part of each class's training images that is used."""
    keep_classes: Literal["all", "shared", "unshared"] = "all"
    """`shared` keeps the samples whose class the run's own classes have as well, `unshared` the
    others; both need labels that are known before any record is read.
    """
    image_size: Pixels = 224
    """Side in pixels of the square images that students see."""
    augment: AugmentSpec = AugmentSpec()
    """The training view of one image."""
    mixing: MixingSpec = MixingSpec()
    """What is mixed between images."""
    eval_view: EvalViewSpec = EvalViewSpec()
    """The evaluation view of one image."""
    unreadable: Literal["error", "skip"] = "error"
    """What an unreadable image does: end the run, or give its place to the next one in training and
    be left out in evaluation, counted.
    """
    num_workers: (
        Annotated[int, Field(ge=0), Within(0, 256, "no machine has so many cores for one process")]
        | None
    ) = None
    """Decoding processes of each training process; null takes its share of the machine's cores, at
    most 16.
    """
    prefetch_batches: Annotated[int, Field(ge=1), Within(1, 1024, "they are kept in memory")] = 2
    """Batches that are decoded ahead."""
    shards: ShardsSpec = ShardsSpec()
    """How the shards of a stream come here."""

    @model_validator(mode="after")
    def _padding_of_a_crop(self) -> Self:
        if self.augment.crop == "padded" and self.augment.padding > self.image_size:
            raise ValueError(
                f"augment.padding {self.augment.padding} is more than image_size {self.image_size}:"
                " a crop would hold no pixel of the image"
            )
        return self

    @model_validator(mode="after")
    def _labels_to_hold_out(self) -> Self:
        if isinstance(self.eval, HoldOutSpec) and isinstance(self.train, StreamSpec):
            raise ValueError(
                "eval: kind: holdout needs the label of every image of data.train before any is"
                " read, and a stream is read shard by shard: name a split or shards of its own, or"
                " read the images with kind: image_folder, parquet, arrow or saved"
            )
        return self
