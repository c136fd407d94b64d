"""The studies of the package: each is sound, and has the numbers of the paper.

The numbers are checked against the recipes' comments, which were transcribed apart from them.
"""

import re
from functools import cache
from pathlib import Path

import pytest

from distill.recipe import load_recipe, recipes_dir, shipped_studies
from distill.study.progress import study_table
from distill.study.stored import StudyPlan, plan_study
from distill.training.check import check_recipe

FILES = [recipes_dir() / "studies" / f"{name}.yaml" for name in shipped_studies()]
PAPER = [path for path in FILES if path.stem.startswith(("table", "figure"))]
each_study = pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)


@cache
def planned(name: str) -> StudyPlan:
    return plan_study(name, ["output=runs/of-no-study"])


def test_every_table_has_its_study() -> None:
    tables = {"1a", "1b", "3", "4", "5", "6_res50", "6_deit_s", "7", "8", "9", "13", "14", "15"}
    others = {"figure1", "hints_miniature", "quickstart"}
    assert {*shipped_studies()} == {f"table{name}" for name in tables} | others


@each_study
def test_a_study_opens_with_its_claim(path: Path) -> None:
    comment = path.read_text().partition("name:")[0]
    assert re.match(r"# (Table \d+|Figure 1)", comment)
    assert f"# Command:  distill study {path.stem}" in comment
    assert "# Measured: not run" in comment
    assert "# Hardware: " in comment


@each_study
def test_the_papers_numbers_are_those_of_the_recipes(path: Path) -> None:
    """Each cell's number stands in the comment of the recipe that trains it, by its student."""
    plan = planned(path.stem)
    table, _ = study_table(plan)
    run_of = {key: (run, name) for run in plan.runs for name, key in run.cells.items()}
    entries = {
        place: entry
        for place, entry in table.entries.items()
        if entry.paper is not None and not entry.signed and entry.figure != "device_hours"
    }
    numbers = [entry.paper for entry in entries.values()]
    assert len(numbers) >= sum(key is not None for _, key in plan.cells), "each cell has a number"
    assert run_of.keys() == {key for _, key in plan.cells if key is not None}
    comments = "\n".join(
        file.read_text()
        for folder in ("imagenet1k", "imagenet21k", "cifar100")
        for file in sorted((recipes_dir() / folder).glob("*.yaml"))
    )
    known = set(re.findall(r"\d\d\.\d\d", comments))
    for (row, _), entry in entries.items():
        assert f"{entry.paper:.2f}" in known, (table.rows[row], entry.paper)


def test_hint_rows_of_table_3_learn_as_in_their_recipes() -> None:
    for run, stem in (
        ("A2-79p80-300-Res152", "res50_res152_a2_300ep_hints"),
        ("A2-79p80-300-BEiTv2-L", "res50_beitv2l_a2_300ep_hints"),
        ("A1-80p38-600-Res152", "res50_res152_a1_600ep_hints"),
    ):
        (found,) = (each.recipe for each in planned("table3").runs if each.name == run)
        assert found
        expected = load_recipe(f"imagenet1k/{stem}")
        assert (found.data, found.teacher) == (expected.data, expected.teacher)
        for name in ("CC", "RKD", "CRD", "ReviewKD"):
            assert found.students[name] == expected.students[name.lower()]


def test_tables_have_the_papers_shape() -> None:
    shapes = {
        "table1a": (8, 2), "table1b": (8, 2), "table3": (17, 7), "table4": (8, 1),
        "table5": (13, 3), "table6_res50": (5, 3), "table6_deit_s": (5, 6), "table7": (2, 2),
        "table8": (4, 4), "table9": (6, 3), "table13": (3, 4), "table14": (10, 1),
        "table15": (20, 1), "figure1": (4, 4),
    }  # fmt: skip
    for name, shape in shapes.items():
        table, _ = study_table(planned(name))
        assert (len(table.rows), len(table.columns)) == shape, name


def test_table_3_has_the_papers_columns() -> None:
    """Scheme, Method, Hint, Epoch, GPU hours, then the accuracies under both teachers."""
    table, _ = study_table(planned("table3"))
    assert table.row_names == ("Scheme", "Method", "Hint", "Epoch")
    assert table.columns[0] == ("", "GPU hours")
    assert table.columns[1] == ("Res152 teacher", "IN-1K")
    hints = {method: hint for _, method, hint, _ in table.rows}
    assert [method for method, hint in hints.items() if hint == "✓"] == [
        "CC", "RKD", "CRD", "ReviewKD",
    ]  # fmt: skip
    assert set(hints.values()) == {"✓", "×"}
    assert [row[3] for row in table.rows] == ["300"] * 7 + ["600"] * 7 + ["1200"] * 3
    hours = [table.entries[row, 0].paper for row in range(17)]
    assert hours == [
        265, 282, 307, 439, 265, 265, 264, 529, 564, 513, 877, 529, 529, 529, 1059, 1058, 1057,
    ]  # fmt: skip
    assert not any(table.entries[row, 0].paper_best for row in range(17))


def test_table_4_has_the_papers_order() -> None:
    table, _ = study_table(planned("table4"))
    assert table.row_names == ("Epoch", "Hard Label", "Soft Label")
    assert [row[1:] for row in table.rows[:4]] == [
        ("CE", "KL"), ("BCE", "KL"), ("-", "KL"), ("CE", "BKL"),
    ]  # fmt: skip


def test_what_is_shared_is_trained_once() -> None:
    assert [len(run.cells) for run in planned("table5").runs] == [13, 13, 13]
    assert [len(run.cells) for run in planned("table6_res50").runs] == [15]
    assert {key for _, key in planned("figure1").cells} == {
        key for _, key in planned("table13").cells
    }
    assert planned("figure1").spec.name == planned("table13").spec.name


def test_the_differences_are_the_papers() -> None:
    """Of Table 1 and Figure 1, which print them."""
    for name, printed in (
        ("table1a", {-1.41, -0.06, -4.66, -0.03}),
        ("table1b", {-1.31, -2.17, -2.99, -2.25}),
    ):
        table, _ = study_table(planned(name))
        found = {round(e.paper or 0, 2) for e in table.entries.values() if e.signed}
        assert found == printed


def test_the_best_of_table_15_is_that_of_each_method() -> None:
    table, _ = study_table(planned("table15"))
    best = {table.rows[row][0]: e.paper for (row, _), e in table.entries.items() if e.paper_best}
    assert best == {"DKD": 80.96, "DIST": 81.01}
    assert sum(e.paper_best for e in table.entries.values()) == 2


@pytest.mark.parametrize("name", ["quickstart", "table1b"])  # the others are among the slow ones
def test_the_smallest_run_of_a_study_is_sound(name: str) -> None:
    plan = planned(name)
    check_recipe(plan.recipe(min(plan.runs, key=lambda run: len(run.cells))))


@pytest.mark.slow
@each_study
def test_every_run_is_sound(path: Path) -> None:
    plan = planned(path.stem)
    for run in plan.runs:
        check_recipe(plan.recipe(run))
