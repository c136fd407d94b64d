"""The cells of a study: each combination of its axes, as a complete recipe of one student."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from distill.errors import InputError, did_you_mean
from distill.recipe import Recipe, find_recipe, read_recipe, recipe_fingerprint
from distill.recipe.load import read_tree
from distill.study.axes import (
    RECIPE,
    STUDENT,
    Value,
    changes_of,
    read_axes,
    read_axis,
    same_label,
    yaml_text,
)
from distill.study.spec import Condition, StudySpec

_ONE = "student"  # the name of the student in the recipe that identifies a cell


@dataclass(frozen=True)
class Combination:
    """A combination of the values of all axes.

    Attributes:
        labels: the label in each dimension: each axis, and each key that an axis sets.
        axes: the label of each axis.
        changes: the changes of the recipe; None if the study lists this cell and does not run it.
        seeds: the axes that set nothing but seeds.
    """

    labels: Mapping[str, str]
    axes: Mapping[str, str]
    changes: Mapping[str, Any] | None
    seeds: frozenset[str]

    def __str__(self) -> str:
        return ", ".join(f"{axis} {label}" for axis, label in self.axes.items())


@dataclass(frozen=True)
class Cell:
    """A combination as a recipe.

    Attributes:
        recipe: of one student.
        student: the name of that student in the base recipe.
        key: identifies the cell: the fingerprint of its recipe, whatever its student is called.
        notes: decisions about the recipe that its user should know.
    """

    combination: Combination
    recipe: Recipe
    student: str
    key: str
    notes: tuple[str, ...]


def combinations(spec: StudySpec, where: str, num_seeds: int | None = None) -> list[Combination]:
    """Returns the combinations that a study has, those that are only listed among them.

    Args:
        where: the study, for messages.
        num_seeds: replaces the values of the axis of seeds by 0, 1, ..., or adds such an axis.

    Raises:
        InputError: an axis, or a combination to skip or include, is wrong.
    """
    axes = read_axes(spec.axes, where)
    if num_seeds is not None:
        axes = _with_seeds(axes, num_seeds, where)
    every = [_combined(values) for values in product(*axes)]
    kept = list(every)
    for name, conditions in (("skip", spec.skip), ("include", spec.include)):
        for number, condition in enumerate(conditions):
            _refuse_unknown(condition, every, f"{where}: {name}[{number}]")
    if spec.skip:
        kept = [each for each in every if not _meets(each, spec.skip) or _meets(each, spec.include)]
    if not kept:
        raise InputError(f"{where}: skip leaves no combination out of {len(every)}")
    return kept


def _with_seeds(axes: list[list[Value]], num_seeds: int, where: str) -> list[list[Value]]:
    of_seeds = [values for values in axes if all(value.is_seed for value in values)]
    if len(of_seeds) > 1:
        names = " and ".join(values[0].axis for values in of_seeds)
        raise InputError(f"{where}: --seeds: the axes {names} are both of seeds: remove one")
    if not of_seeds:
        if any(value.axis == "seed" for values in axes for value in values):
            raise InputError(f"{where}: --seeds: the axis seed sets other keys too")
        return [*axes, read_axis("seed", list(range(num_seeds)), where)]
    axis, changes = of_seeds[0][0].axis, of_seeds[0][0].changes
    assert changes
    (key,) = changes
    new = [Value(axis, {key: str(seed), axis: str(seed)}, {key: seed}) for seed in range(num_seeds)]
    return [new if values is of_seeds[0] else values for values in axes]


def _combined(values: Sequence[Value]) -> Combination:
    labels: dict[str, str] = {}
    changes: dict[str, Any] | None = {}
    for value in values:
        labels |= value.labels
        if value.changes is None:
            changes = None
        elif changes is not None:
            changes |= value.changes
    return Combination(
        labels,
        {value.axis: value.label for value in values},
        changes,
        frozenset(value.axis for value in values if value.is_seed),
    )


def condition_labels(wanted: Any) -> list[str]:
    """Returns the labels that a condition names, in one spelling."""
    return [same_label(str(each)) for each in (wanted if isinstance(wanted, tuple) else (wanted,))]


def _meets(combination: Combination, conditions: Iterable[Condition]) -> bool:
    """Returns whether a combination meets one of the conditions."""
    return any(
        all(
            same_label(combination.labels.get(dimension, "")) in condition_labels(wanted)
            for dimension, wanted in condition.items()
        )
        for condition in conditions
    )


def _refuse_unknown(condition: Condition, every: Sequence[Combination], where: str) -> None:
    """Raises InputError if a condition names a dimension or a label that no combination has."""
    known = dimensions(every)
    for dimension, wanted in condition.items():
        if dimension not in known:
            raise InputError(
                f"{where}: no axis and no key of one is called {dimension!r}"
                f"{did_you_mean(dimension, known)}; there are {', '.join(known)}"
            )
        labels = [same_label(label) for label in known[dimension]]
        for label in condition_labels(wanted):
            if label not in labels:
                raise InputError(
                    f"{where}: {dimension} has no value {label!r}{did_you_mean(label, labels)};"
                    f" there are {', '.join(labels)}"
                )
    if not any(_meets(each, [condition]) for each in every):
        raise InputError(f"{where}: no combination is like this")


def dimensions(every: Iterable[Combination]) -> dict[str, list[str]]:
    """Returns the labels of each dimension, in order."""
    found: dict[str, dict[str, None]] = {}
    for combination in every:
        for dimension, label in combination.labels.items():
            found.setdefault(dimension, {})[label] = None
    return {dimension: list(labels) for dimension, labels in found.items()}


def make_cells(
    spec: StudySpec, path: Path, every: Iterable[Combination], overrides: Sequence[str] = ()
) -> list[Cell]:
    """Returns the cells of the combinations that the study runs.

    Args:
        path: the study file, to which the paths of recipes are relative.
        overrides: changes of single keys, which apply to all cells after the axes.

    Raises:
        InputError: a recipe is not valid, or two cells are the same.
    """
    bases = _Bases(spec, path)
    cells: list[Cell] = []
    by_key: dict[str, Cell] = {}
    for combination in every:
        if combination.changes is None:
            continue
        cell = bases.cell(combination, overrides)
        other = by_key.setdefault(cell.key, cell)
        if other is not cell:
            raise InputError(
                f"{path}: these two have the same settings: {other.combination}; and"
                f" {combination}. An override or a later axis may have replaced what distinguished"
                " them: remove one"
            )
        cells.append(cell)
    return cells


class _Bases:
    """The recipes that the axes of a study change."""

    def __init__(self, spec: StudySpec, path: Path) -> None:
        self._spec, self._path = spec, path
        self._shared = changes_of(spec.set, f"{path}: set")
        self._students: dict[Path, list[str]] = {}

    def cell(self, combination: Combination, overrides: Sequence[str]) -> Cell:
        """Returns the cell of a combination."""
        assert combination.changes is not None
        where = f"{self._path}: {combination}"
        changes = {**self._shared, **combination.changes}
        base = self._found(changes.pop(RECIPE, self._spec.recipe), where)
        student, known = self._student(changes.pop(STUDENT, None), base, where)
        own = f"students.{student}"
        others = [f"students.{name}=null" for name in known if name != student]
        settings = [
            f"{own}.{key.removeprefix('student.')}={yaml_text(value)}"
            if key.startswith("student.")
            else f"{key}={yaml_text(value)}"
            for key, value in changes.items()
        ]
        try:
            recipe, notes = read_recipe(base, [*others, *settings, *overrides])
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if list(recipe.students) != [student]:
            raise InputError(f"{where}: an override adds students: a cell has one")
        return Cell(combination, recipe, student, cell_key(recipe, student), tuple(notes))

    def _found(self, name: Any, where: str) -> Path:
        if not isinstance(name, str):
            raise InputError(
                f"{where}: no recipe: write recipe: at the top of the study, or in an axis"
            )
        for path in (self._path.parent / name, self._path.parent / f"{name}.yaml"):
            if path.is_file():
                return path
        try:
            return find_recipe(name)
        except InputError as error:
            raise InputError(f"{where}: recipe: {error}") from error

    def _student(self, wanted: Any, base: Path, where: str) -> tuple[str, list[str]]:
        """Returns the student of the base that a cell is about, and all students of the base."""
        if base not in self._students:
            students = read_tree(base).get("students")
            names = students if isinstance(students, Mapping) else {_ONE: {}}
            self._students[base] = [str(name) for name, own in names.items() if own is not None]
        known = self._students[base]
        if wanted is None and len(known) == 1:
            return known[0], known
        if wanted is None:
            raise InputError(
                f"{where}: {base} has the students {', '.join(known)}: choose one, with an axis"
                f" student: [{', '.join(known)}] or student: NAME in a value of an axis"
            )
        if str(wanted) not in known:
            raise InputError(
                f"{where}: {base} has no student {wanted!r}{did_you_mean(str(wanted), known)};"
                f" there are {', '.join(known)}"
            )
        return str(wanted), known


def cell_key(recipe: Recipe, student: str) -> str:
    """Returns what identifies a student's training, whatever its name and the other students."""
    return recipe_fingerprint(with_students(recipe, {_ONE: (recipe, student)}))


def with_students(recipe: Recipe, students: Mapping[str, tuple[Recipe, str]]) -> Recipe:
    """Returns a recipe with other students.

    Args:
        students: for each new name, a recipe and the name of the student there.
    """
    stages = tuple(
        stage.model_copy(
            update={
                "students": {
                    name: source.stages[index].students[own]
                    for name, (source, own) in students.items()
                }
            }
        )
        for index, stage in enumerate(recipe.stages)
    )
    return recipe.model_copy(
        update={
            "students": {name: source.students[own] for name, (source, own) in students.items()},
            "stages": stages,
        }
    )


def notes_of(cells: Iterable[Cell]) -> Iterator[str]:
    """Yields each note of the recipes once."""
    yield from dict.fromkeys(note for cell in cells for note in cell.notes)
