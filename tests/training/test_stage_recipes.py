"""Recipes in stages: schedules, what a stage may set, and what the data decide."""

from pathlib import Path

import pytest
from shards import images_of, write_tars
from stages import FOREIGN, OWN, two_stages
from tiny import (
    report,
    run,
    write_recipe,
)

from distill.data.fashion import EmbeddedFashionMnist
from distill.errors import InputError
from distill.recipe import dump_recipe, load_recipe
from distill.training.build import build_models
from distill.training.loop import DONE
from distill.training.plan import make_plan

# ---- schedules -----------------------------------------------------------------------------------


def rates(recipe: Path, *overrides: str, student: str = "kd") -> list[float]:
    plan = make_plan(load_recipe(recipe, overrides))
    lr_at = build_models(plan).schedules[student]
    return [lr_at(step) for step in range(plan.total_steps)]


def test_a_schedule_of_each_stage_or_one_across(foreign: Path, tmp_path: Path) -> None:
    def cosine(lr: float, steps: int, warmup: int = 0) -> list[float]:
        from math import cos, pi

        return [
            lr * t / warmup if t < warmup else lr * (1 + cos(pi * t / steps)) / 2
            for t in range(steps)
        ]

    own = write_recipe(tmp_path, two_stages(foreign))
    assert rates(own) == pytest.approx(cosine(0.05, FOREIGN) + cosine(0.02, OWN))
    warm = ("student.schedule.warmup=2 iterations", "stages.own.student={optimizer: {lr: 0.05}}")
    assert rates(own, *warm) == pytest.approx(cosine(0.05, FOREIGN, 2) + cosine(0.05, OWN, 2))
    across = (*warm, "student.schedule.over=run")
    assert rates(own, *across) == pytest.approx(cosine(0.05, FOREIGN + OWN, 2))


# ---- recipes -------------------------------------------------------------------------------------


def test_a_resolved_recipe_in_stages_is_a_recipe_again(foreign: Path, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, two_stages(foreign)))
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe
    assert recipe.stages[0].students["kd"].objective.hard is None
    assert recipe.stages[0].students["dkd"].optimizer.name == "lamb"
    assert recipe.stages[0].data.fraction == 1, (
        "the run's fraction says nothing of a stage's own images"
    )
    assert recipe.stages[1].data.fraction == 0.02
    assert recipe.at_stage(1).students["kd"].optimizer.lr == 0.02


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("stages.own.budgett=1 epochs", r"stages.1.budgett: unknown key \(did you mean 'budget'"),
        ("stages.fremd.budget=1 epochs", r"no stage 'fremd'.*there are foreign, own"),
        ("stages.2.budget=1 epochs", r"no stage '2'"),
        ("stages.0.data.image_size=32", r"stages.0.data.image_size: unknown key"),
        ("train.budget=3 epochs", r"train.budget: each of stages has its own budget"),
        ("stages=[]", r"train.budget: missing, and it has no default"),
        ("stages.own.name=foreign", r"two are named 'foreign'"),
        (
            "stages.own.students.unknown={objective: {hard: {loss: ce}}}",
            r"stages.own.students.unknown: no such student; there are kd, dkd",
        ),
        (
            "stages.own.student.optimizer.weight_decay=0.1",
            r"optimizer.weight_decay: differs from .* reset",
        ),
        ("student.schedule.over=run", r"schedule.over: run is one schedule for all stages"),
        ("stages.foreign.student.objective.soft=null", r"needs something to learn from"),
        ("teacher=null", r"stages.foreign.students.kd.objective.soft learns from a teacher"),
    ],
)
def test_what_stages_may_not_say(override: str, says: str, foreign: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        load_recipe(write_recipe(tmp_path, two_stages(foreign)), [override])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "stages.foreign.student.objective.hard={loss: ce}",
            (
                r"stages.foreign.data.train: has no labels, and"
                r" stages.foreign.students.kd.objective.hard reads them"
            ),
        ),
        (
            "stages.foreign.students.dkd.objective.soft.target=label",
            (
                r"has no labels, and stages.foreign.students.dkd.objective.soft dkd \(target:"
                r" teacher would not\) reads them"
            ),
        ),
        (
            "stages.foreign.data.train.lanes=6",
            (
                r"lanes: batches of 16 in micro-batches of 8 do not divide into 6 lanes: use 4 or 8"
                r" or 16"
            ),
        ),
        (
            "stages.foreign.data.keep_classes=shared",
            r"keep_classes: needs the label of every sample",
        ),
        ("stages.foreign.budget=0.01 epochs", r"comes to no step at all"),
    ],
)
def test_what_only_the_data_can_tell(
    override: str, says: str, foreign: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=says):
        make_plan(load_recipe(write_recipe(tmp_path, two_stages(foreign)), [override]))


def test_a_hard_loss_is_refused_where_labels_are_of_another_space(tmp_path: Path) -> None:
    """Ten classes here and ten there: what counts are the lists."""
    source = EmbeddedFashionMnist("train")
    folder = tmp_path / "foreign"
    write_tars(
        folder, images_of(source, range(0, 3000, 50)), 20, labels=source.labels[0:3000:50].tolist()
    )
    (tmp_path / "classes.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    stream = {"kind": "stream", "path": str(folder), "classes": str(tmp_path / "classes.txt")}
    soft = two_stages(folder, {"data": {"train": stream}})
    plan = make_plan(load_recipe(write_recipe(tmp_path, soft)))
    assert [stage.labelled for stage in plan.stages] == [False, True]
    hard = two_stages(
        folder, {"data": {"train": stream}, "student": {"objective": {"hard": {"loss": "ce"}}}}
    )
    with pytest.raises(
        InputError,
        match=(
            r"class 0 is 'class 0' for stages.foreign.data.train and 'T-shirt/top' in data.eval,"
            r" and "
            r"stages.foreign.students.kd.objective.hard reads its labels.*teach soft labels alone"
        ),
    ):
        make_plan(load_recipe(write_recipe(tmp_path, hard)))


# ---- a stage's own data set ----------------------------------------------------------------------


def test_a_stage_with_its_own_kind_of_data_takes_nothing_from_the_runs(
    foreign: Path, tmp_path: Path
) -> None:
    """Else the run's class names would pass for those of foreign labels, and a hard loss would be
    taken.
    """
    source = EmbeddedFashionMnist("train")
    write_tars(
        tmp_path / "own", images_of(source, range(60)), 20, labels=source.labels[:60].tolist()
    )
    (tmp_path / "classes.txt").write_text("\n".join(source.classes))
    own = {
        "kind": "stream",
        "path": str(tmp_path / "own"),
        "classes": str(tmp_path / "classes.txt"),
        "block": 7,
    }
    data = {"data": {"train": own, "fraction": 0.5}}
    recipe = load_recipe(write_recipe(tmp_path, two_stages(foreign), data))
    first, second = (stage.data for stage in recipe.stages)
    assert (first.train.classes, first.train.block, first.fraction) == (None, 20, 1.0)
    assert (second.train.classes, second.fraction) == (str(tmp_path / "classes.txt"), 0.5)
    # One key of it is laid over, and the run's fraction stays.
    recipe = load_recipe(
        write_recipe(tmp_path, two_stages(foreign), data), ["stages.own.data.train.block=9"]
    )
    assert (recipe.stages[1].data.train.block, recipe.stages[1].data.fraction) == (9, 0.5)


@pytest.mark.parametrize(
    ("override", "write"),
    [
        ("data.unreadable=skip", "stages.NAME.data.unreadable"),
        ("data.mixing.mixup=0.8", "stages.NAME.data.mixing.mixup"),
        ("student.optimizer.lr=0.3", "stages.NAME.students.NAME.optimizer.lr"),
        ("students.kd.optimizer.lr=0.3", "stages.NAME.students.kd.optimizer.lr"),
        ("stages.own.student.optimizer.lr=0.3", "stages.NAME.students.NAME.optimizer.lr"),
    ],
)
def test_an_override_that_no_stage_would_follow_is_refused(
    override: str, write: str, foreign: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, two_stages(foreign))
    load_recipe(recipe, [override])
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_recipe(load_recipe(recipe)))
    with pytest.raises(InputError, match=f"has no effect.*write {write}="):
        load_recipe(resolved, [override])
    load_recipe(
        resolved,
        [
            "data.unreadable=error",
            "seed=3",
            "students.kd.optimizer.lr=0.02",
            "stages.own.data.fraction=0.5",
        ],
    )


def test_every_stage_is_tried_before_the_first_begins(foreign: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, two_stages(foreign))
    for stage in ("foreign", "own"):
        bad = [
            f"stages.{stage}.students.kd.optimizer.args={{nesterof: true}}",
            "stages.own.optimizer=reset",
        ]
        with pytest.raises(
            InputError,
            match=f"stages.{stage}.students.kd.optimizer.args.nesterof: momentum takes no such",
        ):
            build_models(make_plan(load_recipe(recipe, bad)))


def test_a_changed_recipe_names_the_keys_of_its_stages(foreign: Path, tmp_path: Path) -> None:
    from distill.checkpoint.differences import another_recipe

    recipe = write_recipe(tmp_path, two_stages(foreign))
    texts = [
        dump_recipe(load_recipe(recipe, over))
        for over in ([], ["stages.own.students.kd.optimizer.lr=0.3"])
    ]
    message = another_recipe(tmp_path, "1", *texts)
    assert "\n  stages.own.students.kd.optimizer.lr: 0.02 -> 0.3\n" in message
    assert len(message) < 400


def test_soft_labels_of_two_spaces_want_an_evaluation_set(foreign: Path, tmp_path: Path) -> None:
    own = {"data": {"train": {"kind": "fashion_mnist", "split": "train"}}}
    other = tmp_path / "other"
    source = EmbeddedFashionMnist("train")
    write_tars(other, images_of(source, range(60)), 20, labels=source.labels[:60].tolist())
    (tmp_path / "classes.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    stream = {
        "data": {
            "train": {
                "kind": "stream",
                "path": str(other),
                "classes": str(tmp_path / "classes.txt"),
            }
        }
    }
    soft = {
        "student": {"objective": {"hard": None}},
        "students": {"dkd": {"objective": {"soft": {"target": "teacher"}}}},
    }
    recipe = write_recipe(tmp_path, two_stages(foreign, {**stream, **soft}, {**own, **soft}))
    make_plan(load_recipe(recipe))
    with pytest.raises(
        InputError,
        match=r"foreign.data.train and stages.own.data.train differ, .* give a labelled data.eval",
    ):
        make_plan(load_recipe(recipe, ["data.eval=null"]))


def test_one_broken_record_alone_in_its_shard_gives_way_to_another_shard(tmp_path: Path) -> None:
    good = images_of(EmbeddedFashionMnist("train"), range(40))
    write_tars(tmp_path / "a", [b"broken"], 1)
    write_tars(tmp_path / "b", good, 20)
    stream = {"kind": "stream", "path": str(tmp_path / "[ab]" / "*.tar"), "labelled": False}
    recipe = write_recipe(
        tmp_path,
        two_stages(
            tmp_path, {"data": {"train": stream, "unreadable": "skip"}, "budget": "5 iterations"}
        ),
    )
    assert run(recipe) == DONE
    assert report(tmp_path / "run")["num_skipped"] > 0
