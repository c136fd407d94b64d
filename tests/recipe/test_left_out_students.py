"""null instead of a mapping removes a student or a teacher from a recipe."""

from pathlib import Path

import pytest

from distill.errors import InputError
from distill.recipe import load_recipe


def test_null_leaves_a_student_out(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart/students", ["students.dkd=null"])
    assert list(recipe.students) == ["alone", "kd", "dist"]
    path = tmp_path / "mine.yaml"
    path.write_text(
        "extends: quickstart/students\nname: mine\nstudents: {dkd: null, alone: null}\n"
    )
    recipe = load_recipe(path)
    assert list(recipe.students) == ["kd", "dist"]
    assert load_recipe("quickstart/students").students["kd"] == recipe.students["kd"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            [f"students.{name}=null" for name in ("alone", "kd", "dkd", "dist")],
            "students.dist: null removes a student",
        ),
        (["students.dkd=null", "students.dkd.seed=1"], "no student 'dkd'"),
        (["students.dkd="], "no value: write students.dkd=null"),
        (["students.dkk=null"], r"students.dkk: null removes a student.* \(did you mean 'dkd'"),
    ],
)
def test_null_that_cannot_be(overrides: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_recipe("quickstart/students", overrides)


def test_a_file_that_removes_a_student_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: quickstart/students\nname: mine\nstudents: {dkk: null}\n")
    with pytest.raises(InputError, match=r"mine.yaml: students.dkk: null removes"):
        load_recipe(path)


def test_a_left_out_student_takes_its_part_of_stages_with_it() -> None:
    recipe = load_recipe(
        "imagenet21k/res50_beitv2b_a1_187p5k_187p5k_confident", ["students.sure0p3=null"]
    )
    assert list(recipe.students) == ["kd", "sure0p1", "sure0p5"]
    assert all(list(stage.students) == ["kd", "sure0p1", "sure0p5"] for stage in recipe.stages)


def test_null_in_a_stage_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"stages\.in1k\.students\.kd: should be a mapping of keys"
    ):
        load_recipe("imagenet21k/res50_beitv2b_a1_187p5k_187p5k", ["stages.in1k.students.kd=null"])


TEACHERS = """extends: quickstart/students
name: mine
teacher: null
teachers:
  big: {model: cifar_resnet56, weights: random}
  small: {model: cifar_resnet8, weights: random}
"""


def test_null_leaves_a_teacher_out(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(TEACHERS)
    recipe = load_recipe(path, ["teachers.small=null"])
    assert list(recipe.teacher_rows) == ["teacher/big"]
    (tmp_path / "next.yaml").write_text("extends: mine.yaml\nteachers: {big: null}\n")
    assert list(load_recipe(tmp_path / "next.yaml").teacher_rows) == ["teacher/small"]
    single = ["teachers.big=null", "teachers.small=null", "teacher={model: cifar_resnet8}"]
    assert list(load_recipe(path, single).teacher_rows) == ["teacher"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["teachers.smal=null"], r"teachers.smal: null removes a teacher.* \(did you mean 'small'"),
        (["teachers.smal.dtype=bf16"], r"no teacher 'smal' \(did you mean 'small'\?\); .*adds one"),
        (
            ["teachers.small=null", "student.objective.soft_teachers={small: 1}"],
            r"soft_teachers: no teacher 'small'; there are big",
        ),
        (["teachers.small=null", "teachers.big=null"], r"learns from a teacher, and teacher is"),
    ],
)
def test_a_teacher_that_is_not_there(overrides: list[str], says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(TEACHERS)
    with pytest.raises(InputError, match=says):
        load_recipe(path, overrides)
