"""What a recipe comes to before any device: micro-batches of a process, steps, class lists,
settings that cannot be had.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from distill.data.classes import same_classes
from distill.errors import InputError, prefix_errors
from distill.recipe import load_recipe, shipped_recipes
from distill.training.plan import make_plan
from distill.training.settings import setting_problems
from distill.training.share import Share, share_of_process

# ---- the share of a process ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size_global", "micro_batch_size", "num_processes", "share"),
    [
        (2048, 256, 1, Share(256, 8)),
        (2048, 256, 2, Share(256, 4)),
        (2048, 256, 8, Share(256, 1)),
        (2048, None, 1, Share(2048, 1)),
        (2048, None, 8, Share(256, 1, 8)),
        (2048, 256, 16, Share(128, 1, 2)),
        (2048, 256, 64, Share(32, 1, 8)),
        (2048, 256, 512, Share(4, 1, 64)),
        (2048, 256, 1024, Share(2, 1, 128)),
        (1536, 256, 4, Share(128, 3, 2)),
        (48, 8, 3, Share(8, 2)),
        (48, None, 3, Share(16, 1, 3)),
        (2, None, 1, Share(2, 1)),
    ],
)
def test_share_of_process(
    batch_size_global: int, micro_batch_size: int | None, num_processes: int, share: Share
) -> None:
    assert share_of_process(batch_size_global, micro_batch_size, num_processes) == share
    assert share.micro_batch_size * share.num_forwards * num_processes == batch_size_global


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_runs_on_any_number_of_gpus(name: str) -> None:
    train = load_recipe(name).train
    num_processes = 1
    while train.batch_size_global % (2 * num_processes) == 0 and num_processes <= 1024:
        share = share_of_process(train.batch_size_global, train.micro_batch_size, num_processes)
        micro = share.micro_batch_size * share.group_size
        assert micro == (train.micro_batch_size or train.batch_size_global)
        num_processes *= 2
    assert num_processes >= 32


@pytest.mark.parametrize(
    ("batch_size_global", "micro_batch_size", "num_processes", "suggested"),
    [
        (2048, 256, 3, (1, 2, 4, 8)),
        (2048, 256, 2048, (128, 256, 512, 1024)),
        (1024, 128, 7, (1, 2, 4, 8, 16)),
        (96, 8, 5, (2, 3, 4, 6, 8)),
        (30, None, 4, (3, 5, 1, 15)),
        (16, None, 5, (4, 8, 2, 1)),
    ],
)
def test_a_batch_that_does_not_divide_names_numbers_that_do(
    batch_size_global: int,
    micro_batch_size: int | None,
    num_processes: int,
    suggested: tuple[int, ...],
) -> None:
    with pytest.raises(
        InputError, match=f"train.batch_size_global {batch_size_global} .* on {num_processes} proc"
    ) as info:
        share_of_process(batch_size_global, micro_batch_size, num_processes)
    offer = re.search(r"start ([\d or]+) processes", str(info.value))
    assert offer
    numbers = [int(number) for number in offer[1].split(" or ")]
    assert set(numbers) <= set(suggested)
    assert numbers == sorted(numbers)
    for number in numbers:
        share_of_process(batch_size_global, micro_batch_size, number)


# ---- class lists ---------------------------------------------------------------------------------


def test_equal_class_lists_pass() -> None:
    same_classes(("ant", "bee"), ("ant", "bee"), "data.train", "data.eval")


@pytest.mark.parametrize(
    ("train", "other", "says"),
    [
        (
            ("ant", "bee", "cow"),
            ("ant", "bee"),
            r"from class 2 \('cow'\) on only data.train has names",
        ),
        (("ant",), ("ant", "bee", "cow"), r"from class 1 \('bee'\) on only data.eval has names"),
        (("ant", "bee"), ("ant", "cow"), "class 1 is 'bee' for data.train and 'cow' in data.eval"),
        (("ant", "bee"), ("bee", "ant"), "class 0 is 'ant' for data.train and 'bee' in data.eval"),
    ],
)
def test_class_lists_that_differ_are_refused(
    train: tuple[str, ...], other: tuple[str, ...], says: str
) -> None:
    with pytest.raises(InputError, match=f"{says}.*data.train.classes and data.eval.classes"):
        same_classes(train, other, "data.train", "data.eval")


# ---- durations become steps ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        # 2 % of 6,000 images in batches of 16: 7 steps an epoch.
        ({"train": {"budget": "3 epochs"}, "evaluate": {"every": "1 epochs"}}, (21, 7)),
        ({"train": {"budget": "0.5 epochs"}, "evaluate": {"every": "0.01 epochs"}}, (4, 1)),
        ({"train": {"budget": "160 samples"}, "evaluate": {"every": "33 samples"}}, (10, 2)),
        (
            {
                "data": {"fraction": 0.04},
                "train": {"budget": "9 iterations"},
                "evaluate": {"every": "1 epochs"},
            },
            (9, 15),
        ),
    ],
)
def test_durations_become_steps(
    changes: dict[str, Any], steps: tuple[int, int], tiny_recipe: Any
) -> None:
    plan = make_plan(load_recipe(tiny_recipe(changes)))
    assert (plan.total_steps, plan.stages[0].evaluate_every) == steps
    assert len(plan.classes) == 10


def test_a_budget_of_no_step_is_refused(tiny_recipe: Any) -> None:
    with pytest.raises(
        InputError, match=r"train.budget 7 samples comes to no step at all on 120 images"
    ):
        make_plan(load_recipe(tiny_recipe({"train": {"budget": "7 samples"}})))


# ---- settings that cannot be had -----------------------------------------------------------------


def test_settings_that_cannot_be_had_are_all_named(
    tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name in ("wandb", "deepspeed") else find_spec(name, *a),
    )
    recipe = load_recipe(
        tiny_recipe(
            {
                "log": {"trackers": ["tensorboard", "wandb", "trackoi"]},
                "data": {"augment": {"auto_augment": "rnd-m9"}},
                "train": {"zero_stage": 3},
            }
        )
    )
    problems = setting_problems(recipe)
    keys = [problem.partition(":")[0] for problem in problems]
    assert keys == ["log.trackers", "log.trackers", "data.augment.auto_augment", "train.zero_stage"]
    assert "wandb is not installed" in problems[0]
    assert "deepspeed is not installed" in problems[3]
    assert "'trackio'" in problems[1]
    with pytest.raises(InputError) as info:
        make_plan(recipe)
    assert str(info.value).splitlines() == problems


def test_settings_of_a_sound_recipe_have_no_problems(tiny_recipe: Any) -> None:
    assert setting_problems(load_recipe(tiny_recipe({"log": {"trackers": ["tensorboard"]}}))) == []


def test_naming_puts_the_key_before_what_does_not_name_it(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"^students.a: no such file$"),
        prefix_errors("students.a"),
    ):
        raise InputError("no such file")
    with pytest.raises(InputError, match=r"^students.a.lr: too high$"), prefix_errors("students.a"):
        raise InputError("students.a.lr: too high")
    with pytest.raises(KeyError), prefix_errors("students.a"):
        raise KeyError("a fault is not an input")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/tmp/x", "..", ".", "a/.."])
def test_a_name_keeps_the_run_below_runs(name: str) -> None:
    recipe = load_recipe("quickstart/students", [f"name={name}"])
    (problem,) = setting_problems(recipe)
    assert problem.startswith(f"name: {name!r} would put the run elsewhere than below runs/")
    assert not setting_problems(recipe.model_copy(update={"output": "/tmp/elsewhere"}))


@pytest.mark.parametrize("name", ["a//b", "./x", "a/", "..x", "imagenet1k/res50"])
def test_a_name_below_runs_is_fine(name: str) -> None:
    assert not setting_problems(load_recipe("quickstart/students", [f"name={name}"]))
