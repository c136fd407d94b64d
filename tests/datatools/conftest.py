"""A folder of small images of three classes, of several sizes and formats, and its shards."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cutting import cut
from PIL import Image

from distill.data.sources import Source
from distill.datatools.named import open_named


def picture(seed: int, size: tuple[int, int], kind: str, mode: str = "RGB") -> bytes:
    """An image of `size` (width, height), smooth enough to compress."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8))
    buffer = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., bytes]:
    return picture


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images in 3 classes; 10 of them GIF (which shards do not hold), some grey, some large."""
    root = tmp_path_factory.mktemp("photos") / "train"
    for i in range(60):
        kind = ("JPEG", "PNG", "WEBP", "JPEG", "GIF", "JPEG")[i % 6]
        size = (40 + i % 7, 30 + i % 5) if i % 4 else (90, 64)
        folder = root / ("cat", "dog", "eel")[i // 20]
        folder.mkdir(parents=True, exist_ok=True)
        mode = "L" if i % 6 == 3 else "RGB"
        (folder / f"{i:03d}.{kind.lower()}").write_bytes(picture(i, size, kind, mode))
    return root


@pytest.fixture(scope="session")
def source(photos: Path) -> Source:
    return open_named(str(photos)).source


@pytest.fixture(scope="session")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of one process, uninterrupted. Read only."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert cut(photos, out) is not None
    return out
