"""A report as text: one HTML file that needs nothing else, and its Markdown twin.

Names of classes, files and students come from outside: in HTML jinja2 escapes each expression, in
Markdown `markdown_text` does.
"""

import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from distill.errors import printable
from distill.report import words
from distill.report.content import Content, RunContent, StudentDetail
from distill.report.curves import legend
from distill.report.drawing import css_colour, dash_array, draw_gains, draw_panel
from distill.report.results import ResultRow

_TEMPLATES = Path(__file__).parent / "templates"
# What Markdown reads as more than text: within a line, at its start, and in links.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|&~$@]|(?<![^\W_])_|_(?![^\W_])|^[-+#=]|:(?=//)|(?<=www)\.")
_NUMBERED = re.compile(r"^(\d{1,9})([.)])(?=\s|$)")


@dataclass(frozen=True)
class Tile:
    """One of the figures on top of a report."""

    name: str
    value: str
    note: str = ""


def render_html(content: Content) -> str:
    """Return the report as one HTML page without references to anything outside."""
    drawn = [
        {"group": each.group, "title": each.title, "unit": each.unit, "svg": draw_panel(each)}
        for each in content.panels
    ]
    groups = [
        {"name": name, "panels": list(members)}
        for name, members in groupby(drawn, key=lambda each: each["group"])
    ]
    styles = legend(content.panels)
    values = {
        **_shared(content),
        "css": Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        "groups": groups,
        "legend": [
            {"label": label, "colour": css_colour(style), "dashes": dash_array(style)}
            for label, style in styles.items()
        ],
        "tiles": _tiles(content.runs[0]) if len(content.runs) == 1 else [],
        "bars": {each.name: _bars(each) for each in content.details if each.gains},
    }
    return _rendered("report.html.jinja", values, html=True)


def render_markdown(content: Content) -> str:
    """Return the tables of the report as Markdown; of curves the first and last values."""
    text = _rendered("report.md.jinja", _shared(content), html=False)
    return re.sub(r"\n{3,}", "\n\n", text)


def markdown_text(text: str) -> str:
    """Return a text that Markdown shows as it is, in one line."""
    return _NUMBERED.sub(r"\1\\\2", _MARKDOWN.sub(r"\\\g<0>", printable(text)))


def fenced(text: str) -> Markup:
    """Return a text as a block of code of Markdown, whatever is in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    lines = "\n".join(map(printable, text.rstrip().split("\n")))
    return Markup(f"{fence}yaml\n{lines}\n{fence}")


def _shared(content: Content) -> dict[str, Any]:
    rows = [row for run in content.runs for row in run.rows]
    studies = [
        # Its names are escaped.
        {**vars(study), "markdown": Markup(study.markdown)}
        for study in content.studies
    ]
    return {
        "studies": studies,
        "page": content,
        "one_metric": len({run.metric.name for run in content.runs}) == 1,
        "with_teacher": any(_compared(row) for row in rows),
    }


def _compared(row: ResultRow) -> bool:
    return row.scores.agreement is not None or row.scores.teacher_kl is not None


def _rendered(template: str, values: dict[str, Any], *, html: bool) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    def shown(value: Any) -> Any:
        """What an expression prints: names with their control characters visible."""
        if isinstance(value, Markup) or not isinstance(value, str):
            return value
        if html:
            return "\n".join(map(printable, value.split("\n")))
        return markdown_text(value)

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
    )
    environment.filters |= {
        "figure": words.figure,
        "millions": words.millions,
        "sparkline": words.sparkline,
        "fenced": fenced,
    }
    return environment.get_template(template).render(values)


def _bars(student: StudentDetail) -> Markup:
    gains = [(each.name, each.gain) for each in student.gains_shown]
    return draw_gains(f"{student.name} over {student.alone}", gains)


def _tiles(run: RunContent) -> list[Tile]:
    """Return the figures that most readers look for."""
    by_name = {row.name: row for row in run.rows}
    metric, tiles = run.metric, []
    unit = "%" if metric.best_label.endswith("%") else ""
    if run.best is not None:
        best = by_name[run.best]
        value = words.figure(best.best, metric.pattern)
        name = metric.best_label.removesuffix(" %")
        tiles.append(Tile(f"{name}: {run.best}", f"{value} {unit}".strip(), best.best_of))
    tiles += [
        Tile(f"{row.name}, top-1", f"{row.scores.top1:.2f} %", row.model)
        for row in run.rows
        if row.student is None and row.scores.top1 is not None
    ]
    costs = dict(run.costs)
    for name, value in costs.items():
        if name.startswith(("wall time", "GPU hours", "device hours", "energy", "mean speed")):
            tiles.append(Tile(name, value))
    return tiles
