"""What a model derives from: its teachers, the weights that it began with, its training images."""

from collections.abc import Mapping, Sequence
from typing import Any

from distill.data.label_sets import known_as
from distill.models.build import config
from distill.models.hub.licences import Noted, noted_weights
from distill.recipe import Recipe, schema
from distill.recipe.hub_names import is_hub_name, parse_hub_name
from distill.recipe.teachers import TEACHER

_DATASETS = "hf://datasets/"


def recorded_teachers(
    records: Mapping[str, Mapping[str, str]],
) -> dict[str, Mapping[str, Any]]:
    """Return the part of distill.json about the teachers that a student learned from: "teacher" of
    a run with one, "teachers" by name of a run with several.

    Args:
        records: of the weights of each, by the names of their rows.
    """
    if TEACHER in records:
        return {"teacher": records[TEACHER]}
    return (
        {"teachers": {row.partition("/")[2]: each for row, each in records.items()}}
        if (records)
        else {}
    )


def teachers_of(
    record: Mapping[str, Any], recipe: Recipe | None, report: Mapping[str, Any]
) -> list[Mapping[str, str]]:
    """Return what is recorded of the weights of each teacher that a model learned from; empty for a
    student that has a teacher beside it, and no loss that compares them.

    Args:
        record: what distill.json says of the weights.
        recipe, report: of the run; None and empty if they are not known.
    """
    student = record.get("student")
    if recipe is not None and student in recipe.students:
        rows = recipe.teachers_of(student)
        origins = report.get("origins", {})
        if not rows:
            return []
        if all(row in origins for row in rows):
            return [origins[row] for row in rows]
    found = [record.get("teacher"), *dict(record.get("teachers") or {}).values()]
    return [each for each in found if isinstance(each, Mapping)]


def noted_licences(
    record: Mapping[str, Any],
    teachers: Sequence[Mapping[str, str]],
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
        if teacher["weights"] == "random weights":
            continue
        weights = str(teacher["weights"])
        name = weights.removeprefix("pretrained ")
        name = name if name != weights or is_hub_name(weights) else str(teacher["model"])
        noted.append(noted_weights("teacher", name, teacher.get("license")))
    began = str(record.get("began_with", "random weights"))
    if began != "random weights":
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
