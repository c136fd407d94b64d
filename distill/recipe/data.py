"""The part of a recipe that says which images, and how they are seen."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from distill.recipe.values import Count, NonNegative, Positive, Probability, Range, Section


class ImageFolder(Section):
    """One folder a class, images below it. `classes`, when the folders are only some of them: a text file, a class a line, or a label space by name
    (imagenet-1k, imagenet-22k, ...)."""

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


class Stream(Section):
    """Shards of many images, fetched as the run comes to them: webdataset tar files, or Parquet.

    `path`: a folder that `distill data shard` wrote, a glob, or names in braces (train-{0000..0127}.tar), local or under http(s)://, s3://,
    gs:// and whatever else fsspec opens; or a repository of the Hub, hf://datasets/OWNER/NAME.

    `container`: null tells it by the file names. `image`, `label`: columns of Parquet (null: image, label), or extensions of tar members
    (null: jpg, jpeg, png, webp; and cls, or a key of the json member). `labelled: false` reads no labels. Tar files behind plain URLs are known by
    their URL: what is replaced under the same one is not noticed unless a manifest says so.

    The order: the epoch's shuffled shards, end to end, are cut into `lanes` equal parts; each global batch takes as many from
    every lane, shuffled within `block` samples. Null lanes: 64, or the next number that the batch allows. Null block: a quarter of the mean
    shard, at least 256 and at most 4096; shards that were written unshuffled want a larger one. A continuation may say either, as long
    as the numbers come out the same, and may name another `path` with the same shards.
    """

    kind: Literal["stream"]
    path: str
    split: str | None = None
    container: Literal["tar", "parquet"] | None = None
    image: str | None = None
    label: str | None = None
    labelled: bool = True
    classes: str | None = None
    lanes: Annotated[int, Field(ge=2, multiple_of=2)] | None = None
    block: Count | None = None


class HoldOut(Section):
    """For evaluation: a fixed part of each class of `data.train`, which training never sees.

    Each class gives round(fraction * its size) images: at least 1, and never its last one, so that a
    class of a single image is only trained on. Which ones depends on the class name and the place in
    the class, not on `seed`: runs of different seeds are compared on the same images.
    """

    kind: Literal["holdout"]
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2


Source = Annotated[ImageFolder | Table | SavedDataset | FashionMnist | Stream, Field(discriminator="kind")]
EvalSource = Annotated[
    ImageFolder | Table | SavedDataset | FashionMnist | Stream | HoldOut, Field(discriminator="kind")
]


class Shards(Section):
    """How the shards of a stream come here; nothing of it shapes the result.

    `cache`: the folder that the processes of a machine share; null: distill-shards-USER in the temporary folder. It holds at most `cache_gb`
    (10^9 bytes). A request that fails is tried `retries` times more, after growing waits, and one is given up as stalled
    after `timeout_s` without a byte.
    """

    cache: str | None = None
    cache_gb: Positive = 100.0
    retries: Annotated[int, Field(ge=0)] = 5
    timeout_s: Positive = 30.0


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
    """`num_workers`: decoding processes of each training process; null takes its share of the machine's cores, at most 16.

    `keep_classes`: shared keeps the samples whose class the run's own classes have as well, unshared the others; both need labels
    that are known before any record is read.
    """

    root: str = "."
    train: Source
    eval: EvalSource | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    keep_classes: Literal["all", "shared", "unshared"] = "all"
    image_size: Annotated[int, Field(ge=8)] = 224
    augment: Augment = Augment()
    mixing: Mixing = Mixing()
    eval_view: EvalView = EvalView()
    unreadable: Literal["error", "skip"] = "error"
    num_workers: Annotated[int, Field(ge=0)] | None = None
    prefetch_batches: Count = 2
    shards: Shards = Shards()

    @model_validator(mode="after")
    def _labels_to_hold_out(self) -> Self:
        if isinstance(self.eval, HoldOut) and isinstance(self.train, Stream):
            raise ValueError(
                "eval: kind: holdout needs the label of every image of data.train before any is read, and a "
                "stream is read shard by shard: name a split or shards of its own, or read the images with "
                "kind: image_folder, parquet, arrow or saved"
            )
        return self
