"""The paper's numbers of a study: read by the labels of rows and columns, and checked."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distill.errors import InputError, did_you_mean
from distill.study.axes import same_label

Place = tuple[tuple[str, ...], tuple[str, ...]]
"""The labels of a row, and those of a column."""


def read_paper(
    paper: Mapping[str, Any],
    rows: Sequence[tuple[str, ...]],
    columns: Sequence[tuple[str, ...]],
    existing: Mapping[Place, Any],
    where: str,
) -> dict[Place, float]:
    """Returns the paper's numbers by row and column.

    Args:
        rows, columns: their labels in the order of the table.
        existing: the places of the table that have cells.
        where: the study, for messages.

    Raises:
        InputError: a number is of no row, column or cell of the table, or is none.
    """
    found: dict[Place, float] = {}
    for row, leaf, key in _leaves(paper, rows, (), f"{where}: paper"):
        numbers = leaf if isinstance(leaf, Mapping | list) else [leaf]
        if isinstance(numbers, list) and len(numbers) != len(columns):
            raise InputError(
                f"{key}: should be a list of {len(columns)} numbers, one for each column"
                f" ({'; '.join(map(_shown, columns))}), and has {len(numbers)}; null where the"
                " paper has none"
            )
        pairs = (
            zip(columns, numbers, strict=True)
            if isinstance(numbers, list)
            else [(_column(name, columns, key), each) for name, each in numbers.items()]
        )
        for column, number in pairs:
            if number is None:
                continue
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise InputError(f"{key}: {number!r} is not a number")
            if (row, column) not in existing:
                raise InputError(
                    f"{key}: the paper's {number:g} is of {_shown(column) or 'a cell'}, a"
                    " combination that the study does not have: write null, or change skip"
                )
            found[row, column] = float(number)
    return found


def _leaves(
    node: Any, rows: Sequence[tuple[str, ...]], above: tuple[str, ...], key: str
) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """Yields each row that the numbers are of, with what the study has there."""
    depth = len(above)
    if not rows or depth == len(rows[0]):
        yield above, node, key
        return
    known = list(dict.fromkeys(row[depth] for row in rows if row[:depth] == above))
    if not isinstance(node, Mapping):
        raise InputError(
            f"{key}: should be a mapping with the rows {', '.join(known)}, not {node!r}"
        )
    spelling = {same_label(label): label for label in known}
    for name, below in node.items():
        label = spelling.get(same_label(str(name)))
        if label is None:
            raise InputError(
                f"{key}: no row {name!r}{did_you_mean(str(name), known)}; there are"
                f" {', '.join(known)}"
            )
        yield from _leaves(below, rows, (*above, label), f"{key}.{name}")


def _column(name: Any, columns: Sequence[tuple[str, ...]], key: str) -> tuple[str, ...]:
    found = [column for column in columns if same_label(column[-1]) == same_label(str(name))]
    if len(found) == 1:
        return found[0]
    labels = [column[-1] for column in columns]
    if found:
        raise InputError(f"{key}: several columns are called {name!r}: write a list of numbers")
    raise InputError(
        f"{key}: no column {name!r}{did_you_mean(str(name), labels)}; there are {', '.join(labels)}"
    )


def _shown(labels: tuple[str, ...]) -> str:
    return " ".join(labels)
