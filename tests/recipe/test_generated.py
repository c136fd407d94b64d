"""Generated recipes and overrides: each loads, or is an InputError; what loads reads back equal;
what is sound can be planned.
"""

import math
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_recipe import BASE, write

from distill.data.augment import TrainTransform
from distill.data.mixing import Mixing
from distill.errors import InputError
from distill.recipe import Recipe, dump_recipe, load_recipe, recipe_fingerprint
from distill.recipe.keys import each_key
from distill.recipe.resolve import merge
from distill.recipe.text import TextError, dump, parse
from distill.student.schedule import resolve_schedule
from distill.training.check import check_recipe
from distill.training.plan import make_plan

quick = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        [
            "1e-3",
            "010",
            "1:30",
            "on",
            "2024-01-01",
            "None",
            "a\0b",
            "\ud800",
            "~nobody/x",
            "1e400",
            ".nan",
        ]
    ),
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(scalars.filter(lambda s: s == s), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = sorted(
    {key.path.replace("NAME", "a") for key in each_key() if not key.path.startswith("stages.")}
)
EXTREMES = [
    0,
    1e-308,
    1e-30,
    1e-3,
    0.5,
    1,
    2,
    7,
    64,
    1e3,
    10**6,
    1e30,
    1e38,
    1e308,
    10**9,
    10**18,
    2**63,
    -1,
]
LENGTHS = [
    f"{amount} {unit}"
    for amount in (0, 0.01, 1, 3, 10**9, 10**23)
    for unit in ("epochs", "iterations", "samples")
]
POLICIES = [
    "rand-m9999-n99999999",
    "rand-m9-n2",
    "augmix-m3-w99999",
    "rand-m9-mstd1e308",
    "v0",
    "rand-p7",
    "augmix-d12",
]


def loaded(path: Path, *overrides: str) -> Recipe | None:
    """The recipe, or None where it is refused with a message of one kind."""
    try:
        return load_recipe(path, overrides)
    except InputError:
        return None


def assert_reads_back(recipe: Recipe, folder: Path) -> None:
    for ascii_only in (False, True):
        again = folder / "again.yaml"
        again.write_text(
            dump_recipe(recipe, ascii_only=ascii_only), encoding="ascii" if ascii_only else "utf-8"
        )
        assert load_recipe(again) == recipe
        assert recipe_fingerprint(load_recipe(again)) == recipe_fingerprint(recipe)


@quick
@given(key=st.sampled_from(KEYS), value=trees)
@example(key="students.a.optimizer.args", value={"betas": [0.9, 0.99], "1e3": "1e-3"})
@example(key="description", value="1e-3")
@example(
    key="teacher.model_args",
    value={"a": "None", "b": "010", "c": "1:30", "d": "yes", "e": "2024-01-01"},
)
def test_any_value_at_any_key(key: str, value: Any, tmp_path: Path) -> None:
    tree: Any = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    recipe = loaded(write(tmp_path, merge(BASE, tree)))
    if recipe is not None:
        assert_reads_back(recipe, tmp_path)


@quick
@given(tree=trees)
def test_any_tree(tree: Any, tmp_path: Path) -> None:
    loaded(write(tmp_path, tree))
    loaded(write(tmp_path, {**BASE, "students": tree, "stages": tree}))
    loaded(
        write(
            tmp_path,
            {**BASE, "train": {"budget": None}, "stages": [{"name": "x", "students": tree}, tree]},
        )
    )


@quick
@given(text=st.text(max_size=60) | st.binary(max_size=60))
@example(text='a: "\\UFFFFFFFF"')
@example(text="a: !!python/object:os.system {}")
@example(text="a: !!int x")
@example(text="a: !!bool maybe")
@example(text="&a [*a]")
@example(text="? [a, b]\n: c")
@example(text="<<: 1")
@example(text="a: " + "9" * 5000)
def test_any_file(text: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    loaded(path)


@quick
@given(
    key=st.sampled_from(
        [
            *KEYS,
            "students.c",
            "students",
            "student",
            "extends",
            "stages.a.budget",
            "a." * 30_000 + "b",
        ]
    )
    | st.text(max_size=12),
    value=st.text(max_size=20) | trees.map(lambda tree: yaml.safe_dump(tree)),
)
def test_any_override(key: str, value: str, tmp_path: Path) -> None:
    loaded(write(tmp_path, BASE), f"{key}={value}")
    loaded(write(tmp_path, BASE), key, value)


@quick
@given(value=trees)
def test_what_is_dumped_parses_to_the_same(value: Any) -> None:
    """A dumper that writes 1e-3 or None bare would change a text into a number or into nothing."""
    try:
        first = parse(dump(value))
    except TextError:
        return  # controls, NaN and the like have no place in a recipe
    assert parse(dump(first)) == first
    assert first == with_text_keys(value)


def with_text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {yaml_text(key): with_text_keys(inner) for key, inner in value.items()}
    return [with_text_keys(inner) for inner in value] if isinstance(value, list) else value


def yaml_text(key: Any) -> str:
    """What a key of any type is as text."""
    return key if isinstance(key, str) else dump([key]).removeprefix("- ").strip().strip("'")


# ---- what check calls sound can be planned -------------------------------------------------------


@settings(quick, max_examples=60)
@given(key=st.sampled_from(KEYS), value=st.sampled_from([*EXTREMES, *LENGTHS, *POLICIES]))
@example(key="data.augment.auto_augment", value="rand-m9999-n99999999")
@example(key="data.mixing.mixup", value=1e308)
@example(key="train.budget", value="100000000000000000000000 epochs")
@example(key="train.batch_size_global", value=2 * 10**18)
@example(key="data.image_size", value=10**9)
@example(key="students.a.optimizer.lr", value=1e308)
@example(key="student.objective.soft", value={"loss": "kl", "temperature": 1e-308})
@example(key="data.num_workers", value=10**9)
@example(key="data.augment", value={"crop": "padded", "padding": 10**9})
@example(
    key="student.schedule",
    value={"name": "step", "milestones": ["1 iterations"] * 50, "decay_factor": 1e30},
)
@example(key="train.timeout_s", value=10**18)
def test_what_is_sound_can_be_planned(key: str, value: Any, tmp_path: Path) -> None:
    tree: Any = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    recipe = loaded(write(tmp_path, merge(BASE, tree)))
    if recipe is None:
        return
    try:
        check_recipe(recipe)
        plan = make_plan(recipe)
        (stage,) = plan.stages
        lengths = (stage.last_step, stage.order.steps_per_epoch, recipe.train.batch_size_global)
        students = stage.recipe.students.values()
        schedules = [
            resolve_schedule(student.schedule, student.optimizer.lr, *lengths)
            for student in students
        ]
    # of the schedules: a warm-up in another unit than the budget, which only the data can compare
    except InputError:
        return
    for lr_at in schedules:
        assert all(
            math.isfinite(lr_at(step)) for step in (0, 1, stage.last_step // 2, stage.last_step)
        )
    data = recipe.data
    mixing = Mixing(num_classes=10, image_size=data.image_size, seed=0, **data.mixing.model_dump())
    mixing.plan(0, stage.order.epoch_order(0)[:2] * 0 + [0, 1]) if mixing.enabled else None
    transform = TrainTransform(
        image_size=data.image_size, **data.augment.model_dump(exclude={"repeats"})
    )
    assert transform(Image.new("RGB", (28, 28))).shape == (data.image_size, data.image_size, 3)
