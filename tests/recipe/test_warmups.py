"""Warm-ups: percentages of the budget, and inherited warm-ups that are longer than the budget."""

from pathlib import Path

import pytest

from distill.errors import InputError
from distill.recipe import dump_recipe, load_recipe, read_recipe, recipe_fingerprint
from distill.training.check import check_recipe
from distill.training.plan import make_plan


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


def test_a_share_of_a_cooldown_is_a_duration(on_a2: Path, tmp_path: Path) -> None:
    constant = ["student.schedule.name=constant", "student.schedule.cooldown=20%"]
    recipe = load_recipe(on_a2, constant)
    assert str(recipe.students["one"].schedule.cooldown) == "60 epochs"
    stages = "stages=[{name: a, budget: 4 epochs}, {name: b, budget: 40 epochs}]"
    staged = load_recipe(
        on_a2, [*constant, stages, "train.budget=null", "student.schedule.warmup=5%"]
    )
    (tmp_path / "saved.yaml").write_text(dump_recipe(staged))
    assert load_recipe(tmp_path / "saved.yaml") == staged
    spans = [str(stage.students["one"].schedule.cooldown) for stage in staged.stages]
    assert spans == ["0.8 epochs", "8 epochs"]


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
    with pytest.raises(InputError, match=r"students\.one\.schedule\.warmup: .* is not a duration"):
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


# ---- different units: compared once the data is known --------------------------------------------


@pytest.mark.parametrize(
    ("budget", "warmup", "says"),
    [
        # 6,000 images in batches of 2,048: 2 steps an epoch, so that 5 epochs are 10 steps.
        ("300 iterations", "5 epochs", None),
        ("11 iterations", "5 epochs", None),
        ("10 iterations", "0 iterations", "train.budget, 10 iterations: shortened to 5% of it"),
        ("20k samples", "1000 samples", "train.budget, 20000 samples: shortened to 5% of it"),
    ],
)
def test_an_inherited_warmup_fits_a_budget_of_another_unit(
    budget: str, warmup: str, says: str | None, on_a2: Path, tmp_path: Path
) -> None:
    recipe, notes = read_recipe(on_a2, [f"train.budget={budget}"])
    assert (str(recipe.students["one"].schedule.warmup), notes) == ("5 epochs", [])
    plan = make_plan(recipe)
    assert str(plan.recipe.students["one"].schedule.warmup) == warmup
    assert plan.stages[0].recipe.students["one"].schedule == (
        plan.recipe.students["one"].schedule
    ), "the stage is trained with the same warm-up"
    if says is None:
        assert plan.notes == ()
    else:
        (note,) = plan.notes
        start = "students.one.schedule.warmup: 5 epochs (10 steps) of strategies/a2"
        assert note == f"{start} is not shorter than {says}, {warmup}"

    # The recipe that a run saves has the final warm-up: it resumes from it as from the original.
    (tmp_path / "saved.yaml").write_text(dump_recipe(plan.recipe))
    again = make_plan(load_recipe(tmp_path / "saved.yaml"))
    assert again.notes == ()
    assert recipe_fingerprint(again.recipe) == recipe_fingerprint(plan.recipe)


def test_a_written_warmup_of_another_unit_is_not_shortened(on_a2: Path) -> None:
    from distill.training.build import run_schedule

    overrides = ["train.budget=10 iterations", "student.schedule.warmup=5 epochs"]
    plan = make_plan(load_recipe(on_a2, overrides))
    assert plan.notes == ()
    with pytest.raises(InputError, match=r"students\.one\.schedule\.warmup: 5 epochs is 10 steps"):
        run_schedule(plan, "one")


def test_stages_of_other_units_are_shortened_each_by_its_own_budget(on_a2: Path) -> None:
    stages = "stages=[{name: a, budget: 4 iterations}, {name: b, budget: 60 iterations}]"
    plan = make_plan(load_recipe(on_a2, ["train.budget=null", stages]))
    warmups = [str(stage.students["one"].schedule.warmup) for stage in plan.recipe.stages]
    assert warmups == ["0 iterations", "5 epochs"]
    assert [stage.recipe.students["one"].schedule for stage in plan.stages] == [
        stage.students["one"].schedule for stage in plan.recipe.stages
    ]
    assert plan.notes[0].startswith("stages.a.students.one.schedule.warmup: 5 epochs (10 steps)")

    of_run = ["student.schedule.over=run", "stages.b.budget=3 epochs"]
    plan = make_plan(load_recipe(on_a2, ["train.budget=null", stages, *of_run]))
    warmups = [str(stage.students["one"].schedule.warmup) for stage in plan.recipe.stages]
    assert warmups == ["0 iterations", "0 iterations"]
    (note,) = plan.notes
    assert "the budget of all stages, 10 iterations: shortened to 5% of it" in note
