"""The entries of a table, and how they are compared: the best of a group, differences."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distill.evaluation.metric import METRICS, Metric
from distill.study.layout import Layout
from distill.study.paper import Place
from distill.study.results import DEVICE_HOURS

DELTA = "Δ"
"""The label of a row of differences."""


@dataclass(frozen=True)
class Entry:
    """What stands in a place of the table; what is not known is None.

    Attributes:
        values: ours, one for each seed.
        num_cells: the cells that the mean would be over.
        num_diverged: those of them that stopped because their loss was not finite.
        training: a run of one of them has begun and has not ended.
        signed: it is a difference itself.
        gap, paper_gap: the difference to the cell that `table.gap` names.
        best, paper_best: whether it is the best of its group.
    """

    figure: str
    values: tuple[float, ...] = ()
    num_cells: int = 0
    num_diverged: int = 0
    training: bool = False
    paper: float | None = None
    signed: bool = False
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


def with_gaps(
    entries: Mapping[Place, Entry], layout: Layout, gap: Mapping[str, str]
) -> dict[Place, Entry]:
    """Returns the entries with their differences to the entry that `table.gap` names."""
    ((dimension, label),) = gap.items()
    names = (*layout.row_dimensions, *layout.column_dimensions)
    at = names.index(dimension)
    references = {
        layout.group(place, [dimension]): entry
        for place, entry in entries.items()
        if (*place[0], *place[1])[at] == label and entry.figure != DEVICE_HOURS
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


def with_best(
    entries: Mapping[Place, Entry], layout: Layout, free: Sequence[str], metric: Metric
) -> dict[Place, Entry]:
    """Returns the entries with the best of those marked that differ only in some dimensions."""
    groups: dict[tuple[Any, ...], list[Place]] = {}
    for place, entry in entries.items():
        if entry.figure != DEVICE_HOURS:
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


def with_deltas(
    entries: Mapping[Place, Entry], layout: Layout, delta: Mapping[str, str], metric: Metric
) -> tuple[list[tuple[str, ...]], dict[Place, Entry]]:
    """Adds below each group of rows a row with the difference of one entry to the best of the
    others.

    Returns:
        The rows in order, and all entries.
    """
    ((dimension, label),) = delta.items()
    at = layout.row_dimensions.index(dimension)
    rows: list[tuple[str, ...]] = []
    found = dict(entries)
    for number, row in enumerate(layout.rows):
        rows.append(row)
        group = row[:at]
        after = layout.rows[number + 1] if number + 1 < len(layout.rows) else None
        if after is not None and after[:at] == group:
            continue
        own = (*group, DELTA, *[""] * (len(row) - at - 1))
        rows.append(own)
        for column in layout.columns:
            members = {
                each[at]: entries[each, column]
                for each in layout.rows
                if each[:at] == group and (each, column) in entries
            }
            if label not in members or layout.figures[column] == DEVICE_HOURS:
                continue
            reference = members.pop(label)
            better = _metric(reference.figure, metric)
            ours = better.best_of({name: each.mean for name, each in members.items()})
            papers = better.best_of({name: each.paper for name, each in members.items()})
            gap = _difference(reference.mean, members[ours].mean if ours else None)
            paper = _difference(reference.paper, members[papers].paper if papers else None)
            whole = all(each.mean is not None for each in members.values())
            found[own, column] = Entry(
                reference.figure,
                (gap,) if gap is not None and whole else (),
                paper=paper,
                signed=True,
            )
    return rows, found
