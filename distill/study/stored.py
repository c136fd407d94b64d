"""The plan of a study, and its file in the folder of the study.

study.json   the study, its cells and its runs
RUN.yaml     the complete recipe of a run, which `distill train` takes too
RUN/         the folder of the run
table.*      the table, after the last run
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distill.checkpoint.layout import RECIPE_FILE, REPORT_FILE
from distill.errors import InputError
from distill.files import replace_text, write_error
from distill.recipe import Recipe, dump_recipe, load_recipe
from distill.study.cells import Combination, combinations, make_cells, notes_of
from distill.study.fleets import Run, jobs_of, make_runs, with_trunks
from distill.study.spec import StudySpec, find_study, load_study, validated
from distill.study.table import check_table

STUDY_FILE = "study.json"
FORMAT = 1
State = Literal["done", "started", "new"]


@dataclass(frozen=True)
class StudyPlan:
    """A study as it is run.

    Attributes:
        cells: each combination, with the key of its cell; None for one that is listed and not run.
        notes: decisions that its user should know, a sentence each.
    """

    spec: StudySpec
    folder: Path
    cells: Sequence[tuple[Combination, str | None]]
    runs: Sequence[Run]
    notes: Sequence[str] = ()

    @property
    def jobs(self) -> list[list[Run]]:
        """The runs in jobs, which may run at the same time."""
        return jobs_of(self.runs)

    def output(self, run: Run) -> Path:
        """The folder of a run."""
        return self.folder / run.name

    def recipe_file(self, run: Run) -> Path:
        """The file with the recipe of a run."""
        return self.folder / f"{run.name}.yaml"

    def state(self, run: Run) -> State:
        """Whether a run has ended, has begun, or neither."""
        output = self.output(run)
        if (output / REPORT_FILE).is_file():
            return "done"
        return "started" if (output / RECIPE_FILE).is_file() else "new"

    def recipe(self, run: Run) -> Recipe:
        """The recipe of a run."""
        if run.recipe is None:
            return load_recipe(self.recipe_file(run))
        return run.recipe


def plan_study(name: str, overrides: Sequence[str] = (), num_seeds: int | None = None) -> StudyPlan:
    """Plans a study. Runs in its folder that have begun stay as they are, also if the study has
    more cells now; only cells that none of them has get new runs. Writes nothing.

    Args:
        name: the study file, a study of the package, or the folder of a study, whose plan then
            stays as it is.
        overrides: changes of single keys for all runs; `output` is the folder of the study.
        num_seeds: the number of seeds, instead of those of the study.

    Raises:
        InputError: the study, a recipe of it or its folder is wrong.
    """
    if is_study(Path(name).expanduser()):
        if overrides or num_seeds is not None:
            raise InputError(
                f"{name}: is the folder of a study, whose plan stays as it is: give overrides and"
                " --seeds with the study file"
            )
        return read_plan(Path(name).expanduser())
    path = find_study(name)
    spec = load_study(path)
    outputs = [each.partition("=")[2] for each in overrides if each.startswith("output=")]
    others = [each for each in overrides if not each.startswith("output=")]
    if outputs:
        spec = spec.model_copy(update={"output": outputs[-1]})
    every = combinations(spec, str(path), num_seeds)
    check_table(spec, every, str(path))
    cells = make_cells(spec, path, every, others)
    keys = {id(cell.combination): cell.key for cell in cells}
    folder = spec.folder
    before = _planned_before(folder, spec)
    kept = _kept_runs(before, set(keys.values())) if before else []
    trained = {key for run in kept for key in run.cells.values()}
    new = make_runs(
        [cell for cell in cells if cell.key not in trained],
        cells,
        spec.name,
        spec.students_per_run,
        taken=[file.parent.name for file in folder.glob(f"*/{RECIPE_FILE}")],
    )
    _refuse_publishing([*kept, *new], str(path))
    placed = [
        Run(run.name, run.cells, run.trunk, _placed(run, folder)) for run in new if run.recipe
    ]
    stored = {run.name: run for run in kept}
    # In the order of before: the tasks of an array that still wait name their jobs by number.
    order = {run.name: place for place, run in enumerate(before.runs)} if before else {}
    in_order = sorted([*kept, *placed], key=lambda run: order.get(run.name, len(order)))
    runs = [stored.get(run.name, run) for run in with_trunks(in_order)]
    listed = [(each, keys.get(id(each))) for each in every]
    return StudyPlan(spec, folder, listed, runs, (*notes_of(cells), *_left_out(before, runs)))


def _left_out(before: StudyPlan | None, runs: Sequence[Run]) -> list[str]:
    """Returns a sentence about runs that have begun and train no cell of the study any more."""
    if before is None:
        return []
    names = {run.name for run in runs}
    begun = [each for each in before.runs if before.state(each) != "new"]
    left = [run.name for run in begun if run.name not in names]
    if not left:
        return []
    return [
        f"{', '.join(left)}: trained before, with settings that this study does not have any more;"
        f" the folders stay in {before.folder}, and the table leaves them out"
    ]


def _refuse_publishing(runs: Sequence[Run], where: str) -> None:
    """Raises InputError if several runs would publish to one repository."""
    repos = [run.recipe.log.publish.repo for run in runs if run.recipe and run.recipe.log.publish]
    for repo in repos:
        if repos.count(repo) > 1:
            raise InputError(
                f"{where}: log.publish.repo: {len(repos)} runs of this study would publish to"
                f" {repo}: set log.publish=null, and publish the best with distill publish"
            )


def _placed(run: Run, folder: Path) -> Recipe:
    assert run.recipe
    return run.recipe.model_copy(update={"output": str(folder / run.name)})


def _planned_before(folder: Path, spec: StudySpec) -> StudyPlan | None:
    """Returns the plan in the folder of a study; None if it has none yet.

    Raises:
        InputError: the folder is of another study, or of something else.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file: give the study another folder with output=")
    if not is_study(folder):
        if foreign := [entry.name for entry in folder.iterdir() if entry.name[0] != "."]:
            raise InputError(
                f"{folder}: is not the folder of a study, since it holds {foreign[0]!r} and no"
                f" {STUDY_FILE}: give the study another folder with output="
            )
        return None
    before = read_plan(folder)
    if before.spec.name != spec.name:
        raise InputError(
            f"{folder}: is the folder of the study {before.spec.name!r}, and this one is"
            f" {spec.name!r}: give it another folder with output="
        )
    return before


def _kept_runs(before: StudyPlan, wanted: set[str]) -> list[Run]:
    """Returns the runs that have begun and train a wanted cell."""
    return [
        Run(run.name, run.cells, run.trunk, before.recipe(run))
        for run in before.runs
        if before.state(run) != "new" and wanted & set(run.cells.values())
    ]


def is_study(folder: Path) -> bool:
    """Whether a folder is that of a study."""
    return (folder / STUDY_FILE).is_file()


def write_plan(plan: StudyPlan) -> None:
    """Writes a plan, with the recipe of each new run, into the folder of the study.

    Raises:
        WriteError: the folder cannot be written.
    """
    tree = {
        "format": FORMAT,
        "study": plan.spec.model_dump(mode="json"),
        "cells": [
            {
                "labels": dict(each.labels),
                "axes": dict(each.axes),
                "seeds": sorted(each.seeds),
                "key": key,
            }
            for each, key in plan.cells
        ],
        "runs": [
            {"name": run.name, "cells": dict(run.cells), "trunk": run.trunk} for run in plan.runs
        ],
    }
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        for run in plan.runs:
            if run.recipe is not None and plan.state(run) == "new":
                replace_text(plan.recipe_file(run), dump_recipe(run.recipe))
        replace_text(plan.folder / STUDY_FILE, json.dumps(tree, indent=1) + "\n")
    except OSError as error:
        raise write_error(plan.folder, error) from error


def read_plan(folder: Path) -> StudyPlan:
    """Returns the plan in the folder of a study.

    Raises:
        InputError: it is damaged, or of a newer version.
    """
    file = folder / STUDY_FILE
    try:
        tree: Any = json.loads(file.read_text(encoding="utf-8"))
        if tree["format"] != FORMAT:
            raise InputError(f"{file}: is of another version of this package")
        spec = validated(tree["study"], str(file))
        cells = [
            (
                Combination(
                    each["labels"],
                    each["axes"],
                    {} if each["key"] is not None else None,
                    frozenset(each["seeds"]),
                ),
                each["key"],
            )
            for each in tree["cells"]
        ]
        runs = [Run(each["name"], each["cells"], each["trunk"]) for each in tree["runs"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{file}: damaged ({error}): move {folder} away, or give the study another folder with"
            " output="
        ) from error
    return StudyPlan(spec, folder, cells, runs)
