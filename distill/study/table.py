"""The table of a study: rows and columns as in the paper, the paper's number beside ours."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distill.errors import InputError, did_you_mean
from distill.evaluation.metric import METRICS, Metric
from distill.study.cells import Combination, dimensions
from distill.study.paper import Place, read_paper
from distill.study.results import BEST, CellResult
from distill.study.spec import StudySpec, TableSpec

VALUE = "value"
"""The dimension of columns that several figures are."""
# Figures of other evaluation sets, which `distill evaluate` gives: only the paper's are shown.
_OF_OTHER_SETS = ("real", "v2")
FIGURES = (*METRICS, BEST, *_OF_OTHER_SETS)


@dataclass(frozen=True)
class Entry:
    """What stands in a place of the table; what is not known is None.

    Attributes:
        values: ours, one for each seed.
        num_cells: the cells that the mean would be over.
        num_diverged: those of them that stopped because their loss was not finite.
        training: a run of one of them has begun and has not ended.
        gap, paper_gap: the difference to the cell that `table.gap` names.
        best, paper_best: whether it is the best of its group.
    """

    figure: str
    values: tuple[float, ...] = ()
    num_cells: int = 0
    num_diverged: int = 0
    training: bool = False
    paper: float | None = None
    gap: float | None = None
    paper_gap: float | None = None
    best: bool = False
    paper_best: bool = False

    @property
    def mean(self) -> float | None:
        """The mean over the seeds."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation over the seeds; None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Table:
    """A table of rows and columns.

    Attributes:
        row_names, column_names: the names of the dimensions.
        rows, columns: the labels of each row and column, as shown.
        entries: by the number of the row and of the column; places without a cell are absent.
        notes: what a reader needs below it.
    """

    title: str
    row_names: tuple[str, ...]
    column_names: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    columns: Sequence[tuple[str, ...]]
    entries: Mapping[tuple[int, int], Entry]
    metric: Metric
    notes: Sequence[str]


def check_table(spec: StudySpec, every: Sequence[Combination], where: str) -> None:
    """Raises InputError if the table names what the study does not have."""
    table, known = spec.table, dimensions(every)
    used = (*table.rows, *table.columns)
    for key, names in (
        ("rows", table.rows),
        ("columns", table.columns),
        ("best", table.best),
        ("gap", tuple(table.gap)),
    ):
        for name in names:
            if name not in known:
                raise InputError(
                    f"{where}: table.{key}: no axis and no key of one is called {name!r}"
                    f"{did_you_mean(name, known)}; there are {', '.join(known)}"
                )
            if key in ("best", "gap") and name not in used and used:
                raise InputError(
                    f"{where}: table.{key}: {name!r} is in neither table.rows nor table.columns"
                )
    for name in used:
        if used.count(name) > 1:
            raise InputError(f"{where}: table: {name!r} is named twice: name it once")
    for figure in _figures(table).values():
        if figure not in FIGURES:
            raise InputError(
                f"{where}: table.value: no figure {figure!r}{did_you_mean(figure, FIGURES)}; there"
                f" are {', '.join(FIGURES)}"
            )
    if len(table.gap) > 1:
        raise InputError(f"{where}: table.gap: names one dimension and one label")
    for name, label in table.gap.items():
        if label not in known[name]:
            raise InputError(
                f"{where}: table.gap: {name} has no value {label!r}"
                f"{did_you_mean(label, known[name])}; there are {', '.join(known[name])}"
            )
    _refuse_averages(spec, every, where)
    layout = _Layout(spec, every)
    read_paper(spec.paper, layout.rows, layout.columns, layout.places, where)


def _refuse_averages(spec: StudySpec, every: Sequence[Combination], where: str) -> None:
    """Raises InputError if a place of the table would be the mean of more than seeds."""
    layout = _Layout(spec, every)
    for members in layout.places.values():
        for axis in members[0].axes:
            if len({each.axes[axis] for each in members}) > 1 and axis not in members[0].seeds:
                raise InputError(
                    f"{where}: table: the axis {axis} is in neither rows nor columns, so that its"
                    " cells would be averaged, and only seeds are: add it to table.rows or"
                    " table.columns, or one of the keys that it sets"
                )


def _figures(table: TableSpec) -> dict[str, str]:
    """Returns the figures of the table by heading."""
    return {"": table.value} if isinstance(table.value, str) else dict(table.value)


class _Layout:
    """Which combinations stand at which place.

    Attributes:
        rows, columns: their labels in order.
        places: the combinations at each place; more than one if they are seeds.
        figures: the figure of each column.
    """

    def __init__(self, spec: StudySpec, every: Sequence[Combination]) -> None:
        table = spec.table
        self.row_dimensions = table.rows
        if not table.rows and not table.columns:
            seeds = every[0].seeds
            self.row_dimensions = tuple(axis for axis in every[0].axes if axis not in seeds)
        self.column_dimensions = table.columns
        figures = _figures(table)
        self.rows = _ordered([self._row(each) for each in every])
        inner = [()] if isinstance(table.value, str) else [(heading,) for heading in figures]
        outer = _ordered([self._column(each) for each in every])
        self.columns = [(*column, *last) for column in outer for last in inner]
        self.figures = {
            (*column, *last): figures[last[0] if last else ""] for column in outer for last in inner
        }
        self.places: dict[Place, list[Combination]] = {}
        for each in every:
            for last in inner:
                place = self._row(each), (*self._column(each), *last)
                self.places.setdefault(place, []).append(each)

    def _row(self, combination: Combination) -> tuple[str, ...]:
        return tuple(combination.labels.get(name, "") for name in self.row_dimensions)

    def _column(self, combination: Combination) -> tuple[str, ...]:
        return tuple(combination.labels.get(name, "") for name in self.column_dimensions)

    def group(self, place: Place, free: Iterable[str]) -> tuple[Any, ...]:
        """Returns what the places that differ only in some dimensions have in common."""
        names = (*self.row_dimensions, *self.column_dimensions, VALUE)
        labels = (*place[0], *place[1])
        return tuple(
            label for name, label in zip(names, labels, strict=False) if name not in set(free)
        )


def _ordered(labels: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Returns distinct tuples, those with equal outer labels side by side, in order of first
    appearance.
    """
    distinct = list(dict.fromkeys(labels))
    if not distinct or len(distinct[0]) < 2:
        return distinct
    firsts = dict.fromkeys(label[0] for label in distinct)
    return [
        (first, *rest)
        for first in firsts
        for rest in _ordered([label[1:] for label in distinct if label[0] == first])
    ]


def make_table(
    spec: StudySpec,
    cells: Sequence[tuple[Combination, str | None]],
    results: Mapping[str, CellResult],
    metric: Metric,
) -> Table:
    """Returns the table of a study.

    Args:
        cells: each combination with the key of its cell; None for one that is not run.
        results: the result of each cell by its key.
        metric: of `best`, the figure by which runs choose their best weights.
    """
    every = [each for each, _ in cells]
    keys = {id(each): key for each, key in cells}
    layout = _Layout(spec, every)
    numbers = read_paper(spec.paper, layout.rows, layout.columns, layout.places, spec.name)
    entries = {}
    for place, members in layout.places.items():
        figure = layout.figures[place[1]]
        known = [key for each in members if (key := keys[id(each)]) is not None]
        found = [results[key] for key in known if key in results]
        entries[place] = Entry(
            figure,
            tuple(
                each.figures[figure]
                for each in found
                if each.status == "done" and figure in each.figures
            ),
            num_cells=len(members),
            num_diverged=sum(each.status == "diverged" for each in found),
            training=any(each.status == "training" for each in found),
            paper=numbers.get(place),
        )
    if spec.table.gap:
        entries = _with_gaps(entries, layout, spec.table.gap)
    if spec.table.best:
        entries = _with_best(entries, layout, spec.table.best, metric)
    names = spec.table.names
    row_of = {row: number for number, row in enumerate(layout.rows)}
    column_of = {column: number for number, column in enumerate(layout.columns)}
    return Table(
        spec.table.title or spec.description or spec.name,
        tuple(names.get(each, each) for each in layout.row_dimensions),
        tuple(names.get(each, each) for each in layout.column_dimensions),
        [tuple(names.get(label, label) for label in row) for row in layout.rows],
        [tuple(names.get(label, label) for label in column) for column in layout.columns],
        {(row_of[row], column_of[column]): entry for (row, column), entry in entries.items()},
        metric,
        _notes(spec, entries.values()),
    )


def _with_gaps(
    entries: Mapping[Place, Entry], layout: _Layout, gap: Mapping[str, str]
) -> dict[Place, Entry]:
    ((dimension, label),) = gap.items()
    names = (*layout.row_dimensions, *layout.column_dimensions)
    at = names.index(dimension)
    references = {
        layout.group(place, [dimension]): entry
        for place, entry in entries.items()
        if (*place[0], *place[1])[at] == label
    }
    found = {}
    for place, entry in entries.items():
        other = references.get(layout.group(place, [dimension]))
        if other is not None and other is not entry:
            entry = replace(
                entry,
                gap=_difference(entry.mean, other.mean),
                paper_gap=_difference(entry.paper, other.paper),
            )
        found[place] = entry
    return found


def _difference(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _with_best(
    entries: Mapping[Place, Entry], layout: _Layout, free: Sequence[str], metric: Metric
) -> dict[Place, Entry]:
    groups: dict[tuple[Any, ...], list[Place]] = {}
    for place in entries:
        groups.setdefault(layout.group(place, free), []).append(place)
    found = dict(entries)
    for places in groups.values():
        better = _metric(entries[places[0]].figure, metric).better
        ours = {place: entries[place].mean for place in places}
        papers = {place: entries[place].paper for place in places}
        for place in places:
            found[place] = replace(
                entries[place],
                best=_is_best(ours[place], ours.values(), better),
                paper_best=_is_best(papers[place], papers.values(), better),
            )
    return found


def _metric(figure: str, metric: Metric) -> Metric:
    return METRICS.get(figure, metric)


def _is_best(value: float | None, others: Iterable[float | None], better: Any) -> bool:
    known = [other for other in others if other is not None]
    return value is not None and len(known) > 1 and not any(better(o, value) for o in known)


def _notes(spec: StudySpec, entries: Iterable[Entry]) -> list[str]:
    """Returns the sentences below the table."""
    entries = list(entries)
    counts = sorted({len(entry.values) for entry in entries if entry.values})
    figure = "; ".join(
        f"{heading}: {_words(name)}" if heading else _words(name)
        for heading, name in _figures(spec.table).items()
    )
    notes = [f"Ours: {figure}."]
    if counts and counts[-1] > 1:
        over = f"n = {counts[0]}" if len(counts) == 1 else "n as given"
        notes.append(f"Mean and standard deviation over seeds, {over}.")
    if any(entry.paper is not None for entry in entries):
        notes.append("In parentheses: the paper's.")
    if spec.table.best and any(entry.best or entry.paper_best for entry in entries):
        notes.append(f"Bold: the best over {', '.join(spec.table.best)}.")
    return [*notes, *([spec.table.note] if spec.table.note else [])]


def _words(figure: str) -> str:
    if figure == BEST:
        return "the best value of evaluate.metric over all evaluations"
    if figure in _OF_OTHER_SETS:
        return f"{figure}, which distill evaluate --sets {figure} measures"
    return f"{figure} of the last evaluation"
