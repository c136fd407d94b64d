"""Runs in stages: foreign images with soft labels alone, then the run's own; interrupted anywhere
they end as if they had not been.
"""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from shards import images_of, write_tars
from tiny import (
    assert_same_run,
    checkpoint,
    records,
    report,
    run,
    stop_after,
    tensors,
    write_recipe,
)
from torch import nn

from distill.data.fashion import EmbeddedFashionMnist
from distill.errors import InputError
from distill.recipe import dump_recipe, load_recipe
from distill.training.build import build_models
from distill.training.loop import DONE, INTERRUPTED
from distill.training.plan import make_plan

FOREIGN, OWN = (
    5,
    7,
)  # steps of the two stages: the second is an epoch of 120 images in batches of 16


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 images without labels in nine tar shards."""
    folder = tmp_path_factory.mktemp("foreign")
    write_tars(folder, images_of(EmbeddedFashionMnist("train"), range(0, 3000, 10)), 37)
    return folder


def two_stages(
    foreign: Path, first: dict[str, Any] | None = None, second: dict[str, Any] | None = None
) -> Any:
    """Changes to the tiny recipe: two students, one of which keeps averages."""
    stream = {"kind": "stream", "path": str(foreign), "labelled": False, "block": 20}
    return {
        "train": {"budget": None},
        "data": {
            "mixing": {"mixup": 0.2, "cutmix": 1.0, "group_size": 8},
            "augment": {"repeats": 3},
        },
        "evaluate": {"every": "3 iterations"},
        "checkpoint": {"every": "3 iterations"},
        "log": {"every": "2 iterations"},
        "student": {"objective": {"soft": {"loss": "kl"}}, "drop_path": 0.2},
        "students": {
            "kd": {"ema": {"decays": [0.5]}},
            "dkd": {
                "objective": {"soft": {"loss": "dkd", "target": "teacher"}},
                "optimizer": {"name": "lamb"},
            },
        },
        "stages": [
            {
                "name": "foreign",
                "budget": f"{FOREIGN} iterations",
                "data": {"train": stream},
                "student": {"objective": {"hard": None}},
                **(first or {}),
            },
            {
                "name": "own",
                "budget": "1 epochs",
                "student": {"optimizer": {"lr": 0.02}},
                **(second or {}),
            },
        ],
    }


RESET = {"optimizer": "reset", "averages": "reset"}


@pytest.fixture(scope="module", params=[{}, RESET], ids=["carried", "reset"])
def uninterrupted(
    request: pytest.FixtureRequest, foreign: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert run(write_recipe(folder, two_stages(foreign, second=request.param))) == DONE
    return folder / "run", request.param


@pytest.mark.parametrize(
    "stops",
    [(2,), (FOREIGN,), (FOREIGN + 1,), (3, 1, 1, 4)],
    ids=["first", "border", "second", "often"],
)
def test_stopped_in_either_stage_or_between_them_it_goes_on_bit_for_bit(
    stops: tuple[int, ...],
    uninterrupted: Any,
    foreign: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, second = uninterrupted
    recipe, done = write_recipe(tmp_path, two_stages(foreign, second=second)), 0
    for steps in stops:
        stop_after(steps, monkeypatch)
        assert run(recipe) == INTERRUPTED
        done += steps
        assert checkpoint(tmp_path / "run").name == f"step-{done:08d}"
        monkeypatch.undo()
    assert run(recipe) == DONE
    assert_same_run(tmp_path / "run", whole)


def test_workers_and_reading_them_do_not_matter(
    uninterrupted: Any, foreign: Path, tmp_path: Path
) -> None:
    whole, second = uninterrupted
    assert (
        run(
            write_recipe(tmp_path, two_stages(foreign, second=second), {"data": {"num_workers": 2}})
        )
        == DONE
    )
    assert_tensors_equal(tensors(tmp_path / "run"), tensors(whole))


def assert_tensors_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_carried_and_reset_are_different_runs(foreign: Path, tmp_path: Path) -> None:
    """The momentum, or the average, of the first stage is there after the border, or it is not."""
    results = {}
    for name, second in (
        ("carried", {}),
        ("optimizer", {"optimizer": "reset"}),
        ("averages", {"averages": "reset"}),
    ):
        assert run(write_recipe(tmp_path, two_stages(foreign, second=second), name=name)) == DONE
        results[name] = tensors(tmp_path / name, "kd")
    weight = next(
        name
        for name in results["carried"]
        if name.startswith("kd.model/") and name.endswith("conv1.weight")
    )
    average = weight.replace("kd.model/", "kd.ema-0.5/")
    assert torch.equal(results["carried"][weight], results["averages"][weight])
    assert not torch.equal(results["carried"][weight], results["optimizer"][weight])
    assert not torch.equal(results["carried"][average], results["averages"][average])
    counts = {name: int(result["kd.ema-0.5/ema/num_updates"]) for name, result in results.items()}
    assert counts == {"carried": FOREIGN + OWN, "optimizer": FOREIGN + OWN, "averages": OWN}


def test_one_report_names_both_stages(
    uninterrupted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, _ = uninterrupted
    stages = report(whole)["stages"]
    assert [(s["name"], s["first_step"], s["last_step"], s["labels_read"]) for s in stages] == [
        ("foreign", 0, FOREIGN, False),
        ("own", FOREIGN, FOREIGN + OWN, True),
    ]
    assert set(stages[0]["models"]) == {"kd", "kd/ema-0.5", "dkd"}
    assert stages[1]["models"]["kd"] == report(whole)["students"]["kd"]["last"]
    train = [record for record in records(whole) if record["event"] == "train"]
    assert [(record["step"], record["stage"]) for record in train] == [
        (2, "foreign"),
        (4, "foreign"),
        (5, "foreign"),
        (7, "own"),
        (9, "own"),
        (11, "own"),
        (12, "own"),
    ]
    assert "loss_hard" not in train[0]["students"]["kd"]
    assert "loss_hard" in train[-1]["students"]["kd"]
    judged = [record["step"] for record in records(whole) if record["event"] == "evaluate"]
    assert judged == [
        3,
        5,
        8,
        11,
        12,
    ], "intervals count from a stage's start, and its end is judged"


def test_each_stage_begins_its_own_order(foreign: Path, tmp_path: Path) -> None:
    from distill.engine import Engine
    from distill.training.build import train_loader
    from distill.training.share import share_of_process

    same = {"data": {"train": {"kind": "fashion_mnist", "split": "train"}}, "student": {}}
    recipe = load_recipe(write_recipe(tmp_path, two_stages(foreign, same)))
    plan = make_plan(recipe)
    first, second = plan.stages
    assert not (first.order.batch(0).indices == second.order.batch(0).indices).all(), (
        "the same data in another order"
    )
    engine = Engine(precision="fp32")
    try:
        with train_loader(
            plan, second, share_of_process(16, 8, 1), engine, second.first_step
        ) as loader:
            batch = next(loader)
    finally:
        engine.close()
    assert batch.step == FOREIGN
    assert batch.positions.tolist() == list(range(FOREIGN * 16, FOREIGN * 16 + 8))
    assert batch.labels.tolist() == second.source.labels[second.order.batch(0).indices[:8]].tolist()


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
            "stages.own.students.nobody={objective: {hard: {loss: ce}}}",
            r"stages.own.students.nobody: no such student; there are kd, dkd",
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


# ---- a stage begins ------------------------------------------------------------------------------


def test_a_signal_during_the_last_evaluation_of_a_stage_repeats_it(
    uninterrupted: Any, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny import send_during

    from distill.training.evaluations import Evaluations

    whole, second = uninterrupted
    recipe = write_recipe(tmp_path, two_stages(foreign, second=second))
    send_during(Evaluations, "run", monkeypatch, 2, signal.SIGTERM)
    assert run(recipe) == INTERRUPTED
    assert checkpoint(tmp_path / "run").name == f"step-{FOREIGN:08d}"
    assert json.loads((checkpoint(tmp_path / "run") / "state.json").read_text())["stage_ends"] == {}
    monkeypatch.undo()
    assert run(recipe) == DONE
    assert_same_run(tmp_path / "run", whole)


def test_restart_forgets_the_optimizer_and_starts_averages_from_the_weights_of_now() -> None:
    from distill.engine import Engine
    from distill.models.pixels import Network, Pixels
    from distill.student import Averages, Replicated

    engine = Engine(precision="fp32")
    try:
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        placed = Replicated(
            Network(net, Pixels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
            lambda module: torch.optim.SGD(module.parameters(), momentum=0.9),
            engine,
            clip_grad_norm=None,
            averages=Averages((0.5,)),
        )
        for _ in range(2):
            placed.forward(torch.ones(2, 3, 2, 2)).sum().backward()
            placed.step(0.1)
            placed.update_averages()
        placed.restart(None, None, False)
        state = placed.state()[0]
        assert state["optimizer"]
        assert not torch.equal(state["ema-0.5"]["1.weight"], state["model"]["1.weight"])
        placed.restart(lambda module: torch.optim.SGD(module.parameters(), momentum=0.5), 1.0, True)
        tensors, values = placed.state()
        assert tensors["optimizer"] == {}
        assert values["optimizer"]["groups"][0]["settings"]["momentum"] == 0.5
        assert torch.equal(tensors["ema-0.5"]["1.weight"], tensors["model"]["1.weight"])
    finally:
        engine.close()


# ---- lanes and cache -----------------------------------------------------------------------------


def checked(recipe: Path, num_processes: int, here: int, *overrides: str) -> None:
    from distill.training.streams import check_streams

    check_streams(make_plan(load_recipe(recipe, overrides)), num_processes, here)


def test_any_number_of_processes_reads_the_lanes(foreign: Path, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        two_stages(foreign),
        {"train": {"micro_batch_size": None, "batch_size_global": 48}},
    )
    for num_processes in (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 48):
        checked(recipe, num_processes, num_processes)


def test_a_cache_that_cannot_hold_what_lanes_read_at_once_is_refused(
    foreign: Path, tmp_path: Path
) -> None:
    from dataclasses import replace

    from distill.data.stream.source import StreamSource
    from distill.training.streams import check_streams

    small = write_recipe(tmp_path, two_stages(foreign), {"data": {"shards": {"cache_gb": 0.85}}})
    plan = make_plan(load_recipe(small))
    local = plan.stages[0].source
    assert isinstance(local, StreamSource)
    check_streams(plan, 1, 1)  # local tar shards do not go through the cache
    remote = StreamSource(
        [
            replace(shard, url=f"http://host/{shard.name}", size_bytes=10**8)
            for shard in local.shards
        ],
        local._fetcher,
        (),
        labelled=False,
    )
    plan = replace(plan, stages=(replace(plan.stages[0], source=remote), plan.stages[1]))
    with pytest.raises(
        InputError,
        match=(
            r"cache_gb: 0.85, and the 16 lanes that this machine reads have about 9 shards in use"
            r" at once, 0.9 GB of http"
        ),
    ):
        check_streams(plan, 1, 1)
    check_streams(plan, 8, 1)


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
    assert (first.train.classes, first.train.block, first.fraction) == (None, 20, 1.0)  # type: ignore[union-attr]
    assert (second.train.classes, second.fraction) == (str(tmp_path / "classes.txt"), 0.5)  # type: ignore[union-attr]
    # One key of it is laid over, and the run's fraction stays.
    recipe = load_recipe(
        write_recipe(tmp_path, two_stages(foreign), data), ["stages.own.data.train.block=9"]
    )
    assert (recipe.stages[1].data.train.block, recipe.stages[1].data.fraction) == (9, 0.5)  # type: ignore[union-attr]


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
        match=r"stages.foreign.data.train and stages.own.data.train differ, .* give data.eval",
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
