"""Which cells become the students of one run, their names, and what a changed study keeps."""

from pathlib import Path
from typing import Any

import pytest
from studies import write_study

from distill.checkpoint.layout import RECIPE_FILE, REPORT_FILE
from distill.recipe import load_recipe, recipe_fingerprint
from distill.recipe.text import parse
from distill.study.axes import label_of, same_label, yaml_text
from distill.study.cells import cell_key
from distill.study.fleets import Run
from distill.study.stored import StudyPlan, plan_study, read_plan, write_plan

METHODS = {"student": ["alone", "kd"], "optimizer.lr": [0.05, 0.002]}


def planned(
    folder: Path, study: dict[str, Any], *changes: dict[str, Any], **keys: Any
) -> StudyPlan:
    return plan_study(str(write_study(folder, study, *changes)), **keys)


def fleets(plan: StudyPlan) -> dict[str, list[str]]:
    return {run.name: list(run.cells) for run in plan.runs}


def test_settings_of_students_are_one_run(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"axes": METHODS})
    assert fleets(plan) == {"all": ["alone-0p05", "alone-2e-3", "kd-0p05", "kd-2e-3"]}
    recipe = plan.recipe(plan.runs[0])
    assert recipe.students["kd-2e-3"].optimizer.lr == 0.002
    assert recipe.students["kd-2e-3"].objective.soft is not None
    assert recipe.students["alone-0p05"].objective.soft is None
    assert recipe.output == str(tmp_path / "out/all")


@pytest.mark.parametrize(
    ("axis", "names"),
    [
        ({"seed": [0, 1]}, ["seed0", "seed1"]),
        ({"data.fraction": [0.02, 0.03]}, ["fraction0p02", "fraction0p03"]),
        (
            {"train.budget": ["2 iterations", "3 iterations"]},
            ["budget2-iterations", "budget3-iterations"],
        ),
        ({"teacher.dtype": ["fp32", "bf16"]}, ["fp32", "bf16"]),
    ],
)
def test_settings_of_the_run_are_runs(
    axis: dict[str, Any], names: list[str], tmp_path: Path
) -> None:
    plan = planned(tmp_path, {"axes": {**METHODS, **axis}})
    students = ["alone-0p05", "alone-2e-3", "kd-0p05", "kd-2e-3"]
    assert fleets(plan) == dict.fromkeys(names, students)


def test_other_teachers_are_runs_and_readers_of_them_students(tmp_path: Path) -> None:
    random = {"model": "cifar_resnet14", "weights": "random"}
    two = {"teacher": None, "teachers": {"big": random, "wide": {**random, "dtype": "bf16"}}}
    readers = {
        "mean": {},
        "losses": {"objective.combine": "losses"},
        "big": {"objective.soft_teachers": {"big": 1}},
        "hint": {"objective": {"hint": {"loss": "rkd"}, "hint_teacher": "wide"}},
    }
    axes = {"student": ["kd"], "reader": readers}
    plan = planned(tmp_path, {"axes": axes, "set": two})
    assert fleets(plan) == {"all": ["mean", "losses", "big", "hint"]}
    recipe = plan.recipe(plan.runs[0])
    assert recipe.teachers_of("big") == ("teacher/big",)
    assert recipe.students["hint"].objective.hint_teacher == "wide"
    pairs = {"fp32": {**two}, "bf16": {**two, "teachers.big.dtype": "bf16"}, "one": {}}
    plan = planned(tmp_path, {"axes": {"student": ["kd"], "teachers": pairs}})
    assert fleets(plan) == {"fp32": ["kd"], "bf16": ["kd"], "one": ["kd"]}
    rows = [[*plan.recipe(run).teacher_rows] for run in plan.runs]
    assert rows == [["teacher/big", "teacher/wide"]] * 2 + [["teacher"]]


def test_seeds_of_students_are_one_run(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"axes": {"student": ["kd"], "student.seed": [0, 1, 2]}})
    assert fleets(plan) == {"all": ["0", "1", "2"]}
    plan = planned(tmp_path, {"axes": {"student": ["kd"], "student.seed": [0]}}, num_seeds=2)
    assert fleets(plan) == {"all": ["0", "1"]}
    plan = planned(tmp_path, {"axes": {"student": ["kd"]}}, num_seeds=2)
    assert [plan.recipe(run).seed for run in plan.runs] == [0, 1]


def test_a_cell_is_the_recipe_with_its_overrides(tmp_path: Path) -> None:
    axes = {"method": {"soft": {"student": "kd", "objective": {"soft": {"loss": "dkd"}}}}}
    plan = planned(
        tmp_path,
        {"axes": axes, "set": {"train.budget": "5 iterations", "optimizer": {"lr": 0.3}}},
        overrides=["evaluate.every=2 iterations"],
    )
    by_hand = load_recipe(
        tmp_path / "base.yaml",
        [
            *("students.alone=null", "students.kd.objective.soft.loss=dkd"),
            *("students.kd.optimizer.lr=0.3", "train.budget=5 iterations"),
            "evaluate.every=2 iterations",
        ],
    )
    (run,) = plan.runs
    assert fleets(plan) == {"all": ["kd"]}
    assert recipe_fingerprint(plan.recipe(run)) == recipe_fingerprint(by_hand)
    assert list(run.cells.values()) == [cell_key(by_hand, "kd")]


def test_values_listed_and_not_run(tmp_path: Path) -> None:
    axes = {"method": {"kd": {"student": "kd"}, "cc": None}, "optimizer.lr": [0.1, 0.2]}
    plan = planned(tmp_path, {"axes": axes})
    assert [key is None for _, key in plan.cells] == [False, False, True, True]
    assert fleets(plan) == {"all": ["0p1", "0p2"]}


def test_skip_and_include(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        {
            "axes": METHODS,
            "skip": [{"student": "alone"}, {"optimizer.lr": ["5e-2"]}],
            "include": [{"student": "alone", "optimizer.lr": 0.05}],
        },
    )
    kept = [(each.labels["student"], each.labels["optimizer.lr"]) for each, _ in plan.cells]
    assert kept == [("alone", "0.05"), ("kd", "2e-3")]


def test_values_that_set_several_keys(tmp_path: Path) -> None:
    pairs = [{"optimizer.lr": 2e-3, "optimizer.weight_decay": wd} for wd in (0.02, 0.03)]
    plan = planned(tmp_path, {"axes": {"student": ["kd"], "pair": pairs}})
    assert fleets(plan) == {"all": ["2e-3-0p02", "2e-3-0p03"]}
    assert plan.cells[1][0].labels["optimizer.weight_decay"] == "0.03"


def test_a_recipe_as_an_axis(tmp_path: Path) -> None:
    study = {
        "recipe": None,
        "axes": {
            "student": ["kd", "dkd"],
            "recipe": ["imagenet1k/res50_beitv2l_a2_300ep", "imagenet1k/res50_beitv2l_a1_600ep"],
        },
        "skip": [{"student": "dkd", "recipe": "imagenet1k/res50_beitv2l_a1_600ep"}],
    }
    plan = planned(tmp_path, study)
    assert [(list(run.cells), plan.recipe(run).budgets) for run in plan.runs] == [
        (["kd", "dkd"], "300 epochs"),
        (["kd"], "600 epochs"),
    ]


def test_fleets_have_a_limit(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"axes": METHODS, "students_per_run": 3})
    assert fleets(plan) == {
        "all-1": ["alone-0p05", "alone-2e-3"],
        "all-2": ["kd-0p05", "kd-2e-3"],
    }


BUDGETS = {"train.budget": ["16 iterations", "8 iterations"]}
COOLING = {"set": {"schedule": {"name": "constant", "cooldown": "25%"}}}


def trunks(plan: StudyPlan) -> list[list[tuple[str, str | None]]]:
    return [[(run.name.split("-")[0], run.trunk) for run in job] for job in plan.jobs]


def test_budgets_share_a_trunk_where_the_schedule_allows_it(tmp_path: Path) -> None:
    shared = planned(tmp_path, {**COOLING, "axes": {**METHODS, **BUDGETS}})
    assert trunks(shared) == [[("budget8", None), ("budget16", "budget8-iterations")]]
    cosine = planned(tmp_path, {"axes": {**METHODS, **BUDGETS}})
    assert trunks(cosine) == [[("budget16", None)], [("budget8", None)]]
    seeds = planned(tmp_path, {**COOLING, "axes": {"student": ["kd"], **BUDGETS, "seed": [0, 1]}})
    assert trunks(seeds) == [
        [("budget8", None), ("budget16", f"budget8-iterations-seed{seed}")] for seed in (0, 1)
    ]


def test_other_units_share_no_trunk(tmp_path: Path) -> None:
    budgets = {"train.budget": ["8 iterations", "4 epochs"]}
    plan = planned(tmp_path, {**COOLING, "axes": {"student": ["kd"], **budgets}})
    assert [run.trunk for run in plan.runs] == [None, None]


def begin(plan: StudyPlan, run: Run) -> None:
    plan.output(run).mkdir()
    (plan.output(run) / RECIPE_FILE).write_text(plan.recipe_file(run).read_text())


def test_a_study_that_grows_keeps_the_runs_that_have_begun(tmp_path: Path) -> None:
    first = planned(tmp_path, {"axes": {"student": ["kd"], "optimizer.lr": [0.1], "seed": [0, 1]}})
    write_plan(first)
    begin(first, first.runs[0])
    grown = {"axes": {"student": ["kd", "alone"], "optimizer.lr": [0.1, 0.2], "seed": [0, 1]}}
    plan = planned(tmp_path, grown)
    assert plan.runs[0].cells == first.runs[0].cells
    assert plan.state(plan.runs[0]) == "started"
    assert [len(run.cells) for run in plan.runs] == [1, 4, 3]
    assert len({key for run in plan.runs for key in run.cells.values()}) == 8
    write_plan(plan)
    stored = read_plan(plan.folder)
    assert fleets(stored) == fleets(plan)
    assert stored.recipe(stored.runs[1]) == plan.recipe(plan.runs[1])
    again = planned(tmp_path, grown)
    assert fleets(again) == fleets(plan)


def test_jobs_keep_their_numbers(tmp_path: Path) -> None:
    """The tasks of an array that still wait name their jobs by number."""
    axes = {"student": ["kd"], "seed": [0, 1, 2]}
    plan = planned(tmp_path, {"axes": axes})
    write_plan(plan)
    begin(plan, plan.runs[0])
    begin(plan, plan.runs[2])
    again = planned(tmp_path, {"axes": axes})
    assert [run.name for run in again.runs] == ["seed0", "seed1", "seed2"]
    assert [again.state(run) for run in again.runs] == ["started", "new", "started"]
    more = planned(tmp_path, {"axes": {"student": ["kd"], "seed": [3, 0, 1, 2]}})
    assert [run.name for run in more.runs] == ["seed0", "seed1", "seed2", "seed3"]


def test_runs_that_no_cell_names_any_more_are_noted(tmp_path: Path) -> None:
    axes = {"student": ["kd"], "seed": [0, 1]}
    plan = planned(tmp_path, {"axes": axes})
    write_plan(plan)
    begin(plan, plan.runs[1])
    assert not planned(tmp_path, {"axes": axes}).notes
    (note,) = planned(tmp_path, {"axes": axes, "set": {"train.budget": "3 epochs"}}).notes
    assert note.startswith("seed1: trained before, with settings that this study does not have")


def test_states(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"axes": METHODS})
    write_plan(plan)
    (run,) = plan.runs
    assert plan.state(run) == "new"
    begin(plan, run)
    assert plan.state(run) == "started"
    (plan.output(run) / REPORT_FILE).write_text("{}")
    assert plan.state(run) == "done"


@pytest.mark.parametrize(
    ("value", "label"),
    [(2e-3, "2e-3"), (1.5e-4, "1.5e-4"), (0.02, "0.02"), (0.0, "0"), (3, "3"), (True, "true"),
     (1e30, "1e30"), (None, "null"), ("a b", "a b"), ([1, 2], "[1, 2]")],
)  # fmt: skip
def test_labels_are_as_papers_write_them(value: Any, label: str) -> None:
    assert label_of(value) == label
    assert same_label("0.0020") == same_label("2e-3") == "2e-3"
    assert parse(yaml_text(value)) == value
