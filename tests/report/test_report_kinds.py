"""Runs of every kind have a page: stages, no evaluation set, no teacher, a student that stopped,
images without labels, many classes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from predicted import predicted
from tables import Page

from distill.report.classes import class_gains, confusion_matrix, worst_classes
from distill.report.content import Options
from distill.report.records import read_run
from distill.report.write import write_report

SHORT: dict[str, Any] = {"train": {"budget": "2 iterations"}, "evaluate": {"every": "1 iterations"}}
STAGED: dict[str, Any] = {
    "train": {"budget": None},
    "students": {"kd": {"objective": {"hard": {"loss": "ce"}}}},
    "stages": [
        {
            "name": "soft",
            "budget": "2 iterations",
            "students": {"kd": {"objective": {"hard": None, "soft": {"loss": "kl"}}}},
        },
        {"name": "hard", "budget": "2 iterations"},
    ],
}


def page_of(folder: Path, *changes: dict[str, Any], options: Options | None = None) -> Page:
    recipe = tiny.write_recipe(folder, SHORT, *changes)
    assert tiny.run(recipe) in (0, 3)
    return Page(write_report([folder / "run"], None, options)[0])


def test_a_run_with_stages_says_what_each_learned_from(tmp_path: Path) -> None:
    page = page_of(tmp_path, STAGED)
    rows = {row[0].split("\n")[0]: row[0].split("\n")[-1] for row in page.table("Final results")}
    assert rows["kd"] == "1 kl, then 1 ce"
    assert page.fact("training data of stage soft").startswith("120 images: fashion_mnist train")
    assert page.fact("budget") == "2 iterations of soft + 2 iterations of hard"


def test_a_run_without_evaluation_set_has_curves_and_no_classes(tmp_path: Path) -> None:
    page = page_of(tmp_path, {"data": {"eval": None}})
    assert "does not say what to evaluate it on" in page.text
    assert [row[1:] for row in page.table("Final results")[1:]] == [["–", "–", "–"]]
    assert "Loss, total" in page.text
    assert "images right" not in page.text


def test_a_run_without_teacher_shows_what_the_student_gets_wrong(tmp_path: Path) -> None:
    page = page_of(tmp_path, {"teacher": None})
    assert "Images that the student gets wrong" in page.text
    assert "agrees %" not in page.text
    assert "Every class" not in page.text


def test_a_student_that_stopped_is_marked(tmp_path: Path) -> None:
    students = {"good": {}, "bad": {"optimizer": {"lr": 1e30}}}
    page = page_of(tmp_path, {"students": students}, options=Options(predictions=False))
    rows = [row[0] for row in page.table("Final results")]
    stopped = next(row for row in rows if row.startswith("bad"))
    assert "stopped at step 2: its loss was not finite" in stopped
    assert "bad: the loss of step 2 is not finite" in page.text


def test_a_run_without_labels_says_why_classes_are_left_out(tmp_path: Path) -> None:
    page = page_of(
        tmp_path,
        {
            "evaluate": {"metric": "agreement"},
            "students": {"kd": {"objective": {"hard": None, "soft": {"loss": "kl"}}}},
        },
        options=Options(predictions=False),
    )
    assert "best agrees %" in [cell for row in page.table("Final results") for cell in row]
    assert page.fact("best weights by") == "agreement"


@pytest.mark.parametrize("num_classes", [1000, 21843])
def test_many_classes_take_little_memory_and_show_the_worst(num_classes: int) -> None:
    random = np.random.default_rng(0)
    label = np.repeat(np.arange(num_classes), 2)
    named = np.where(
        random.random(len(label)) < 0.7, label, random.integers(0, num_classes, len(label))
    )
    student, perfect = predicted(label, named), predicted(label, label)
    names = [f"class {i}" for i in range(num_classes)]
    worst = worst_classes(student, perfect, names, 8)
    assert [each.right for each in worst] == [0.0] * 8
    assert {each.teacher for each in worst} == {100.0}
    matrix = confusion_matrix(student, names, 8)
    assert matrix is not None
    assert matrix.counts.shape == (8, 9)
    assert matrix.counts.sum() == 16
    gains = class_gains(student, perfect, names)
    assert len(gains) == num_classes
    assert gains[-1].gain == -100.0


def test_a_page_is_written_before_a_run_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.write_recipe(tmp_path, {"log": {"gradient_norms": True}})
    tiny.stop_after(5, monkeypatch)
    assert tiny.run(recipe) == 75
    run = tmp_path / "run"
    assert not read_run(run).finished
    first = Page(write_report([run])[0])
    assert "Unfinished: records up to step 5" in first.text
    assert "images right" in first.text
    assert "Gradient norm, total" in first.text
    assert tiny.run(recipe) == 0
    assert "Finished: 8 steps" in Page(write_report([run])[0]).text
