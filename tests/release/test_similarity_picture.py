"""The heat maps of `distill similarity`: readable at any number of layers, whatever a name has."""

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from distill.models.layers import Layer
from distill.release.similarity.picture import draw
from distill.release.similarity.result import ComparedModel, Pair


def model(label: str, num_layers: int) -> ComparedModel:
    layers = tuple(Layer(index, f"blocks.{index}", (4,)) for index in range(num_layers))
    return ComparedModel(label, layers, {})


def pair(rows: int, columns: int, a: str = "resnet", b: str = "vit") -> Pair:
    cka = [[(i + j) / (rows + columns) for j in range(columns)] for i in range(rows)]
    return Pair(model(a, rows), model(b, columns), cka)


def texts(svg: bytes) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(each.itertext()).strip() for each in root.iter() if each.tag.endswith("text")]


@pytest.mark.parametrize("count", [1, 2, 12, 13, 49, 300])
def test_ticks_are_layer_indices_and_few_enough_to_read(count: int) -> None:
    files = draw([pair(count, count)])
    ticks = [int(text) for text in texts(files["svg"]) if re.fullmatch(r"\d+", text)]
    columns, rows = ticks[: len(ticks) // 2], ticks[len(ticks) // 2 :]
    assert columns == rows
    assert 1 <= len(columns) <= 12
    steps = set(np.diff(columns).tolist())
    assert columns[0] == 0
    assert len(steps) <= 1
    assert steps <= {1, 2, 5, 10, 20, 25, 50}
    assert max(columns) + max(steps, default=1) >= count
    assert len(files["svg"]) < 150_000


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (5, 24), (100, 10)])
def test_cells_are_square_and_the_first_layers_are_at_the_lower_left(
    rows: int, columns: int
) -> None:
    """A cell's size is that of the image in the SVG over its number of cells."""
    found = pair(rows, columns)
    svg = draw([found])["svg"].decode()
    (width, height), *_ = re.findall(r'transform="matrix\(([\d.]+) 0 0 -([\d.]+) ', svg)
    assert float(width) == pytest.approx(float(height), rel=1e-3)
    assert f'width="{columns}" height="{rows}"' in svg
    with Image.open(io.BytesIO(draw([found])["png"])) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    dark = np.argwhere(abs(pixels - np.array([68, 1, 84])).sum(2) < 6)  # viridis at 0
    assert len(dark)
    heat = dark[dark[:, 1] < pixels.shape[1] * 0.7].mean(0)
    assert heat[0] > pixels.shape[0] / 2, "the first layers are at the bottom"


def test_pairs_are_side_by_side_with_one_bar_and_their_names() -> None:
    alone, both = draw([pair(8, 8)]), draw([pair(8, 8), pair(8, 12, b="beit")])
    assert texts(both["svg"]).count("CKA") == 1
    assert {"resnet", "vit", "beit", "0.00", "1.00"} <= {*texts(both["svg"])}
    assert texts(both["svg"]).count("resnet") == 1
    sizes = [Image.open(io.BytesIO(files["png"])).size for files in (alone, both)]
    assert sizes[1][0] > 1.5 * sizes[0][0]


def test_names_are_shown_as_they_are() -> None:
    """Neither formulas nor control characters nor markup; a long one keeps its end."""
    name = "$x^2$ <b>&\x1b[31m"
    path, timm_name = "/runs/" + "a" * 90 + "/kd", "beitv2_large_patch16_224.in1k_ft_in22k_in1k"
    shown = texts(draw([pair(8, 8, name, path), pair(8, 8, name, timm_name)])["svg"])
    assert "$x^2$ <b>&\\x1b[31m" in shown
    (long,) = (text for text in shown if text.endswith("/kd"))
    assert long.startswith("…a")
    assert len(long) < 50
    (cut,) = (text for text in shown if text.startswith("beitv2_large_patch16_224"))
    assert cut.endswith("…")


def test_the_same_values_give_the_same_files() -> None:
    assert draw([pair(5, 6)]) == draw([pair(5, 6)])
