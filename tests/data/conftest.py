"""A small source in memory, with broken records on request."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


class MemorySource:
    """`count` PNG files of various sizes over 5 classes; those in `broken` are cut in half."""

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        rng = np.random.default_rng(0)
        self.classes = ("a", "b", "c", "d", "e")
        self.labels = np.arange(count, dtype=np.int64) * 7 % 5
        self.records = []
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


@pytest.fixture(scope="session")
def memory_source() -> Callable[..., MemorySource]:
    return MemorySource


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    return encode
