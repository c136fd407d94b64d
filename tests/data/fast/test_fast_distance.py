"""The distances of docs/method.md hold, on made-up photographs."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.loader import photograph
from benchmarks.pipelines import (
    PILLOW,
    SIZE,
    VIEWS,
    by_pillow,
    crops,
    distance,
    operations,
    title,
)
from distill.data.augment import TrainTransform
from distill.data.decode import decode
from distill.data.fast.jpeg import decode_pixels
from distill.data.fast.operations import apply
from distill.data.fast.view import FastTransform, resized
from distill.rng import seeded

PAGE = Path(__file__).resolve().parents[3] / "docs/method.md"
OPERATIONS = {title(each): each for each in operations()}


def held() -> dict[str, float]:
    """The last column of the page's tables of distances."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().split("## The data pipelines")[1].splitlines()
        if line.startswith("|")
    ]
    return {row[0]: float(row[-1]) for row in rows if len(row) == 7 and row[-1][0].isdigit()}


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    return [photograph(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def squares(photographs: list[Image.Image]) -> list[Image.Image]:
    return [each.resize((SIZE, SIZE), Image.Resampling.BICUBIC) for each in photographs]


def test_the_page_has_a_row_for_everything() -> None:
    others = {"decode", "resize bilinear", "resize bicubic"}
    assert set(held()) == {*OPERATIONS, *VIEWS, *others}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name: str, squares: list[Image.Image]) -> None:
    operation = OPERATIONS[name]
    pairs = [(apply(np.array(each), operation), by_pillow(each, operation)) for each in squares]
    assert distance(pairs)[0] <= held()[name]
    assert distance((each, done) for each, (_, done) in zip(squares, pairs, strict=True))[0] > 0.2


@pytest.mark.parametrize("mode", PILLOW)
def test_resize(mode: str, photographs: list[Image.Image]) -> None:
    cut = crops([np.array(each) for each in photographs])
    pairs = [
        (
            resized(each, SIZE, SIZE, mode),
            Image.fromarray(each).resize((SIZE, SIZE), PILLOW[mode]),
        )
        for each in cut
    ]
    assert distance(pairs)[0] <= held()[f"resize {mode}"]


@pytest.mark.parametrize("name", VIEWS)
def test_views(name: str, photographs: list[Image.Image]) -> None:
    settings = {"image_size": SIZE, **VIEWS[name]}
    reference, fast = TrainTransform(**settings), FastTransform(**settings)
    pairs = []
    for key in range(30):
        buffer = io.BytesIO()
        photographs[key % len(photographs)].save(buffer, "JPEG", quality=95)
        record = buffer.getvalue()
        with seeded(key):
            expected = reference(decode(record))
        with seeded(key):
            pairs.append((fast(decode_pixels(record)), expected))
    assert distance(pairs)[0] <= held()[name]


@pytest.mark.parametrize("value", [-300.0, -1.5, -0.7, -0.5, -0.2, 0.0, 0.3, 0.5, 1.0, 40.6, 500.0])
@pytest.mark.parametrize("name", ["translate_x_abs", "translate_y_abs"])
@pytest.mark.parametrize("resample", PILLOW)
def test_translations_uncover_the_pixels_that_pillow_uncovers(
    name: str, value: float, resample: str, squares: list[Image.Image]
) -> None:
    operation = next(iter(OPERATIONS.values()))._replace(
        name=name, arguments=(value,), resample=resample, fill=(255, 0, 255)
    )
    image = squares[0].crop((0, 0, 61, 44))
    found = apply(np.array(image), operation)
    assert distance([(found, by_pillow(image, operation))])[2] <= 1
