"""The `data` section of a recipe: which images, and how they are augmented, mixed and resized."""

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
    """A folder of images, with one folder for each class."""

    kind: Literal["image_folder"]
    """The kind of source."""
    path: str
    """The folder that contains the class folders, relative to `data.root`."""
    classes: str | None = None
    """The full class list, if the folders are only some of the classes: a text file with one class
    per line, or the name of a label set (imagenet-1k, imagenet-22k, ...). null: the folders are
    all classes.
    """


class TableSpec(Section):
    """Parquet or Arrow files, read with the `datasets` library."""

    kind: Literal["parquet", "arrow"]
    """The kind of source."""
    path: str
    """A file, a folder of files, or a glob pattern, relative to `data.root`."""
    split: str | None = None
    """The split to read, recognised by the names of the files; null: there is only one split."""
    image_column: str = "image"
    """The name of the column with the images."""
    label_column: str = "label"
    """The name of the column with the labels."""
    classes: str | None = None
    """The class list, as for `image_folder`; null: as stored in the data."""


class SavedDatasetSpec(Section):
    """A folder written by `save_to_disk` of a `datasets.Dataset` or a `DatasetDict`."""

    kind: Literal["saved"]
    """The kind of source."""
    path: str
    """The folder, relative to `data.root`."""
    split: str | None = None
    """The split of a saved `DatasetDict`; null: it has one split, or none."""
    image_column: str = "image"
    """The name of the column with the images."""
    label_column: str = "label"
    """The name of the column with the labels."""
    classes: str | None = None
    """The class list, as for `image_folder`; null: as stored in the data."""


class FashionMnistSpec(Section):
    """Fashion-MNIST: 28 x 28 grey images of clothes in ten classes."""

    kind: Literal["fashion_mnist"]
    """The kind of source."""
    split: Literal["train", "test"]
    """The split to read."""
    path: str | None = None
    """A folder with the full data set as IDX files, relative to `data.root`; null: the balanced
    subset of 6,000 training and 1,000 test images that comes with the package.
    """


class StreamSpec(Section):
    """Shards that contain many images each, downloaded when the run needs them: webdataset tar
    files or Parquet files.

    Sample order: in each epoch the shards are shuffled, joined and cut into `lanes` equal parts.
    Each global batch takes the same number of samples from every lane, shuffled within `block`
    samples. A resumed run may set `lanes` and `block` explicitly if the values are the same as
    before, and may read the same shards from another `path`. Tar files behind plain URLs are
    identified by their URL: if a file is replaced under the same URL, the run does not notice,
    unless there is a manifest.
    """

    kind: Literal["stream"]
    """The kind of source."""
    path: str
    """A folder written by `distill data shard`, a glob pattern, or a list in braces
    (train-{0000..0127}.tar), either local or at http(s)://, s3://, gs:// or any other address that
    fsspec opens; or a repository of the Hugging Face Hub, hf://datasets/OWNER/NAME.
    """
    split: str | None = None
    """The split to read, if `path` contains several; null: it contains one."""
    container: Literal["tar", "parquet"] | None = None
    """The format of the shards; null: recognised by the file names."""
    image: str | None = None
    """The column with the images in Parquet files (null: image), or the file extension of images
    in tar files (null: jpg, jpeg, png, webp).
    """
    label: str | None = None
    """The column with the labels in Parquet files (null: label); in tar files the file extension
    of labels (null: cls), or a key of the json member.
    """
    labelled: bool = True
    """Whether to read labels; false for images whose classes are not those of the teacher."""
    classes: str | None = None
    """The class list, as for `image_folder`; null: as stored in the data."""
    lanes: (
        Annotated[
            int, Field(ge=2, multiple_of=2), Within(2, 65536, "a lane contains at least one shard")
        ]
        | None
    ) = None
    """Number of shards that are read in parallel; null: 64, or the next smaller number that fits
    the batch size.
    """
    block: Count | None = None
    """Number of samples that are shuffled together within a lane; null: a quarter of the mean shard
    size, at least 256 and at most 4096. Use more if the samples were not shuffled before they
    were written to shards.
    """


class HoldOutSpec(Section):
    """Evaluation on a fixed part of each class of `data.train`, which is excluded from training.

    Each class gives round(fraction * class size) images, at least 1, but never all of them: a class
    with a single image is only used for training. The choice depends on the class name and the
    position in the class, not on `seed`: runs with different seeds are evaluated on the same
    images.
    """

    kind: Literal["holdout"]
    """The kind of source."""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The fraction of each class that is held out."""


SourceSpec = Annotated[
    ImageFolderSpec | TableSpec | SavedDatasetSpec | FashionMnistSpec | StreamSpec,
    Field(discriminator="kind"),
]
EvalSourceSpec = Annotated[
    ImageFolderSpec | TableSpec | SavedDatasetSpec | FashionMnistSpec | StreamSpec | HoldOutSpec,
    Field(discriminator="kind"),
]


class ShardsSpec(Section):
    """How shards are downloaded and cached. These settings do not change the result of a run."""

    cache: str | None = None
    """The cache folder, shared by all processes of a machine; null: distill-shards-USER in the
    temporary folder.
    """
    cache_gb: Positive = 100.0
    """Maximum size of the cache folder, in GB (10^9 bytes)."""
    retries: Annotated[
        int, Field(ge=0), Within(0, 100, "the waits grow, and a hundred take hours")
    ] = 5
    """How many times a failed request is retried, with growing waits."""
    timeout_s: Annotated[float, Field(gt=0), Within(1e-3, 1e5, "that is a day")] = 30.0
    """Seconds without any data after which a request has failed."""


class AugmentSpec(Section):
    """Augmentation of a training image, with the transforms of timm and torchvision, in this order:
    crop, flips, policy or colour jitter, random erasing.
    """

    crop: Literal["random_resized", "padded", "none"] = "random_resized"
    """The crop: `random_resized` has a random size and shape; `padded` pads the image and crops it
    at a random position, as usual for CIFAR.
    """
    scale: Range = (0.08, 1.0)
    """Smallest and largest fraction of the image area that a `random_resized` crop covers."""
    ratio: Range = (0.75, 4 / 3)
    """Smallest and largest ratio of width to height of a `random_resized` crop."""
    padding: Annotated[
        int, Field(ge=0), Within(0, 4096, "no classifier looks at larger images")
    ] = 4
    """Pixels that a `padded` crop adds on each side."""
    interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    """How images are resized; `random` chooses bilinear or bicubic for each image."""
    horizontal_flip: Probability = 0.5
    """Probability of a left-right flip."""
    vertical_flip: Probability = 0.0
    """Probability of an upside-down flip."""
    auto_augment: Annotated[str, AfterValidator(checked_policy)] | None = None
    """A policy of timm (rand-m7-mstd0.5-inc1, augmix-m3-w3, v0, original, 3a, ...), or cifar10;
    null: no policy.
    """
    color_jitter: Annotated[
        float, Field(ge=0), Within(0, 10, "colours are scaled by 1 plus or minus it")
    ] = 0.0
    """Strength of random changes of brightness, contrast and saturation, instead of a policy;
    0: off.
    """
    random_erasing: Probability = 0.0
    """Probability that a random rectangle of the image is replaced by noise."""
    repeats: Annotated[
        int, Field(ge=1), Within(1, 1024, "a batch cannot contain so many views of an image")
    ] = 1
    """Number of different views of each image in a global batch (repeated augmentation)."""


_Alpha = Annotated[
    float, Field(ge=0), Within(0, 1000, "Beta(1000, 1000) is one half to within a few percent")
]


class MixingSpec(Section):
    """Mixup and cutmix. Each sample is mixed with its neighbour in the batch."""

    mixup: _Alpha = 0.0
    """Alpha of the distribution Beta(alpha, alpha) of mixup; 0: off."""
    cutmix: _Alpha = 0.0
    """Alpha of the distribution Beta(alpha, alpha) of cutmix; 0: off."""
    probability: Probability = 1.0
    """Probability that a group of samples is mixed."""
    switch_probability: Probability = 0.5
    """Probability of cutmix instead of mixup, if both are on."""
    group_size: EvenBatch = 256
    """Number of samples in a group; a group shares one mixing ratio (256 in the released code)."""


CropMode = Literal["center", "squash", "border"]
Interpolation = Literal["bicubic", "bilinear", "nearest", "lanczos", "box", "hamming"]


Pipeline = Literal["reference", "fast"]


class EvalViewSpec(Section):
    """Preprocessing of an evaluation image, as in timm: the image is resized to image_size /
    `crop_fraction`, then its centre is cropped.
    """

    crop_fraction: Annotated[
        float, Field(gt=0, le=1), Within(0.05, 1, "the image would be resized to twenty times")
    ] = 0.95
    """Side of the centre crop, as a fraction of the resized image."""
    crop_mode: CropMode = "center"
    """center: resize the shorter side and crop the longer one. squash: resize both sides and ignore
    the aspect ratio. border: resize the longer side and pad the shorter one with the mean of the
    model.
    """
    interpolation: Interpolation = "bicubic"
    """How images are resized."""


class DataSpec(Section):
    """The images, and how they are preprocessed."""

    root: str = "."
    """The folder that the paths of `train` and `eval` are relative to."""
    train: SourceSpec
    """The training images."""
    eval: EvalSourceSpec | None = None
    """The evaluation images: any kind of source that `train` accepts, or a part of `train` that is
    held out (kind: holdout); null: no evaluation.
    """
    fraction: Fraction = 1.0
    """The fraction of the training images of each class that is used."""
    keep_classes: Literal["all", "shared", "unshared"] = "all"
    """Which samples are used: all; those whose class is also a class of the run (`shared`); or only
    the others (`unshared`). The last two need labels that are known before images are read.
    """
    distinct_epochs: Count | None = None
    """The number of epochs whose order, augmentation and mixing differ; later epochs repeat them in
    turn, so that stored targets of these epochs serve a longer run. null: all epochs differ.
    """
    image_size: Pixels = 224
    """Side of the square images that students get, in pixels."""
    pipeline: Pipeline = "reference"
    """How training images are decoded and augmented. reference: timm's transforms on Pillow images.
    fast: the same random decisions with faster libraries, and pixels that differ a little
    (docs/method.md); needs `pip install 'vanillakd[fast]'`.
    """
    augment: AugmentSpec = AugmentSpec()
    """Augmentation of training images."""
    mixing: MixingSpec = MixingSpec()
    """Mixup and cutmix of training images."""
    eval_view: EvalViewSpec = EvalViewSpec()
    """Preprocessing of evaluation images."""
    unreadable: Literal["error", "skip"] = "error"
    """What happens if an image cannot be read. error: the run ends. skip: it is counted; training
    uses the next image in its place, evaluation leaves it out.
    """
    num_workers: (
        Annotated[int, Field(ge=0), Within(0, 256, "no machine has so many cores for one process")]
        | None
    ) = None
    """Number of decoding processes for each training process; null: its share of the CPU cores of
    the machine, at most 16.
    """
    prefetch_batches: Annotated[int, Field(ge=1), Within(1, 1024, "they are kept in memory")] = 2
    """Number of micro-batches that each decoding process prepares in advance."""
    shards: ShardsSpec = ShardsSpec()
    """How the shards of a stream are downloaded and cached."""

    @model_validator(mode="after")
    def _padding_fits_the_crop(self) -> Self:
        if self.augment.crop == "padded" and self.augment.padding > self.image_size:
            raise ValueError(
                f"augment.padding {self.augment.padding} is more than image_size {self.image_size}:"
                " a crop might contain no pixel of the image"
            )
        return self

    @model_validator(mode="after")
    def _held_out_part_has_labels(self) -> Self:
        if isinstance(self.eval, HoldOutSpec) and isinstance(self.train, StreamSpec):
            raise ValueError(
                "eval: kind: holdout needs the label of every image of data.train before any is"
                " read, and a stream is read shard by shard: give data.eval a split or shards of"
                " its own, or read the images with kind: image_folder, parquet, arrow or saved"
            )
        return self
