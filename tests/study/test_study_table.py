"""The table of a study: our figures beside the paper's, means over seeds, marks, and every form."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from command import Cli
from studies import write_study

from distill.checkpoint.layout import RECIPE_FILE, REPORT_FILE
from distill.study.marks import Entry
from distill.study.progress import study_table
from distill.study.render import csv_text, escape_latex, escape_markdown, latex, markdown, ours
from distill.study.stored import StudyPlan, plan_study, write_plan
from distill.study.table import Table

AXES = {
    "student": ["alone", "kd"],
    "optimizer.lr": [0.05, 2e-3],
    "student.seed": [0, 1, 2],
}
STUDY: dict[str, Any] = {
    "axes": AXES,
    "table": {
        "title": "Rates & methods",
        "rows": ["optimizer.lr"],
        "columns": ["student"],
        "best": "student",
        "names": {"optimizer.lr": "LR", "kd": "KD"},
    },
    "paper": {"0.05": [70.0, 71.5], "2e-3": [72.25, None]},
}


def report(plan: StudyPlan, top1: Mapping[str, float | None], **more: Any) -> None:
    """Write the report.json that a run leaves; None for a student that diverged."""
    (run,) = plan.runs
    folder = plan.output(run)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE_FILE).write_text(plan.recipe_file(run).read_text())
    students = {
        name: {
            "stopped_at": 5 if value is None else None,
            "last": {"top1": value} if value is not None else None,
            "best": {"metric": "top1", "top1": value + 1} if value is not None else None,
        }
        for name, value in top1.items()
    }
    content = {"run": plan.spec.name, "steps": 8, "students": students, **more}
    (folder / REPORT_FILE).write_text(json.dumps(content))


def planned(folder: Path, **changes: Any) -> StudyPlan:
    plan = plan_study(str(write_study(folder, {**STUDY, **changes})))
    write_plan(plan)
    return plan


VALUES = {
    "alone-0p05": (60.0, 61.0, 65.0),
    "alone-2e-3": (50.0, 50.0, 50.0),
    "kd-0p05": (70.0, 71.0, 72.0),
    "kd-2e-3": (40.0, 50.0, 45.0),
}


def results(**changes: Any) -> dict[str, float | None]:
    found = {f"{name}-{i}": each for name, own in VALUES.items() for i, each in enumerate(own)}
    return {**found, **changes}


@pytest.fixture
def table(tmp_path: Path) -> Table:
    plan = planned(tmp_path)
    report(plan, results())
    return study_table(plan)[0]


def test_means_and_deviations_over_seeds(table: Table) -> None:
    assert table.rows == [("0.05",), ("2e-3",)]
    assert table.columns == [("alone",), ("KD",)]
    shown = [[ours(table.entries[r, c], table) for c in (0, 1)] for r in (0, 1)]
    assert shown == [["62.00 ± 2.65", "71.00 ± 1.00"], ["50.00 ± 0.00", "45.00 ± 5.00"]]
    assert "Mean and standard deviation over seeds, n = 3." in table.notes
    best = [[table.entries[r, c].best for c in (0, 1)] for r in (0, 1)]
    assert best == [[False, True], [True, False]]
    paper = [[table.entries[r, c].paper_best for c in (0, 1)] for r in (0, 1)]
    assert paper == [[False, True], [False, False]], "one number alone is not the best"


def test_markdown(table: Table) -> None:
    assert markdown(table).splitlines() == [
        "**Rates \\& methods**",
        "",
        "| LR | alone | KD |",
        "| -- | --: | --: |",
        "| 0.05 | 62.00 ± 2.65 (70.00) | **71.00 ± 1.00** (**71.50**) |",
        "| 2e-3 | **50.00 ± 0.00** (72.25) | 45.00 ± 5.00 |",
        "",
        "Ours: top1 of the last evaluation.",
        "Mean and standard deviation over seeds, n = 3.",
        "In parentheses: the paper's.",
        "Bold: the best over student.",
    ]


def test_csv(table: Table) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert rows[1] == {
        "LR": "0.05", "student": "KD", "figure": "top1", "mean": "71", "deviation": "1", "n": "3",
        "values": "70 71 72", "paper": "71.5", "status": "done",
    }  # fmt: skip
    assert len(rows) == 4


def test_latex(table: Table) -> None:
    text = latex(table)
    assert r"\caption{Rates \& methods}" in text
    assert (
        r"0.05 & 62.00 $\pm$ 2.65 (70.00) & \textbf{71.00 $\pm$ 1.00} (\textbf{71.50}) \\" in text
    )
    assert text.count("&") - text.count(r"\&") == 3 * 2
    assert text.count(r"\begin") == text.count(r"\end") == 2


def test_what_is_not_done_says_so(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    entry = study_table(plan)[0].entries[0, 0]
    assert ours(entry, study_table(plan)[0]) == "not run"
    report(plan, results())
    (plan.output(plan.runs[0]) / REPORT_FILE).unlink()
    table, _ = study_table(plan)
    assert ours(table.entries[0, 0], table) == "training"


def test_seeds_that_are_lost_are_counted(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    lost = {f"kd-2e-3-{i}": None for i in range(3)}
    report(plan, results(**{"kd-0p05-1": None}, **lost))
    table, _ = study_table(plan)
    assert ours(table.entries[0, 1], table) == "71.00 ± 1.41 (n = 2), 1 diverged"
    assert ours(table.entries[0, 0], table) == "62.00 ± 2.65 (n = 3)"
    assert ours(table.entries[1, 1], table) == "diverged"
    assert "Mean and standard deviation over seeds, n as given." in table.notes


def test_a_damaged_report_is_named_and_not_run(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    report(plan, results())
    (plan.output(plan.runs[0]) / REPORT_FILE).write_text("{")
    table, damaged = study_table(plan)
    assert "report.json: damaged" in damaged[0]
    assert table.entries[0, 0].mean is None


def test_the_best_value_and_several_figures(tmp_path: Path) -> None:
    columns = {"last": "top1", "best": "best", "V2": "v2"}
    shape = {"rows": ["student"], "columns": ["optimizer.lr"], "value": columns}
    plan = planned(tmp_path, table=shape, paper={"kd": [1, 2, 3, None, None, 6]})
    report(plan, results())
    table, _ = study_table(plan)
    assert table.columns[:3] == [("0.05", "last"), ("0.05", "best"), ("0.05", "V2")]
    row = [ours(table.entries[1, c], table) for c in range(3)]
    assert row == ["71.00 ± 1.00", "72.00 ± 1.00", "not run"]
    assert [table.entries[1, c].paper for c in range(6)] == [1, 2, 3, None, None, 6]
    assert r"\multicolumn{3}{c}{0.05} & \multicolumn{3}{c}{2e-3} \\" in latex(table)


def test_gaps(tmp_path: Path) -> None:
    plan = planned(tmp_path, table={**STUDY["table"], "gap": {"student": "alone"}})
    report(plan, results())
    table, _ = study_table(plan)
    assert ours(table.entries[0, 1], table) == "71.00 ± 1.00 +9.00"
    assert table.entries[0, 0].gap is None
    assert "(**71.50 +1.50**)" in markdown(table)


def test_a_row_of_differences_below_each_group(tmp_path: Path) -> None:
    shape = {"rows": ["optimizer.lr", "student"], "delta": {"student": "kd"}}
    paper = {"0.05": {"alone": [70], "kd": [69]}, "2e-3": {"alone": [1]}}
    plan = planned(tmp_path, table=shape, paper=paper)
    report(plan, results())
    table, _ = study_table(plan)
    assert table.rows[2::3] == [("0.05", "Δ"), ("2e-3", "Δ")]
    assert [ours(table.entries[r, 0], table) for r in (2, 5)] == ["+9.00", "-5.00"]
    assert [table.entries[r, 0].paper for r in (2, 5)] == [-1, None]
    assert "Δ: kd less the best of the others." in table.notes
    assert "$\\Delta$" in latex(table)


def test_hostile_names_are_escaped(tmp_path: Path, cli: Cli) -> None:
    name = "[red]x|*_\u202e$"
    changed = {"student": {name: {"student": "kd"}}, "student.seed": [0]}
    plan = planned(tmp_path, axes=changed, table={"rows": ["student"], "title": name}, paper={})
    shown = cli("study", plan.folder, "--table")
    assert shown.code == 0
    assert "[red]x|*_\\u202e$" in shown.out
    assert "\u202e" not in markdown(study_table(plan)[0])
    assert escape_markdown("a|b") == "a\\|b"
    assert escape_latex("50%_\\") == r"50\%\_\textbackslash{}"
    assert cli("study", plan.folder, "--table", "--format", "csv").out.startswith("student,figure")


def test_one_value_has_no_deviation() -> None:
    assert Entry("top1", (3.0,)).deviation is None
    assert Entry("top1").mean is None
