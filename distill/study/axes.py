"""The axes of a study: their values as labels, and as changes of a recipe."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from distill.errors import InputError, did_you_mean
from distill.recipe.schema import StudentSpec
from distill.recipe.text import dump

RECIPE, STUDENT = "recipe", "student"
"""The key of a setting that names another recipe, and the one that chooses among its students."""
SEEDS = ("seed", "student.seed")
_OF_RECIPE = (
    "seed",
    "data",
    "teacher",
    "teachers",
    "stages",
    "train",
    "evaluate",
    "checkpoint",
    "log",
)
_OF_STUDENT = tuple(key for key in StudentSpec.model_fields if key not in _OF_RECIPE)
_OF_STUDY = {
    "name": "the study names its runs",
    "description": "it describes the study, at its top",
    "output": "the study chooses the folders of its runs; set output at its top",
    "resume": "a study resumes what is not done",
    "students": "write student.KEY, or student: NAME to choose one of the recipe",
    "extends": "write recipe: for another recipe",
}
_SMALL = 0.01  # papers write smaller numbers as 5e-3


@dataclass(frozen=True)
class Value:
    """A value of an axis.

    Attributes:
        axis: the name of the axis.
        labels: the label of this value by dimension: the axis, each key that it sets, and those
            that `label: {DIMENSION: LABEL}` names.
        changes: the keys that it sets, dotted, of a recipe or of a student ("student.KEY"); None if
            the study lists this value and does not run it.
    """

    axis: str
    labels: Mapping[str, str]
    changes: Mapping[str, Any] | None

    @property
    def label(self) -> str:
        """The label of the axis."""
        return self.labels[self.axis]

    @property
    def is_seed(self) -> bool:
        """Whether it sets nothing but seeds."""
        return self.changes is not None and self.changes.keys() <= set(SEEDS)


def label_of(value: Any) -> str:
    """Returns a value as a label: numbers as papers write them, 0.02 and 5e-3."""
    if isinstance(value, bool) or value is None:
        return yaml_text(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if value and abs(value) < _SMALL:
            mantissa, _, exponent = f"{value:e}".partition("e")
            return f"{float(mantissa):g}e{int(exponent)}"
        return f"{value:g}".replace("e+", "e")
    return value if isinstance(value, str) else yaml_text(value)


def same_label(text: str) -> str:
    """Returns one spelling for all spellings of a number, and other texts as they are."""
    try:
        return label_of(float(text))
    except ValueError:
        return text


def yaml_text(value: Any) -> str:
    """Returns a value as YAML in a line, as an override has it."""
    text = dump(value, in_a_line=True).strip()
    return text.removesuffix("...").strip()


def read_axes(axes: Mapping[str, Any], where: str) -> list[list[Value]]:
    """Returns the values of each axis.

    Args:
        where: the study, for messages.

    Raises:
        InputError: an axis is empty, two of its values have one label, or a key is unknown.
    """
    return [read_axis(name, values, f"{where}: axes.{name}") for name, values in axes.items()]


def read_axis(name: str, values: Any, where: str) -> list[Value]:
    """Returns the values of an axis: a mapping of labels to settings, or a list of values.

    Raises:
        InputError: as `read_axes`.
    """
    if not values or not isinstance(values, Mapping | list):
        raise InputError(
            f"{where}: should be a list of values, or a mapping of labels to settings, with at"
            " least one"
        )
    if isinstance(values, Mapping):
        found = [_named(name, str(label), own, f"{where}.{label}") for label, own in values.items()]
    else:
        found = [_listed(name, own, f"{where}[{i}]") for i, own in enumerate(values)]
    labels = [value.label for value in found]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(
                f"{where}: two values have the label {label!r}: give each its own, as in"
                " {label: NAME, ...}"
            )
    return found


def _named(axis: str, label: str, settings: Any, where: str) -> Value:
    if settings is None:
        return Value(axis, {axis: label}, None)
    if not isinstance(settings, Mapping):
        raise InputError(
            f"{where}: should be a mapping of keys, such as {{optimizer.lr: 1e-3}}, or null for a"
            f" value that is listed and not run; not {settings!r}"
        )
    changes = changes_of(settings, where)
    return Value(axis, {**_labels(settings), axis: label}, changes)


def _listed(axis: str, value: Any, where: str) -> Value:
    if not isinstance(value, Mapping):  # the axis is a key
        return Value(axis, {axis: label_of(value)}, changes_of({axis: value}, where))
    settings = {key: own for key, own in value.items() if key != "label"}
    if not settings:
        raise InputError(f"{where}: sets no key")
    labels = _labels(settings)
    own = value.get("label")
    if isinstance(own, Mapping):  # the labels of several dimensions
        named = {str(name): label_of(each) for name, each in own.items()}
        label = ", ".join(named.values())
    else:
        named = {}
        label = ", ".join(labels.values()) if own is None else label_of(own)
    return Value(axis, {**labels, axis: label, **named}, changes_of(settings, where))


def _labels(settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns a label for each key that is set to a plain value."""
    return {
        key: label_of(value)
        for key, value in _leaves(settings)
        if not isinstance(value, Mapping | list)
    }


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def changes_of(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns settings as changes of dotted keys, those of a student below "student.".

    Raises:
        InputError: a key is of neither a recipe nor a student.
    """
    changes = {}
    for key, value in settings.items():
        first = str(key).partition(".")[0]
        if first in _OF_STUDY:
            raise InputError(f"{where}: {key} is not for an axis: {_OF_STUDY[first]}")
        if first in (RECIPE, *_OF_RECIPE):
            changes[key] = value
        elif first == STUDENT:
            if key == STUDENT and isinstance(value, Mapping):
                changes |= {f"{STUDENT}.{own}": each for own, each in value.items()}
            else:
                changes[key] = value
        elif first in _OF_STUDENT:
            changes[f"{STUDENT}.{key}"] = value
        else:
            known = [RECIPE, STUDENT, *_OF_RECIPE, *_OF_STUDENT]
            hint = (
                ""
                if "." in str(key)
                else "; an axis of plain values is named after a key, and other axes are a mapping"
                " of labels to settings"
            )
            raise InputError(
                f"{where}: {key}: neither a recipe nor a student has this key"
                f"{did_you_mean(first, known)}{hint}"
            )
    return changes
