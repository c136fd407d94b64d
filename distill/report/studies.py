"""The studies of a report: their tables, and their runs."""

from collections.abc import Sequence
from pathlib import Path

from distill.checkpoint.layout import RECIPE_FILE
from distill.errors import InputError
from distill.report.records import NothingRecordedError, RunRecords, read_run
from distill.study.progress import study_table
from distill.study.render import Rendered, rendered
from distill.study.stored import is_study, read_plan


def expand_studies(folders: Sequence[Path]) -> tuple[list[RunRecords], list[Rendered]]:
    """Returns the records of runs, with those of each study in place of its folder, and the tables
    of the studies.

    Raises:
        InputError: a folder is neither a run nor a study, or has recorded nothing yet.
    """
    runs: list[RunRecords] = []
    tables: list[Rendered] = []
    for folder in folders:
        if not is_study(folder):
            runs.append(read_run(folder))
            continue
        plan = read_plan(folder)
        tables.append(rendered(study_table(plan)[0]))
        outputs = [plan.output(run) for run in plan.runs]
        begun = [output for output in outputs if (output / RECIPE_FILE).is_file()]
        found = [records for output in begun if (records := _read(output))]
        if not found:
            raise InputError(
                f"{folder}: no run of this study has recorded anything yet: distill study {folder}"
                " --table prints its table"
            )
        runs += found
    return runs, tables


def _read(folder: Path) -> RunRecords | None:
    """Returns the records of a run of a study; None if it has recorded nothing yet."""
    try:
        return read_run(folder)
    except NothingRecordedError:
        return None
