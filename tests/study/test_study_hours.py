"""Columns that a row has once, such as hours of the run, and rows in another order."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from command import Cli
from studies import write_study
from test_study_table import report

from distill.errors import InputError
from distill.study.progress import study_table
from distill.study.render import csv_text, latex, markdown, ours, paper, rendered
from distill.study.stored import StudyPlan, plan_study, write_plan

TABLE: dict[str, Any] = {
    "rows": ["scheme", "method", "hint"],
    "sort": ["scheme", "hint"],
    "columns": ["optimizer.lr"],
    "row_values": {"GPU hours": "device_hours"},
    "row_values_of": {"optimizer.lr": "0.1"},
    "value": {"Acc.": "top1"},
    "best": ["method", "hint"],
}
STUDY: dict[str, Any] = {
    "axes": {
        "method": [
            {"label": {"method": "KD", "hint": "×", "scheme": "A2"}, "student": "kd"},
            {"label": {"method": "CE", "hint": "✓", "scheme": "A2"}, "student": "alone"},
        ],
        "optimizer.lr": [0.05, 0.1],
    },
    "table": TABLE,
    "paper": {"A2": {"KD": {"×": [265, 70.5, 71.5]}, "CE": {"✓": [1264, 60.5, 61.5]}}},
}


def planned(folder: Path, **table: Any) -> StudyPlan:
    plan = plan_study(str(write_study(folder, {**STUDY, "table": TABLE | table})))
    write_plan(plan)
    return plan


def test_hours_of_the_run_stand_once_in_each_row(tmp_path: Path, cli: Cli) -> None:
    plan = planned(tmp_path)
    before, _ = study_table(plan)
    assert before.columns == [("", "GPU hours"), ("0.05", "Acc."), ("0.1", "Acc.")]
    assert ours(before.entries[0, 0], before) == "not run"
    assert [paper(before.entries[row, 0], before) for row in (0, 1)] == ["265", "1,264"]

    (run,) = plan.runs
    accuracies = {name: 50.0 + i for i, name in enumerate(run.cells)}
    report(plan, accuracies, device_hours=3.456, num_processes=8, device="NVIDIA H100")
    table, _ = study_table(plan)
    hours = [table.entries[row, 0] for row in (0, 1)]
    assert [ours(entry, table) for entry in hours] == ["3.46", "3.46"]
    assert not any(entry.best or entry.paper_best for entry in hours), "hours are not compared"
    assert "Hours are those of whole runs: 4 students on 8 x NVIDIA H100." in table.notes
    text = markdown(table).splitlines()
    assert text[2] == "| scheme | method | hint | GPU hours | 0.05 / Acc. | 0.1 / Acc. |"
    assert text[4].startswith("| A2 | KD | × | 3.46 (265) |")
    assert r"A2 & KD & $\times$ & 3.46 (265)" in latex(table)
    assert r" & CE & $\checkmark$ & 3.46 (1,264)" in latex(table)
    lines = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert lines[0]["value"] == "GPU hours"
    assert (lines[0]["mean"], lines[0]["paper"]) == ("3.456", "265")
    page = rendered(table)
    assert ("GPU hours", 1) in page.heads[-1]
    assert page.rows[0].cells[0].ours == "3.46"
    shown = cli("study", plan.folder, "--table")
    assert "3.46 (265)" in shown.out


def test_a_run_that_has_not_ended_has_no_hours(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    plan.output(plan.runs[0]).mkdir()
    (plan.output(plan.runs[0]) / "recipe.yaml").write_text("")
    table, _ = study_table(plan)
    assert ours(table.entries[0, 0], table) == "training"


def test_rows_are_grouped_by_other_dimensions_first(tmp_path: Path) -> None:
    axes = {
        "method": [
            {"label": {"method": "KD"}, "student": "kd"},
            {"label": {"method": "CE"}, "student": "alone"},
        ],
        "optimizer.lr": [0.05, 0.1],
    }
    table = {"rows": ["method", "optimizer.lr"], "sort": ["optimizer.lr"]}
    plan = plan_study(str(write_study(tmp_path, {"axes": axes, "table": table})))
    assert study_table(plan)[0].rows == [
        ("KD", "0.05"), ("CE", "0.05"), ("KD", "0.1"), ("CE", "0.1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row_values": {"GPU hours": "hours"}}, "table.row_values: no figure 'hours'"),
        ({"row_values_of": {"optimizer.lr": "0.2"}}, "row_values_of: optimizer.lr has no value"),
        ({"row_values_of": {"lr": "0.1"}}, "table.row_values_of: no axis and no key of one"),
        ({"row_values_of": {}}, "name one column with table.row_values_of"),
        ({"sort": ["optimizer.lr"]}, "table.sort: 'optimizer.lr' is not in table.rows"),
        ({"delta": {"method": "KD"}}, "table.sort: does not go with delta"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        planned(tmp_path, **changes)
