"""The study file: frozen pydantic models, read from YAML."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from distill.errors import InputError, did_you_mean
from distill.recipe import recipes_dir, shipped_studies
from distill.recipe.text import TextError, parse, read_text
from distill.recipe.values import Count, Section, as_tuple

Labels = str | int | float | tuple[str | int | float, ...]
Condition = Annotated[dict[str, Annotated[Labels, BeforeValidator(as_tuple)]], Field(min_length=1)]
"""Dimensions with the label, or a list of labels, that a combination has there."""


def _names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else as_tuple(value)


Dimensions = Annotated[tuple[str, ...], BeforeValidator(_names)]


class TableSpec(Section):
    """The table of a study, in the layout of the paper. A dimension is an axis, or a key that an
    axis sets.
    """

    title: str = ""
    """What stands above the table."""
    rows: Dimensions = ()
    """The dimensions of the rows, the outermost first."""
    columns: Dimensions = ()
    """The dimensions of the columns, the outermost first."""
    value: str | dict[str, str] = "top1"
    """The figure: top1, top5, loss, agreement or teacher_kl of the last evaluation, or `best`, the
    best value of evaluate.metric over all evaluations. A mapping of headings to figures adds an
    innermost dimension of columns. A figure that no run reports (such as `real`) is not run.
    """
    row_values: dict[str, str] = Field(default_factory=dict)
    """Headings and figures of columns before all others that a row has once, such as {GPU hours:
    device_hours}, the hours of the run.
    """
    row_values_of: dict[str, str] = Field(default_factory=dict)
    """The column whose cells `row_values` are of, such as {teacher: Res152}, if a row has several.
    """
    sort: Dimensions = ()
    """The dimensions of rows that group them first, if another order than that of `rows`."""
    best: Dimensions = ()
    """The best of the cells that differ only in these dimensions is marked."""
    gap: dict[str, str] = Field(default_factory=dict)
    """One dimension and one of its labels, such as {method: kd}: each other cell shows its
    difference to the cell with this label.
    """
    delta: dict[str, str] = Field(default_factory=dict)
    """One dimension of rows and one of its labels, such as {method: kd}: below each group a row
    with the difference of this label's cell to the best of the others.
    """
    names: dict[str, str] = Field(default_factory=dict)
    """How dimensions and labels are written in the table, such as {optimizer.lr: LR}."""
    note: str = ""
    """What stands below the table."""


class StudySpec(Section):
    """A study: axes over a recipe, and a table."""

    name: Annotated[str, Field(min_length=1)]
    """The name of the study. Default: the name of the file."""
    description: str = ""
    """A sentence that describes the study."""
    output: Annotated[str, Field(min_length=1)] | None = None
    """The folder of the study; null: runs/NAME."""
    recipe: str | None = None
    """The recipe that the axes change: a path relative to this file, or a recipe of the package."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Keys of the recipe, or of a student, that all runs change, such as {train.budget: 4 epochs}.
    """
    axes: Annotated[dict[str, Any], Field(min_length=1)]
    """The axes by name; the study has each combination of their values, the last axis first."""
    skip: Annotated[tuple[Condition, ...], BeforeValidator(as_tuple)] = ()
    """Combinations that the study leaves out."""
    include: Annotated[tuple[Condition, ...], BeforeValidator(as_tuple)] = ()
    """Combinations that the study has although `skip` names them."""
    students_per_run: Count | None = None
    """The largest number of students behind one teacher forward; null: no limit."""
    table: TableSpec = TableSpec()
    """The table."""
    paper: dict[str, Any] = Field(default_factory=dict)
    """The paper's numbers: by the labels of the rows, then a list over the columns, null where the
    paper has none.
    """

    @property
    def folder(self) -> Path:
        """The folder of the study."""
        return Path(self.output or f"runs/{self.name}").expanduser()


def find_study(name: str) -> Path:
    """Finds a study file by its path, or by its name in the package ("table5"); .yaml may be left
    out.

    Raises:
        InputError: there is no such file.
    """
    own = Path(name).expanduser()
    folder = recipes_dir() / "studies"
    short = name.removeprefix("studies/")
    for path in (own, Path(f"{own}.yaml"), folder / short, folder / f"{short}.yaml"):
        if path.is_file():
            return path
    raise InputError(
        f"no study {name[:200]!r}{did_you_mean(short[:200], shipped_studies())}; the package has"
        f" {', '.join(shipped_studies())}"
    )


def load_study(path: Path) -> StudySpec:
    """Reads a study file.

    Raises:
        InputError: it is not valid; the message has a line for each wrong key.
    """
    try:
        tree = parse(read_text(path))
    except TextError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path}: a study is a mapping of keys, with axes among them")
    return validated({"name": path.stem, **tree}, str(path))


def validated(tree: dict[str, Any], where: str) -> StudySpec:
    """Returns a study from its tree.

    Raises:
        InputError: it is not valid.
    """
    try:
        return StudySpec.model_validate(tree)
    except ValidationError as error:
        lines = [f"  {_explained(detail)}" for detail in error.errors()]
        raise InputError("\n".join([f"{where}:", *dict.fromkeys(lines)])) from error


def _explained(detail: Any) -> str:
    place = [str(part) for part in detail["loc"]]
    if detail["type"] == "extra_forbidden":
        model = TableSpec if place[0] == "table" else StudySpec
        known = list(model.model_fields)
        close = did_you_mean(place[-1], known) or f"; known here: {', '.join(known)}"
        return f"{'.'.join(place)}: unknown key{close}"
    if detail["type"] == "missing":
        return f"{'.'.join(place)}: missing, and it has no default"
    return f"{'.'.join(place)}: {detail['msg'].removeprefix('Value error, ')}"
