"""Draws panels and bars as inline SVG whose colours follow the page, light or dark.

matplotlib draws in placeholder colours, which become CSS variables; texts stay texts, in the font
of the page. Names are never read as mathematical formulas.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from distill.errors import printable
from distill.report.curves import NUM_COLOURS, Panel, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In CSS pixels at the natural size of a figure. Below a width of 400 the page has one column.
_WIDTH, _HEIGHT = 360, 225
_FONT_SIZE = 11
_LINE_WIDTH = 1.6
_POINTS_PER_INCH = 72  # of matplotlib's SVG: a point becomes a pixel
_INK, _MUTED, _LINE, _GAIN, _LOSS = "#010203", "#010204", "#010205", "#010206", "#010207"
_SERIES = tuple(f"#0a0b{index:02x}" for index in range(NUM_COLOURS))
_VARIABLES = {
    _INK: "currentColor",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
    _GAIN: "var(--gain)",
    _LOSS: "var(--loss)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(_SERIES)},
}
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2.5), (1.5, 2), (7, 2, 1.5, 2))
"""The pattern of each dash of a Style, in pixels."""

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")


def draw_panel(panel: Panel) -> Markup:
    """Return the curves of a panel as SVG."""
    with _figure(_HEIGHT) as (figure, axes):
        plot_curves(axes, panel, _colour, _LINE)
        return _svg(figure, _slug(panel.title), _described(panel))


def plot_curves(
    axes: "Axes", panel: Panel, colour_of: Callable[[Style], str], line_colour: str
) -> None:
    """Draw the curves of a panel.

    Args:
        colour_of: the colour of a curve for its style.
        line_colour: of the grid and of the marks where stages begin.
    """
    for x in panel.marks:
        axes.axvline(x, color=line_colour, linewidth=1)
    for curve in panel.curves:
        alone = len(curve.xs) == 1
        axes.plot(
            curve.xs,
            curve.ys,
            color=colour_of(curve.style),
            linewidth=_LINE_WIDTH,
            linestyle=(0, _in_line_widths(DASHES[curve.style.dash])) if curve.style.dash else "-",
            marker="o" if alone else "",
            markersize=4,
            label=printable(curve.label),
        )
    if panel.log:
        _logarithmic(axes)
    axes.set_xlabel(panel.x_label)
    axes.grid(True, axis="y", color=line_colour, linewidth=0.8)
    _thousands(axes, max(x for curve in panel.curves for x in curve.xs))


def draw_gains(title: str, gains: Sequence[tuple[str, float]]) -> Markup:
    """Return a horizontal bar for each (name, gain in points), the first on top, as SVG."""
    with _figure(40 + 19 * len(gains)) as (figure, axes):
        values = [gain for _, gain in gains]
        rows = range(len(gains))
        axes.barh(rows, values, color=[_GAIN if v >= 0 else _LOSS for v in values], height=0.7)
        names = [_short(printable(name)) for name, _ in gains]
        axes.set_yticks(rows, names, parse_math=False)
        axes.invert_yaxis()
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.grid(True, axis="x", color=_LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel("points of top-1")
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.05, y=0.02)
        if not any(values):
            axes.set_xlim(-1, 1)  # the numbers of a range around zero would touch each other
        words = "; ".join(f"{printable(name)} {gain:+.1f}" for name, gain in gains)
        return _svg(figure, _slug(title), f"{printable(title)}: {words}")


def dash_array(style: Style) -> str:
    """Return the dashes of a style for the attribute stroke-dasharray."""
    return " ".join(f"{length:g}" for length in DASHES[style.dash]) or "none"


def css_colour(style: Style) -> str:
    """Return the colour of a style as a value of CSS."""
    return _VARIABLES[_colour(style)]


def _colour(style: Style) -> str:
    return _MUTED if style.colour is None else _SERIES[style.colour]


def _in_line_widths(dashes: Sequence[float]) -> tuple[float, ...]:
    return tuple(length / _LINE_WIDTH for length in dashes)  # matplotlib multiplies by it


@contextmanager
def _figure(height: float) -> "Iterator[tuple[Figure, Axes]]":
    """Yield a figure of our style and its axes. pyplot, which keeps figures, is not used."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "font.size": _FONT_SIZE,
        "axes.edgecolor": _MUTED,
        "axes.labelcolor": _MUTED,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.useoffset": False,
        "axes.unicode_minus": True,
        "text.color": _INK,
        "xtick.color": _MUTED,
        "ytick.color": _MUTED,
        "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Texts stay texts, so that a glyph which matplotlib's font lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        size = (_WIDTH / _POINTS_PER_INCH, height / _POINTS_PER_INCH)
        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.add_subplot()


def _logarithmic(axes: "Axes") -> None:
    """Label a logarithmic axis with plain numbers: 1, 2, 5, 10."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high / low < 300 else (1,)  # of many decades only the powers of ten
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def _thousands(axes: "Axes", largest: float) -> None:
    """Label large steps as 10k or 5M, and leave few ticks, so that labels do not touch."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    unit, suffix = (1e6, "M") if largest >= 2e6 else (1e3, "k") if largest >= 1e4 else (1, "")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / unit:g}{suffix if x else ''}"))


def _svg(figure: "Figure", salt: str, description: str) -> Markup:
    """Return a figure as an element for HTML.

    Args:
        salt: makes the ids of this figure differ from those of others in the page.
    """
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    for prefix, namespace in (("", _SVG), ("xlink", _XLINK)):
        ElementTree.register_namespace(prefix, namespace)
    root = ElementTree.fromstring(buffer.getvalue())
    text = ElementTree.tostring(root, encoding="unicode")
    referenced = set(re.findall(r"#(\w+)\b", text)) - {c.removeprefix("#") for c in _VARIABLES}
    for element in list(root.iter()):
        for child in list(element):
            # The style sheet of an inline SVG would apply to the whole page.
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                element.remove(child)
        _clean(element.attrib, referenced)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", description)
    text = ElementTree.tostring(root, encoding="unicode")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return Markup(text)  # ElementTree has escaped names


def _clean(attributes: dict[str, str], referenced: set[str]) -> None:
    """Leave out ids that nothing names, matplotlib's fonts, and digits that nobody sees."""
    if attributes.get("id") not in referenced:
        attributes.pop("id", None)
    for name, value in attributes.items():
        if name == "style":
            value = re.sub(r"font: ([\d.]+)px [^;]*", r"font-size: \1px", value)
        if name in ("d", "style", "transform", "x", "y", "x1", "x2", "y1", "y2", "viewBox"):
            value = _LONG_NUMBER.sub(lambda found: f"{float(found[0]):.2f}", value)
        attributes[name] = value


def _described(panel: Panel) -> str:
    """Return the last value of each curve, for those who do not see the figure."""
    ends = "; ".join(f"{printable(c.label)} ends at {c.ys[-1]:.4g}" for c in panel.curves)
    unit = f", {panel.unit}," if panel.unit else ""
    return f"{panel.title}{unit} over {panel.x_label}: {ends}"


def _slug(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower())


def _short(name: str, length: int = 18) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
