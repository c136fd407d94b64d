"""The table of a study: rows and columns as in the paper, the paper's number beside ours."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from distill.errors import InputError, did_you_mean
from distill.evaluation.metric import METRICS, Metric
from distill.study.cells import Combination, dimensions
from distill.study.layout import Layout, figures_of
from distill.study.marks import DELTA, Entry, with_best, with_deltas, with_gaps
from distill.study.paper import read_paper
from distill.study.results import BEST, DEVICE_HOURS, CellResult
from distill.study.spec import StudySpec

# Figures of other evaluation sets, which `distill evaluate` gives: only the paper's are shown.
_OF_OTHER_SETS = ("real", "v2")
FIGURES = (*METRICS, BEST, DEVICE_HOURS, *_OF_OTHER_SETS)


@dataclass(frozen=True)
class Table:
    """A table of rows and columns.

    Attributes:
        row_names, column_names: the names of the dimensions.
        column_heads: those of the columns that the study names.
        rows, columns: the labels of each row and column, as shown.
        entries: by the number of the row and of the column; places without a cell are absent.
        notes: what a reader needs below it.
    """

    title: str
    row_names: tuple[str, ...]
    column_names: tuple[str, ...]
    column_heads: tuple[str, ...]
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
        ("row_values_of", tuple(table.row_values_of)),
        ("sort", table.sort),
        ("best", table.best),
        ("gap", tuple(table.gap)),
        ("delta", tuple(table.delta)),
    ):
        for name in names:
            if name not in known:
                raise InputError(
                    f"{where}: table.{key}: no axis and no key of one is called {name!r}"
                    f"{did_you_mean(name, known)}; there are {', '.join(known)}"
                )
            if key in ("best", "gap", "delta") and name not in used and used:
                raise InputError(
                    f"{where}: table.{key}: {name!r} is in neither table.rows nor table.columns"
                )
    for name in used:
        if used.count(name) > 1:
            raise InputError(f"{where}: table: {name!r} is named twice: name it once")
    figures = [("value", each) for each in figures_of(table).values()]
    figures += [("row_values", each) for each in table.row_values.values()]
    for key, figure in figures:
        if figure not in FIGURES:
            raise InputError(
                f"{where}: table.{key}: no figure {figure!r}{did_you_mean(figure, FIGURES)}; there"
                f" are {', '.join(FIGURES)}"
            )
    if table.row_values and not table.columns and isinstance(table.value, str):
        raise InputError(
            f"{where}: table.row_values: the other column has no heading: write value: {{HEADING:"
            f" {table.value}}}"
        )
    if outside := [name for name in table.sort if name not in table.rows]:
        raise InputError(f"{where}: table.sort: {outside[0]!r} is not in table.rows")
    if table.sort and table.delta:
        raise InputError(f"{where}: table.sort: does not go with delta, whose groups it would tear")
    pairs = (("gap", table.gap), ("delta", table.delta), ("row_values_of", table.row_values_of))
    for key, pair in pairs:
        if len(pair) > 1 and key != "row_values_of":
            raise InputError(f"{where}: table.{key}: names one dimension and one label")
        for name, label in pair.items():
            if label not in known[name]:
                raise InputError(
                    f"{where}: table.{key}: {name} has no value {label!r}"
                    f"{did_you_mean(label, known[name])}; there are {', '.join(known[name])}"
                )
    if table.delta and not set(table.delta) <= set(table.rows):
        raise InputError(f"{where}: table.delta: {next(iter(table.delta))!r} is not in table.rows")
    _refuse_averages(spec, every, where)
    layout = Layout(spec, every)
    read_paper(spec.paper, layout.rows, layout.columns, layout.places, where)


def _refuse_averages(spec: StudySpec, every: Sequence[Combination], where: str) -> None:
    """Raises InputError if a place of the table would be the mean of more than seeds."""
    layout = Layout(spec, every)
    for members in layout.places.values():
        for axis in members[0].axes:
            if len({each.axes[axis] for each in members}) > 1 and axis not in members[0].seeds:
                raise InputError(
                    f"{where}: table: the axis {axis} is in neither rows nor columns, so that its"
                    " cells would be averaged, and only seeds are: add it to table.rows or"
                    " table.columns, or one of the keys that it sets (for table.row_values:"
                    " name one column with table.row_values_of)"
                )


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
    layout = Layout(spec, every)
    numbers = read_paper(spec.paper, layout.rows, layout.columns, layout.places, spec.name)
    entries, costs = {}, dict[str, None]()
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
        if figure == DEVICE_HOURS:
            costs |= dict.fromkeys(each.cost for each in found if each.cost)
    rows = layout.rows
    if spec.table.gap:
        entries = with_gaps(entries, layout, spec.table.gap)
    if spec.table.best:
        entries = with_best(entries, layout, spec.table.best, metric)
    if spec.table.delta:
        rows, entries = with_deltas(entries, layout, spec.table.delta, metric)
    names = spec.table.names
    row_of = {row: number for number, row in enumerate(rows)}
    column_of = {column: number for number, column in enumerate(layout.columns)}
    return Table(
        spec.table.title or spec.description or spec.name,
        tuple(names.get(each, each) for each in layout.row_dimensions),
        tuple(names.get(each, each) for each in layout.column_dimensions),
        tuple(names.get(each, "") for each in layout.column_dimensions),
        [tuple(names.get(label, label) for label in row) for row in rows],
        [tuple(names.get(label, label) for label in column) for column in layout.columns],
        {(row_of[row], column_of[column]): entry for (row, column), entry in entries.items()},
        metric,
        _notes(spec, entries.values(), list(costs)),
    )


def _notes(spec: StudySpec, entries: Iterable[Entry], costs: Sequence[str]) -> list[str]:
    """Returns the sentences below the table.

    Args:
        costs: the runs whose hours it shows.
    """
    entries = list(entries)
    counts = sorted({len(entry.values) for entry in entries if entry.values})
    figure = "; ".join(
        f"{heading}: {_words(name)}" if heading else _words(name)
        for heading, name in (figures_of(spec.table) | spec.table.row_values).items()
    )
    notes = [f"Ours: {figure}."]
    if counts and counts[-1] > 1:
        over = f"n = {counts[0]}" if len(counts) == 1 else "n as given"
        notes.append(f"Mean and standard deviation over seeds, {over}.")
    if costs:
        notes.append(f"Hours are those of whole runs: {'; '.join(costs)}.")
    if any(entry.paper is not None for entry in entries):
        notes.append("In parentheses: the paper's.")
    if spec.table.delta:
        ((_, label),) = spec.table.delta.items()
        shown = spec.table.names.get(label, label)
        notes.append(f"{DELTA}: {shown} less the best of the others.")
    if spec.table.best and any(entry.best or entry.paper_best for entry in entries):
        notes.append(f"Bold: the best over {', '.join(spec.table.best)}.")
    return [*notes, *([spec.table.note] if spec.table.note else [])]


def _words(figure: str) -> str:
    if figure == BEST:
        return "the best value of evaluate.metric over all evaluations"
    if figure == DEVICE_HOURS:
        return "hours of the run that trains the cell, with all its students, times its devices"
    if figure in _OF_OTHER_SETS:
        return f"{figure}, which distill evaluate --sets {figure} measures"
    return f"{figure} of the last evaluation"
