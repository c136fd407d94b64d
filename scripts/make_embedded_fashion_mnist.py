"""Build distill/data/embedded/fashion_mnist.parquet from Fashion-MNIST's IDX files: 600 train and
100 test images a class.

    python scripts/make_embedded_fashion_mnist.py [/usr/share/datasets/fashion-mnist]

The choice is by hash of the image's number, so it never changes. Debian: apt install
dataset-fashion-mnist.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from distill.data.fashion import CLASSES, EMBEDDED, open_fashion_mnist
from distill.rng import hash64, hash64_array

PER_CLASS = {"train": 600, "test": 100}

# What `datasets` needs to see an Image and a ClassLabel column when someone opens the file with it.
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": list(CLASSES), "_type": "ClassLabel"},
    "split": {"dtype": "string", "_type": "Value"},
}


def choose(labels: np.ndarray, per_class: int, split: str) -> np.ndarray:
    """[K * per_class] indices, ascending: in each class the images with the smallest hashes."""
    hashes = hash64_array(hash64("embedded fashion-mnist", split), np.arange(len(labels)))
    picks = [
        np.flatnonzero(labels == c)[np.argsort(hashes[labels == c])[:per_class]]
        for c in range(len(CLASSES))
    ]
    return np.sort(np.concatenate(picks))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main(folder: Path) -> None:
    rows: dict[str, list[object]] = {"image": [], "label": [], "split": []}
    for split, per_class in PER_CLASS.items():
        source = open_fashion_mnist(split, folder)
        for index in choose(source.labels, per_class, split):
            pixels = source.read(int(index))
            assert isinstance(pixels, np.ndarray)
            rows["image"].append({"bytes": png(pixels), "path": f"{split}-{index:05d}.png"})
            rows["label"].append(int(source.labels[index]))
            rows["split"].append(split)
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
            ("split", pa.string()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
    )
    EMBEDDED.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(rows, schema=schema), EMBEDDED, compression="zstd", row_group_size=1000)
    print(f"{EMBEDDED}: {len(rows['label'])} images, {EMBEDDED.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/datasets/fashion-mnist"))
