"""Learning rates that follow the batch, and warm-ups that fit the budget: the values a run gets,
and what its user reads.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.errors import InputError
from distill.recipe import dump_recipe, load_recipe, read_recipe, recipe_digest
from distill.recipe.load import digest_today
from distill.recipe.stages import StageSpec
from distill.training.check import check_recipe

DATA = {"train": {"kind": "fashion_mnist", "split": "train"}}
STUDENT = {
    "model": "cifar_resnet8",
    "objective": {"hard": {"loss": "ce"}, "soft": None},
    "drop_path": 0.0,
}


@pytest.fixture
def on_a2(tmp_path: Path) -> Path:
    """A user's own recipe on strategy A2, of 300 epochs, which has 5 epochs of warm-up."""
    path = tmp_path / "mine.yaml"
    tree: dict[str, Any] = {
        "extends": "strategies/a2",
        "name": "mine",
        "data": DATA,
        "student": STUDENT,
        "students": {"one": {}},
        "train": {"budget": "300 epochs"},
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_rate_at_its_own_batch_needs_no_note(on_a2: Path) -> None:
    scaling = "student.optimizer.lr_scaling={rule: linear, batch_size: 256}"
    recipe, notes = read_recipe(on_a2, ["train.batch_size_global=256", scaling])
    assert notes == []
    assert recipe.at_stage(0).students["one"].optimizer.lr == 5e-3


@pytest.mark.parametrize(
    ("rule", "lr"),
    [("linear", 5e-3 * 256 / 2048), ("sqrt", 5e-3 * math.sqrt(256 / 2048)), (None, 5e-3)],
)
def test_lr_follows_the_batch(rule: str | None, lr: float, on_a2: Path) -> None:
    scaling = [f"student.optimizer.lr_scaling={{rule: {rule}, batch_size: 2048}}"] if rule else []
    recipe, notes = read_recipe(on_a2, ["train.batch_size_global=256", *scaling])
    assert recipe.at_stage(0).students["one"].optimizer.lr == pytest.approx(lr, rel=1e-12)
    assert recipe.at_stage(0).students["one"].optimizer.lr_scaling is None
    assert recipe.students["one"].optimizer.lr == 5e-3, "the recipe keeps what was written"
    (note,) = notes
    assert note.startswith("students.one.optimizer.lr: ")
    assert (
        f"= {lr:g}" in note
        if rule
        else "lr_scaling='{rule: linear, batch_size: 2048}' makes it 0.000625" in note
    )


def test_a_batch_of_the_strategy_needs_no_note(on_a2: Path) -> None:
    assert read_recipe(on_a2)[1] == []
    assert read_recipe(on_a2, ["train.batch_size_global=256", "student.optimizer.lr=1e-3"])[1] == []


def test_each_stage_scales_its_own_lr(on_a2: Path) -> None:
    stages = (
        "stages=[{name: a, budget: 20 epochs}, {name: b, budget: 20 epochs, student: {optimizer:"
        " {lr: 1e-3}}}]"
    )
    scaling = "student.optimizer.lr_scaling={rule: linear, batch_size: 1024}"
    recipe, notes = read_recipe(on_a2, ["train.budget=null", stages, scaling])
    assert [recipe.at_stage(index).students["one"].optimizer.lr for index in range(2)] == [
        1e-2,
        2e-3,
    ]
    assert [note.split(":")[0] for note in notes] == [
        "stages.a.students.one.optimizer.lr",
        "stages.b.students.one.optimizer.lr",
    ]
    # Another rule that comes to the same rate is no change of a carried optimizer.
    same = {"rule": "sqrt", "batch_size": 2048}
    override = f"stages.b.student.optimizer={{lr: 2e-3, lr_scaling: {same}}}"
    assert isinstance(
        load_recipe(on_a2, ["train.budget=null", stages, scaling, override]).stages[1], StageSpec
    )


def test_a_saved_recipe_without_the_key_continues(on_a2: Path) -> None:
    recipe = load_recipe(on_a2)
    text = dump_recipe(recipe)
    before = "\n".join(line for line in text.splitlines() if "lr_scaling" not in line)
    assert before != text
    assert digest_today(before) == recipe_digest(recipe)


# ---- warm-up -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "warmup"),
    [
        ("300 epochs", "5 epochs"),
        ("6 epochs", "5 epochs"),
        ("5 epochs", "0.25 epochs"),
        ("2 epochs", "0.1 epochs"),
    ],
)
def test_an_inherited_warmup_fits_the_budget(budget: str, warmup: str, on_a2: Path) -> None:
    recipe, notes = read_recipe(on_a2, [f"train.budget={budget}"])
    assert str(recipe.students["one"].schedule.warmup) == warmup
    if budget == "300 epochs":
        assert notes == []
    elif warmup == "5 epochs":
        (note,) = notes
        assert note.startswith(
            "students.one.schedule.warmup: 5 epochs of strategies/a2 is 83% of train.budget, 6"
            " epochs"
        )
    else:
        assert notes == [
            "students.one.schedule.warmup: 5 epochs of strategies/a2 is not shorter than"
            f" train.budget, {budget}: shortened to 5% of it, {warmup}"
        ]


@pytest.mark.parametrize(
    ("budget", "share", "warmup"),
    [
        ("10 epochs", "5%", "0.5 epochs"),
        ("1 epochs", "12.5 %", "0.125 epochs"),
        ("100 iterations", "5%", "5 iterations"),
        ("10 iterations", "5%", "0 iterations"),
        ("64k samples", "0%", "0 samples"),
    ],
)
def test_a_share_of_the_budget_is_a_duration(
    budget: str, share: str, warmup: str, on_a2: Path
) -> None:
    overrides = [f"train.budget={budget}", f"student.schedule.warmup={share}"]
    recipe, notes = read_recipe(on_a2, overrides)
    assert (str(recipe.students["one"].schedule.warmup), notes) == (warmup, [])


def test_a_share_in_stages_is_of_what_the_schedule_spans(on_a2: Path, tmp_path: Path) -> None:
    stages = "stages=[{name: a, budget: 4 epochs}, {name: b, budget: 40 epochs}]"
    shared = ["train.budget=null", stages, "student.schedule.warmup=10%"]
    for over, spans in (
        ("stage", ["0.4 epochs", "4 epochs"]),
        ("run", ["4.4 epochs", "4.4 epochs"]),
    ):
        recipe = load_recipe(on_a2, [*shared, f"student.schedule.over={over}"])
        assert [str(stage.students["one"].schedule.warmup) for stage in recipe.stages] == spans
        (tmp_path / "saved.yaml").write_text(dump_recipe(recipe))
        assert load_recipe(tmp_path / "saved.yaml") == recipe
    with pytest.raises(InputError, match=r"10% of all stages.*'500 iterations'"):
        load_recipe(on_a2, [*shared, "student.schedule.over=run", "stages.a.budget=9 iterations"])


@pytest.mark.parametrize("share", ["100%", "-5%", "%", "5 %%"])
def test_what_is_no_share_is_refused(share: str, on_a2: Path) -> None:
    with pytest.raises(InputError, match=r"students\.one\.schedule\.warmup: .* is no duration"):
        load_recipe(on_a2, [f"student.schedule.warmup='{share}'"])


def test_a_written_warmup_is_refused_with_the_override(on_a2: Path) -> None:
    with pytest.raises(InputError) as info:
        check_recipe(
            load_recipe(on_a2, ["train.budget=2 epochs", "student.schedule.warmup=5 epochs"])
        )
    assert (
        "students.one.schedule.warmup: 5 epochs is not shorter than train.budget, 2 epochs: "
        "write students.one.schedule.warmup='0.1 epochs'" in str(info.value)
    )
    check_recipe(
        load_recipe(on_a2, ["train.budget=2 epochs", "students.one.schedule.warmup=0.1 epochs"])
    )


def test_inherited_milestones_beyond_a_short_budget_say_which_fit() -> None:
    name, short = "cifar100/res8x4_res32x4_previous_240ep", "train.budget=4 epochs"
    with pytest.raises(InputError) as info:
        check_recipe(load_recipe(name, [short]))
    says = "schedule.milestones='[2 epochs, 3 epochs]', or lengthen train.budget"
    assert (
        f"150 epochs is not shorter than train.budget, 4 epochs: write students.kd.{says}"
        in str(info.value)
    )


def test_students_and_stages_are_shortened_each_for_itself(on_a2: Path) -> None:
    """Students share one mapping before they are resolved: none may change another's."""
    students = ["students.two={}", "students.three={schedule: {warmup: 1 epochs}}"]
    stages = (
        "stages=[{name: a, budget: 4 epochs}, {name: b, budget: 40 epochs}, {name: c, budget: 2"
        " epochs}]"
    )
    recipe, notes = read_recipe(on_a2, ["train.budget=null", *students, stages])
    found = [
        {name: str(s.schedule.warmup) for name, s in stage.students.items()}
        for stage in recipe.stages
    ]
    assert found == [
        {"one": "0.2 epochs", "two": "0.2 epochs", "three": "1 epochs"},
        {"one": "5 epochs", "two": "5 epochs", "three": "1 epochs"},
        {"one": "0.1 epochs", "two": "0.1 epochs", "three": "1 epochs"},
    ]
    assert len(notes) == 2
    assert notes[0].startswith(
        "stages.a.students.one.schedule.warmup, stages.a.students.two.schedule.warmup: 5 epochs"
    )


def test_a_shipped_recipe_with_a_short_budget() -> None:
    recipe, notes = read_recipe("quickstart/students", ["train.budget=1 epochs"])
    assert {str(student.schedule.warmup) for student in recipe.students.values()} == {"0.05 epochs"}
    assert "1 epochs of parts/quickstart is not shorter than train.budget, 1 epochs" in notes[0]


# ---- students that are left out ------------------------------------------------------------------


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
            "students.dist: null leaves a student out",
        ),
        (["students.dkd=null", "students.dkd.seed=1"], "no student 'dkd'"),
        (["students.dkd="], "no value: write students.dkd=null"),
    ],
)
def test_null_that_cannot_be(overrides: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_recipe("quickstart/students", overrides)


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
