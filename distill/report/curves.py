"""The curves of runs: what is drawn, as plain numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from distill.evaluation.accuracy import TEACHER
from distill.report.records import Record, RunRecords, number

NUM_COLOURS = 8
NUM_DASHES = 4
SPEED = "Speed"
"""The group of panels whose curves are of runs instead of models."""
# More points than this are averaged in groups: a panel is about 300 pixels wide.
_MAX_POINTS = 300


@dataclass(frozen=True)
class Style:
    """How a curve is drawn: a colour, None for the teacher's, and a pattern of dashes, 0 for a
    solid line.
    """

    colour: int | None
    dash: int = 0


@dataclass(frozen=True)
class Curve:
    """A line of a panel, `ys` over `xs`, each finite."""

    label: str
    style: Style
    xs: tuple[float, ...]
    ys: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """A figure with axes.

    Attributes:
        group: the heading under which it stands.
        unit: of the values; empty for plain numbers.
        log: whether the axis of the values is logarithmic.
        marks: where stages begin.
    """

    group: str
    title: str
    unit: str
    x_label: str
    curves: tuple[Curve, ...]
    log: bool = False
    marks: tuple[float, ...] = ()

    @property
    def averaged(self) -> bool:
        """Whether a curve has fewer points than were recorded."""
        return any(len(curve.xs) >= _MAX_POINTS for curve in self.curves)


@dataclass(frozen=True)
class CurveSource:
    """A run whose curves are drawn.

    Attributes:
        prefix: stands before the name of each model; empty for a single run.
        colour: of all its curves; None gives each student its own.
    """

    run: RunRecords
    students: Sequence[str]
    prefix: str = ""
    colour: int | None = None

    def style(self, model: str) -> Style:
        """Return the style of a model: "kd", "kd/ema-0.999" or the teacher."""
        student, _, average = model.partition("/")
        if student == TEACHER:
            place = list(self.run.recipe.teacher_rows).index(model)
            return Style(None, 1 + place % (NUM_DASHES - 1))
        index = list(self.students).index(student)
        if self.colour is not None:
            return Style(self.colour % NUM_COLOURS, index % NUM_DASHES)
        if not average:
            return Style(index % NUM_COLOURS)
        averages = self._averages(student)
        return Style(index % NUM_COLOURS, 1 + averages.index(average) % (NUM_DASHES - 1))

    def _averages(self, student: str) -> list[str]:
        """Return the averages of a student: of the recipe, then others that its records name."""
        names = [f"ema-{decay!r}" for decay in self.run.recipe.students[student].ema.decays]
        models = (model.partition("/") for each in self.run.evaluated for model in each["models"])
        names += [average for owner, _, average in models if owner == student and average]
        return list(dict.fromkeys(names))


def panels(sources: Sequence[CurveSource]) -> list[Panel]:
    """Return the panels of one run, or of several runs in the same axes. A panel without a curve is
    left out.
    """
    sizes = {source.run.recipe.train.batch_size_global for source in sources}
    # Steps of different batches do not compare; images do.
    per_step = {id(source): source.run.recipe.train.batch_size_global for source in sources}
    by_images = len(sizes) > 1
    x_label = "training images" if by_images else "step"

    def scale(source: CurveSource) -> int:
        return per_step[id(source)] if by_images else 1

    marks = _stage_marks(sources[0].run) if len(sources) == 1 else ()
    found: list[Panel] = []
    for group, title, unit, log, curves in _all(sources, scale):
        # The only term of an objective is its total.
        again = any(panel.group == group and panel.curves == tuple(curves) for panel in found)
        if curves and not again:
            found.append(Panel(group, title, unit, x_label, tuple(curves), log, marks))
    return found


def legend(drawn: Sequence[Panel]) -> dict[str, Style]:
    """Return the style of each curve by its label; of a single run's speed it says nothing."""
    return {
        curve.label: curve.style
        for panel in drawn
        for curve in panel.curves
        if panel.group != SPEED
    }


_Panel = tuple[str, str, str, bool, list[Curve]]
_TERMS = {
    "total": "total",
    "hard": "hard term",
    "soft": "soft term",
    "hint": "hint term",
    "masked": "masked term",
}


def _all(sources: Sequence[CurveSource], scale: Callable[[CurveSource], int]) -> Iterator[_Panel]:
    def trained(key: str) -> list[Curve]:
        return [c for source in sources for c in _of_students(source, key, scale(source))]

    def evaluated(key: str) -> list[Curve]:
        return [c for source in sources for c in _of_models(source, key, scale(source))]

    def of_run(value: Callable[[Record, Record | None, int], float | None]) -> list[Curve]:
        found = [_of_run(source, value, scale(source)) for source in sources]
        return [curve for curve in found if curve.xs]

    for term, title in _TERMS.items():
        yield "Loss", f"Loss, {title}", "", False, trained(f"loss_{term}")
    yield "Loss", "Samples that the soft term keeps", "share", False, trained("loss_kept")
    yield "Accuracy", "Top-1", "%", False, evaluated("top1")
    yield "Accuracy", "Cross-entropy on the evaluation set", "", False, evaluated("loss")
    yield "Accuracy", "Agreement with the teacher", "%", False, evaluated("agreement")
    yield "Accuracy", "KL divergence to the teacher", "nats", False, evaluated("teacher_kl")
    yield "Optimization", "Learning rate", "", False, trained("lr")
    for term, title in _TERMS.items():
        curves = trained(f"gradient_norm_{term}")
        # The hint's gradient and the first steps are orders of magnitude apart from the rest.
        log = bool(curves) and all(y > 0 for curve in curves for y in curve.ys)
        yield "Optimization", f"Gradient norm, {title}", "", log, curves
    yield SPEED, "Images a second", "", False, of_run(_images_per_s)
    yield SPEED, "Time waiting for data", "% of training time", False, of_run(_waiting)


def _of_students(source: CurveSource, key: str, scale: int) -> Iterator[Curve]:
    for name in source.students:
        points = [
            (record["step"] * scale, value)
            for record in source.run.trained
            if (value := number(record["students"].get(name, {}), key)) is not None
        ]
        if points:
            yield _curve(f"{source.prefix}{name}", source.style(name), points)


def _of_models(source: CurveSource, key: str, scale: int) -> Iterator[Curve]:
    """Yield a curve for each student, average and teacher; for several runs those of the raw
    weights alone.
    """
    names = list(dict.fromkeys(name for each in source.run.evaluated for name in each["models"]))
    for name in names:
        student, _, average = name.partition("/")
        if student not in source.students and name not in source.run.recipe.teacher_rows:
            continue
        if source.colour is not None and (average or student == TEACHER):
            continue
        points = [
            (record["step"] * scale, value)
            for record in source.run.evaluated
            if (value := number(record["models"].get(name, {}), key)) is not None
        ]
        if points:
            yield _curve(f"{source.prefix}{name}", source.style(name), points)


def _of_run(
    source: CurveSource,
    value: Callable[[Record, Record | None, int], float | None],
    scale: int,
) -> Curve:
    batch = source.run.recipe.train.batch_size_global
    points = []
    before: Record | None = None
    for record in source.run.trained:
        if (found := value(record, before, batch)) is not None:
            points.append((record["step"] * scale, found))
        before = record
    style = Style(0 if source.colour is None else source.colour % NUM_COLOURS)
    return _curve(source.prefix.removesuffix(": ") or "all students", style, points)


def _images_per_s(record: Record, before: Record | None, batch: int) -> float | None:
    return number(record, "images_per_s")


def _waiting(record: Record, before: Record | None, batch: int) -> float | None:
    """Return the percentage of a log interval in which the main process waited for data."""
    speed, waited = number(record, "images_per_s"), number(record, "data_wait_s")
    if not speed or waited is None:
        return None
    num_images = (record["step"] - (before["step"] if before else 0)) * batch
    # After a resume the interval began at the checkpoint, later than the record before.
    return max(0.0, min(100.0, 100 * waited * speed / num_images)) if num_images > 0 else None


def _curve(label: str, style: Style, points: Sequence[tuple[float, float]]) -> Curve:
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    if len(points) > _MAX_POINTS:
        bounds = [round(i * len(points) / _MAX_POINTS) for i in range(_MAX_POINTS + 1)]
        pairs = list(pairwise(bounds))
        xs = [xs[end - 1] for _, end in pairs]
        ys = [sum(ys[start:end]) / (end - start) for start, end in pairs]
    return Curve(label, style, tuple(xs), tuple(ys))


def _stage_marks(run: RunRecords) -> tuple[float, ...]:
    """Return the last step recorded before each stage but the first."""
    marks = []
    before: Mapping[str, Any] | None = None
    for record in run.trained:
        if before is not None and record.get("stage") != before.get("stage"):
            marks.append(float(before["step"]))
        before = record
    return tuple(marks)
