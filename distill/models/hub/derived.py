"""What a model derives from: its teachers, the weights that it began with, its training images."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from distill.data.label_sets import known_as
from distill.errors import InputError
from distill.models.build import config
from distill.models.hub.licences import Noted, noted_weights
from distill.models.origin import RANDOM, teacher_known_here
from distill.recipe import Recipe, schema
from distill.recipe.hub_names import is_hub_name, parse_hub_name
from distill.recipe.teachers import TEACHER, row_name

_DATASETS = "hf://datasets/"
_BEGAN = ("began_with", "began_with_license")


def recorded_teachers(
    records: Mapping[str, Mapping[str, Any]],
) -> dict[str, Mapping[str, Any]]:
    """Return the part of a record about the teachers that a student learned from: "teacher" of a
    run with one, "teachers" by name of a run with several; nothing without a teacher.

    Args:
        records: of the weights of each, by the names of their rows.
    """
    if TEACHER in records:
        return {"teacher": records[TEACHER]}
    named = {row.partition("/")[2]: each for row, each in records.items()}
    return {"teachers": named} if named else {}


def _by_row(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the teachers that a record names, by row: what `recorded_teachers` was given."""
    several = record.get("teachers")
    named = several.items() if isinstance(several, Mapping) else ()
    found = {TEACHER: record.get("teacher"), **{row_name(name): each for name, each in named}}
    return {row: each for row, each in found.items() if isinstance(each, Mapping)}


def teachers_of(
    record: Mapping[str, Any], recipe: Recipe | None, report: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    """Return what is recorded of the weights of each teacher that a model learned from, by row;
    empty for a student that has teachers beside it, and no loss that compares them.

    Args:
        record: what distill.json says of the weights.
        recipe, report: of the run; None and empty if they are not known.
    """
    found, student = _by_row(record), record.get("student")
    if recipe is None or student not in recipe.students:
        return found
    rows, origins = recipe.teachers_of(student), report.get("origins", {})
    if all(row in origins for row in rows):
        return {row: origins[row] for row in rows}
    return found


def teachers_of_checkpoint(
    recipe: Recipe, values: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    """Return what a checkpoint records of the weights of each teacher, by row. Of a checkpoint of
    an earlier version, which records only their SHA-256, the recipe says it.

    Args:
        values: of the checkpoint; empty if there is none.
    """
    recorded, inputs = _by_row(values), values.get("inputs", {})
    return {
        row: recorded.get(row) or _as_the_recipe_says(spec, inputs.get(f"{row} (SHA-256)"))
        for row, spec in recipe.teacher_rows.items()
    }


def _as_the_recipe_says(spec: schema.TeacherSpec, sha256: object) -> Mapping[str, str]:
    licence = None
    with suppress(InputError):  # a name that this timm does not have, or no network
        origin = teacher_known_here(spec, Path())
        licence = origin.licence if origin is not None else None
    words = {"pretrained": f"pretrained {spec.model}", "random": RANDOM}
    return {
        "model": spec.model or "a model of this package",
        "weights": words.get(spec.weights, spec.weights),
        "sha256": str(sha256 or "not recorded"),
        **({"license": licence} if licence else {}),
    }


def derived_from_all(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the mean of several weights derives from, as a record says it: every teacher, and
    of different first weights those whose licence limits most.

    Args:
        records: what distill.json says of each of the weights.
    """
    began = [each for each in records if each.get("began_with") and each["began_with"] != RANDOM]
    began = began or [each for each in records if each.get("began_with")]
    found: dict[str, Any] = recorded_teachers(_all_teachers(records))
    if began:
        chosen = _most_limited(began, "began_with_license")
        found |= {key: chosen[key] for key in _BEGAN if key in chosen}
    return found


def _all_teachers(records: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the different teachers of several records, by row; where two have one name, a number
    distinguishes them.
    """
    every = [named for record in records for named in _by_row(record).items()]
    distinct: list[tuple[str, Mapping[str, Any]]] = []
    for row, each in every:
        if each not in [known for _, known in distinct]:
            distinct.append((row, each))
    if len(distinct) < 2:
        return dict(distinct)
    found: dict[str, Mapping[str, Any]] = {}
    for row, each in distinct:
        first = name = row_name(row.partition("/")[2] or TEACHER)
        number = 1
        while name in found:
            number += 1
            name = f"{first}-{number}"
        found[name] = each
    return found


def _most_limited(records: Sequence[Mapping[str, Any]], key: str) -> Mapping[str, Any]:
    """Return the first record whose licence, under `key`, is not known to be permissive; the first
    of all if there is none.
    """
    limited = (each for each in records if Noted("", each.get(key)).needs_choice)
    return next(limited, records[0])


def noted_licences(
    record: Mapping[str, Any],
    teachers: Iterable[Mapping[str, Any]],
    recipe: Recipe | None,
    classes: Sequence[str],
) -> list[Noted]:
    """Return the licences of what a model derives from.

    Args:
        record: what distill.json says of the weights.
        teachers: what is recorded of the weights of each teacher.
        recipe: of the run; None if it is not known.
        classes: their names, in the order of the logits.
    """
    noted: list[Noted] = []
    for teacher in teachers:
        if teacher["weights"] == RANDOM:
            continue
        weights = str(teacher["weights"])
        name = weights.removeprefix("pretrained ")
        name = name if name != weights or is_hub_name(weights) else str(teacher["model"])
        noted.append(noted_weights("teacher", name, teacher.get("license")))
    began = str(record.get("began_with", RANDOM))
    if began != RANDOM:
        licence = record.get("began_with_license")
        noted.append(noted_weights("first weights", began.removeprefix("pretrained "), licence))
    return noted + (_data_licences(recipe, classes) if recipe is not None else [])


def _data_licences(recipe: Recipe, classes: Sequence[str]) -> list[Noted]:
    noted = []
    for source in dict.fromkeys(_sources(recipe)):
        if isinstance(source, schema.FashionMnistSpec):
            noted.append(Noted("training images Fashion-MNIST", "mit"))
        elif source.path is not None and source.path.startswith(_DATASETS):
            noted.append(Noted(f"training images {source.path}", None, "its page states it"))
    if known_as(classes):
        terms = "ImageNet's terms of access are for non-commercial research and education"
        noted.append(Noted("training images with ImageNet's classes", None, terms))
    return noted


def base_model(began_with: str) -> str | None:
    """Return the model of the Hub that a student began with; None for random weights and files.

    Args:
        began_with: what its record says.
    """
    if is_hub_name(began_with):
        return parse_hub_name(began_with).repo
    name = began_with.removeprefix("pretrained ")
    if name == began_with or ":" in name:
        return None
    place = config(name).get("hf_hub_id")
    if not place:
        return None
    return f"{place}{name}" if str(place).endswith("/") else str(place)


def datasets_of(recipe: Recipe | None) -> list[str]:
    """Return the data sets of the Hub that a recipe trains on."""
    paths = [source.path for source in _sources(recipe)] if recipe is not None else []
    found = [path.removeprefix(_DATASETS) for path in paths if path and path.startswith(_DATASETS)]
    return list(dict.fromkeys("/".join(name.split("@")[0].split("/")[:2]) for name in found))


def _sources(recipe: Recipe) -> list[schema.SourceSpec]:
    return [recipe.at_stage(index).data.train for index in range(recipe.num_stages)]
