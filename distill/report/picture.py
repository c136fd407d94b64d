"""The curves of a report as one PNG, for places that show pictures and no pages: a model card."""

import io
import warnings
from collections.abc import Sequence

from distill.report.curves import Panel, Style
from distill.report.drawing import plot_curves

SOFTWARE = "distill report"
"""What the PNG names as its program, so that a file of ours is known."""
_MOST = 4
_COLUMNS = 2
_INCHES = (5.0, 3.2)  # of a panel
_DOTS_PER_INCH = 120


def draw_picture(panels: Sequence[Panel]) -> bytes | None:
    """Return the first panels as a PNG on white; None without a panel."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shown = panels[:_MOST]
    if not shown:
        return None
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    with (
        rc_context({"axes.spines.top": False, "axes.spines.right": False}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        size = (_INCHES[0] * columns, _INCHES[1] * rows)
        figure = Figure(figsize=size, layout="constrained")
        for number, panel in enumerate(shown, 1):
            axes = figure.add_subplot(rows, columns, number)
            plot_curves(axes, panel, _colour, "0.85")
            axes.set_title(f"{panel.title}{f', {panel.unit}' if panel.unit else ''}")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        for text in figure.legend(
            handles, labels, loc="outside lower center", ncols=4, frameon=False
        ).get_texts():
            text.set_parse_math(False)  # names are never formulas
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": SOFTWARE})
    return buffer.getvalue()


def _colour(style: Style) -> str:
    return "0.45" if style.colour is None else f"C{style.colour}"
