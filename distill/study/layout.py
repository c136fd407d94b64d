"""Which cells of a study stand at which place of its table."""

from collections.abc import Iterable, Sequence
from typing import Any

from distill.study.cells import Combination
from distill.study.paper import Place
from distill.study.spec import StudySpec, TableSpec

VALUE = "value"
"""The dimension of columns that several figures are."""


def figures_of(table: TableSpec) -> dict[str, str]:
    """Returns the figures of the table by heading."""
    return {"": table.value} if isinstance(table.value, str) else dict(table.value)


class Layout:
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
        figures = figures_of(table)
        self.rows = self._sorted([self._row(each) for each in every], table.sort)
        inner = [()] if isinstance(table.value, str) else [(heading,) for heading in figures]
        outer = _ordered([self._column(each) for each in every])
        self.columns = [(*column, *last) for column in outer for last in inner]
        self.figures = {
            (*column, *last): figures[last[0] if last else ""] for column in outer for last in inner
        }
        depth = len(self.columns[0])
        of_rows = {
            (*[""] * (depth - 1), heading): figure for heading, figure in table.row_values.items()
        }
        self.columns = [*of_rows, *self.columns]
        self.figures = of_rows | self.figures
        self.places: dict[Place, list[Combination]] = {}
        for each in every:
            if all(each.labels.get(name) == own for name, own in table.row_values_of.items()):
                for column in of_rows:
                    self.places.setdefault((self._row(each), column), []).append(each)
            for last in inner:
                place = self._row(each), (*self._column(each), *last)
                self.places.setdefault(place, []).append(each)

    def _sorted(
        self, rows: Sequence[tuple[str, ...]], first: Sequence[str]
    ) -> list[tuple[str, ...]]:
        """Returns distinct rows in order, grouped by some dimensions first."""
        names = list(self.row_dimensions)
        places = [*(names.index(name) for name in first)]
        places += [place for place in range(len(names)) if place not in places]
        ordered = _ordered([tuple(row[place] for place in places) for row in rows])
        return [tuple(row[places.index(at)] for at in range(len(names))) for row in ordered]

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
