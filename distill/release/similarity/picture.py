"""The heat maps of `distill similarity`, in the layout of the paper's Figure 2: layer indices on
both axes, square cells, pairs of models side by side.
"""

import io
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from distill.errors import printable
from distill.models.layers import Layer
from distill.release.similarity.result import Pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

SOFTWARE = "distill similarity"
"""What the pictures name as their program."""
_DOTS_PER_INCH = 200
_FONT_SIZE = 9
# Inches of a panel: its longer side is the first, unless its shorter side would then be below the
# second; and no side is longer than the third.
_LONG, _SHORT, _LONGEST = 2.6, 1.5, 8.0
_MOST_TICKS = 12
_LETTERS_PER_INCH, _TICKS_PER_INCH = 14, 4


def draw(pairs: Sequence[Pair]) -> dict[str, bytes]:
    """Return the heat maps of all pairs side by side, as "png" and "svg"."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = len(pairs[0].a.layers)
    columns = [len(pair.b.layers) for pair in pairs]
    cell = _cell_inches(rows, max(columns))
    settings: dict[Any, Any] = {
        "font.size": _FONT_SIZE,
        "svg.fonttype": "none",
        "svg.hashsalt": SOFTWARE,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        width = sum(columns) * cell + 0.7 * len(pairs) + 0.9
        figure = Figure(figsize=(width, rows * cell + 0.9), layout="constrained")
        panels = figure.subplots(1, len(pairs), squeeze=False, width_ratios=columns)[0]
        for number, (axes, pair) in enumerate(zip(panels, pairs, strict=True)):
            image = _draw_pair(axes, pair, cell)
            if number == 0:
                axes.set_ylabel(_fitting(pair.a.label, rows * cell), parse_math=False)
            else:
                axes.tick_params(labelleft=False)
        bar = figure.colorbar(image, ax=list(panels), label="CKA", ticks=[0, 0.25, 0.5, 0.75, 1])
        bar.outline.set_visible(False)
        files = {}
        for kind, metadata in (("png", {"Software": SOFTWARE}), ("svg", {"Creator": SOFTWARE})):
            buffer = io.BytesIO()
            date = {"Date": None} if kind == "svg" else {}
            figure.savefig(
                buffer,
                format=kind,
                dpi=_DOTS_PER_INCH,
                bbox_inches="tight",
                metadata={**metadata, **date},
            )
            files[kind] = buffer.getvalue()
    return files


def _cell_inches(rows: int, columns: int) -> float:
    """Return the side of a cell, so that the largest panel is neither too small nor too large."""
    longer, shorter = max(rows, columns), min(rows, columns)
    return min(max(_LONG / longer, _SHORT / shorter), _LONGEST / longer)


def _draw_pair(axes: "Axes", pair: Pair, cell: float) -> "AxesImage":
    import numpy as np

    values = np.array([[math.nan if value is None else value for value in row] for row in pair.cka])
    # What shows where a cell has no value: grey with lines, which also differ from all colours when
    # printed in grey.
    axes.patch.set(facecolor="0.85", edgecolor="0.6", hatch="////")
    image = axes.imshow(
        np.ma.masked_invalid(values),
        cmap="viridis",
        vmin=0,
        vmax=1,
        origin="lower",
        aspect="equal",
        interpolation="none",
    )
    axes.set_xticks(*_ticks(pair.b.layers, cell))
    axes.set_yticks(*_ticks(pair.a.layers, cell))
    axes.set_xlabel(_fitting(pair.b.label, len(pair.b.layers) * cell), parse_math=False)
    axes.tick_params(length=2)
    axes.spines[:].set_visible(False)
    return image


def _fitting(label: str, inches: float) -> str:
    """Return a label that is about as long as a side of a panel: the end of a path, the start of a
    name.
    """
    text, length = printable(label), max(16, int(inches * _LETTERS_PER_INCH))
    if len(text) <= length:
        return text
    return f"…{text[1 - length :]}" if "/" in text else f"{text[: length - 1]}…"


def _ticks(layers: Sequence[Layer], cell: float) -> tuple[list[int], list[str]]:
    """Return places and labels of ticks: every layer, or every second, fifth, tenth, ..."""
    most = min(_MOST_TICKS, max(1, int(len(layers) * cell * _TICKS_PER_INCH)))
    steps = (size * 10**power for power in range(10) for size in (1, 2, 5))
    step = next(step for step in steps if len(layers) <= most * step)
    places = [place for place, layer in enumerate(layers) if place % step == 0]
    return places, [str(layers[place].index) for place in places]
