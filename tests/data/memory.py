"""A small source in memory, with broken records on request."""

import hashlib
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from distill.data.records import NO_SIZES


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


class MemorySource:
    """`count` PNG files of various sizes over 5 classes; those in `broken` are cut in half."""

    shards = ()
    shard_sizes = NO_SIZES

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        rng = np.random.default_rng(0)
        self.classes = ("a", "b", "c", "d", "e")
        self.labels = np.arange(count, dtype=np.int64) * 7 % 5
        self.records: list[bytes] = []
        for i in range(count):
            height, width = rng.integers(20, 40, 2)
            # smooth, so that crops differ by content and not by noise alone
            record = encode(
                np.array(
                    Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8)).resize(
                        (width, height), 2
                    )
                )
            )
            self.records.append(record[: len(record) // 2] if i in broken else record)

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> bytes:
        return self.records[index]

    def describe(self, index: int) -> str:
        return f"memory record {index}"

    def name(self, index: int) -> str:
        return f"{index}.png"

    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join(self.records)).hexdigest()

    def prefetch(self, shards: Sequence[int]) -> None:
        """Does nothing: there are no shards."""
