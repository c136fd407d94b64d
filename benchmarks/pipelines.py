"""How far the fast data pipeline is from the reference, and how fast its parts are: decoders, the
resize, each operation of a policy, and complete views. Prints the tables of docs/method.md.

A distance is the mean absolute difference of the 8-bit values from Pillow's, over all images; the
worst image and the largest difference of a pixel stand beside it. Times are processor milliseconds
of an image, medians over rounds in which the libraries take turns.

The photographs are the 20 ImageNet ones of PyPI's `foolbox`, or made-up ones without it: as files
for the decoders, and as JPEGs of 500x375 and 375x500 at quality 95 for everything else.

    python -m benchmarks.pipelines --threads 1
"""

import argparse
import io
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps
from timm.data import auto_augment as timm_policies

from benchmarks.shards import photographs
from benchmarks.timing import Stopwatch, common_arguments, finish, interleaved, median
from distill.data.augment import TrainTransform, sample_key
from distill.data.decode import decode
from distill.data.fast.jpeg import decode_pixels
from distill.data.fast.operations import apply
from distill.data.fast.plan import Operation, Resize
from distill.data.fast.view import FastTransform, resized
from distill.rng import seeded

SIZE = 224
FILL = (124, 116, 104)
PILLOW: dict[Resize, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
VALUES: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("auto_contrast", ()),
    ("equalize", ()),
    ("invert", ()),
    ("posterize", (3,)),
    ("solarize", (90,)),
    ("solarize_add", (77,)),
    ("brightness", (1.63,)),
    ("contrast", (0.37,)),
    ("color", (1.63,)),
    ("desaturate", (0.8,)),
    ("sharpness", (1.63,)),
    ("gaussian_blur", (0.4,)),
    ("gaussian_blur", (1.7,)),
)
GEOMETRIC = (
    ("rotate", 21.0),
    ("shear_x", -0.21),
    ("shear_y", 0.17),
    ("translate_x_rel", 0.3123),
    ("translate_y_rel", -0.281),
)
VIEWS: dict[str, dict[str, Any]] = {
    "crop and flip": {},
    "rand-m7-mstd0.5-inc1 (A2)": {"auto_augment": "rand-m7-mstd0.5-inc1"},
    "rand-m9-n2-p1.0-inc1": {"auto_augment": "rand-m9-n2-p1.0-inc1"},
    "v0": {"auto_augment": "v0"},
    "3a": {"auto_augment": "3a"},
}
KEYS = 10  # views of an image


def operations() -> list[Operation]:
    """Each operation of timm's policies with typical arguments."""
    return [Operation(*each) for each in VALUES] + [
        Operation(name, (argument,), resample, FILL)
        for name, argument in GEOMETRIC
        for resample in PILLOW
    ]


def title(operation: Operation) -> str:
    """The row of an operation."""
    arguments = ", ".join(f"{each:g}" for each in operation.arguments)
    return " ".join(filter(None, (operation.name, arguments, operation.resample)))


def by_pillow(image: Image.Image, operation: Operation) -> Image.Image:
    """The operation in timm and Pillow."""
    options = {}
    if operation.resample is not None:
        options = {"fillcolor": operation.fill, "resample": PILLOW[operation.resample]}
    if operation.name == "posterize":
        return ImageOps.posterize(image, int(operation.arguments[0]))
    changed: Image.Image = getattr(timm_policies, operation.name)(
        image, *operation.arguments, **options
    )
    return changed


def distance(pairs: Iterable[tuple[Any, Any]]) -> tuple[float, float, int]:
    """(mean, worst image, largest of a pixel) absolute difference of pairs of images."""
    differences = [np.abs(np.asarray(a).astype(int) - np.asarray(b)) for a, b in pairs]
    means = [float(each.mean()) for each in differences]
    return float(np.mean(means)), max(means), max(int(each.max()) for each in differences)


def crops(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A crop of each image, from a quarter of its sides to all of them."""
    shares = np.linspace(0.25, 1, len(images))
    return [
        image[: int(image.shape[0] * share), : int(image.shape[1] * share)]
        for image, share in zip(images, shares, strict=True)
    ]


class Table:
    """Times contestants on the same images, and prints a row."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._seconds_of = Stopwatch(torch.device("cpu"), "cpu")
        self.rows: dict[str, Any] = {}

    def milliseconds(
        self, contestants: Mapping[str, Callable[[Any], Any]], inputs: Mapping[str, Sequence[Any]]
    ) -> dict[str, float]:
        """Median over rounds for each contestant, of an image."""

        def once(name: str) -> float:
            def act() -> None:
                for each in inputs[name]:
                    contestants[name](each)

            return self._seconds_of(act)

        seconds = interleaved({name: partial(once, name) for name in contestants}, self._rounds)
        return {
            name: median(each).median * 1e3 / len(inputs[name]) for name, each in seconds.items()
        }

    def row(self, name: str, found: tuple[float, float, int] | None, ms: dict[str, float]) -> None:
        cells = [] if found is None else [f"{found[0]:.4f}", f"{found[1]:.4f}", f"{found[2]}"]
        print(" | ".join(["", name, *cells, *(f"{each:.3f}" for each in ms.values()), ""]).strip())
        self.rows[name] = {"distance": found, "ms": ms}


def measure_decoders(table: Table, files: Mapping[str, Sequence[bytes]]) -> None:
    """Decoders on ordinary JPEGs; all must give Pillow's pixels."""
    decoders: dict[str, Callable[[bytes], np.ndarray]] = {
        "Pillow": lambda record: np.asarray(decode(record)),
        "simplejpeg": decode_pixels,
        "torchvision": lambda record: (
            torchvision.io.decode_jpeg(
                torch.frombuffer(bytearray(record), dtype=torch.uint8),
                mode=torchvision.io.ImageReadMode.RGB,
            )
            .permute(1, 2, 0)
            .numpy()
        ),
        "OpenCV": lambda record: np.asarray(
            cv2.imdecode(
                np.frombuffer(record, np.uint8),
                cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION,
            )
        ),
    }
    print("\n| JPEGs | " + " | ".join(decoders) + " |\n|---|" + "---:|" * len(decoders))
    for title, records in files.items():
        for decoder in decoders.values():
            assert distance((decoder(each), decode(each)) for each in records)[2] == 0
        table.row(title, None, table.milliseconds(decoders, dict.fromkeys(decoders, records)))


HEAD = "| mean | worst image | largest | Pillow, ms | fast, ms |\n|---|---:|---:|---:|---:|---:|"


def measure_resize(table: Table, images: Sequence[np.ndarray]) -> None:
    print(f"\n| resize to {SIZE} {HEAD}")
    cut = crops(images)
    pillow = [Image.fromarray(each) for each in cut]
    for mode, resampling in PILLOW.items():
        both: dict[str, Callable[[Any], Any]] = {
            "pillow": partial(Image.Image.resize, size=(SIZE, SIZE), resample=resampling),
            "fast": partial(resized, height=SIZE, width=SIZE, mode=mode),
        }
        pairs = ((both["fast"](a), both["pillow"](b)) for a, b in zip(cut, pillow, strict=True))
        found = distance(pairs)
        table.row(mode, found, table.milliseconds(both, {"pillow": pillow, "fast": cut}))


def measure_operations(table: Table, images: Sequence[np.ndarray]) -> None:
    print(f"\n| operation {HEAD}")
    squares = [resized(image, SIZE, SIZE, "bicubic") for image in images]
    pillow = [Image.fromarray(each) for each in squares]
    for operation in operations():
        both: dict[str, Callable[[Any], Any]] = {
            "pillow": partial(by_pillow, operation=operation),
            "fast": partial(apply, operation=operation),
        }
        pairs = ((both["fast"](a), both["pillow"](b)) for a, b in zip(squares, pillow, strict=True))
        found = distance(pairs)
        table.row(
            title(operation), found, table.milliseconds(both, {"pillow": pillow, "fast": squares})
        )


def measure_views(table: Table, records: Sequence[bytes]) -> None:
    """From JPEG bytes to the view, with the same keys."""
    print(f"\n| JPEG to view of {SIZE} {HEAD}")
    keyed = [(i, record, key) for key in range(KEYS) for i, record in enumerate(records)]
    for name, settings in VIEWS.items():
        transforms = {
            "reference": TrainTransform(image_size=SIZE, **settings),
            "fast": FastTransform(image_size=SIZE, **settings),
        }

        def view(given: tuple[int, bytes, int], transform: Any) -> np.ndarray:
            index, record, key = given
            with seeded(sample_key(0, key, index, 0)):
                found: np.ndarray = transform(transform.decode(record))
            return found

        both = {which: partial(view, transform=each) for which, each in transforms.items()}
        found = distance((both["fast"](each), both["reference"](each)) for each in keyed)
        table.row(name, found, table.milliseconds(both, dict.fromkeys(both, keyed[: len(records)])))


def jpeg(image: Image.Image, number: int) -> bytes:
    buffer = io.BytesIO()
    size = (500, 375) if number % 2 else (375, 500)
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common_arguments(parser, rounds=9)
    settings = parser.parse_args(arguments)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    files, originals, made_of = photographs()
    records = [jpeg(image, number) for number, image in enumerate(originals)]
    print(made_of)
    table = Table(settings.rounds)
    of_size = {"500x375": records}
    measure_decoders(table, {"as they are": files, **of_size} if files else of_size)
    images = [decode_pixels(record) for record in records]
    measure_resize(table, images)
    measure_operations(table, images)
    measure_views(table, records)
    print()
    finish("pipelines", settings, torch.device("cpu"), {"images": made_of, "rows": table.rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
