"""Generated recipes and overrides: each loads, or is an InputError; what loads reads back equal;
what is sound can be planned.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from distill.data.augment import TrainTransform
from distill.data.mixing import Mixing
from distill.errors import InputError
from distill.recipe import Recipe, dump_recipe, load_recipe, read_recipe, recipe_digest
from distill.recipe.keys import each_key
from distill.recipe.objective import CESpec, KLSpec, ObjectiveSpec
from distill.recipe.resolve import merge
from distill.recipe.text import MAX_DEPTH, TextError, dump, parse
from distill.student.schedule import resolve_schedule
from distill.training.check import check_recipe
from distill.training.plan import make_plan

BASE: dict[str, Any] = {
    "name": "generated",
    "data": {
        "train": {"kind": "fashion_mnist", "split": "train"},
        "image_size": 16,
        "num_workers": 0,
    },
    "teacher": {"model": "cifar_resnet14", "weights": "random"},
    "student": {"model": "cifar_resnet8", "optimizer": {"name": "momentum", "lr": 0.1}},
    "students": {"a": {}, "b": {"objective": {"soft": {"loss": "dkd"}}}},
    "train": {"budget": "2 epochs", "batch_size_global": 64},
}
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


def write(folder: Path, tree: Any) -> Path:
    """A tree as a file, written as any YAML library would."""
    path = folder / "generated.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=False), encoding="utf-8")
    return path


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
        assert recipe_digest(load_recipe(again)) == recipe_digest(recipe)


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


# ---- by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1_000", 1000),
        ("0x10", 16),
        ("0o17", 15),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("no", False),
        ("on: 1\nno: 2\n010: 3\n1e3: 4", {"on": 1, "no": 2, "010": 3, "1e3": 4}),
        ("0", 0),
        ("0.5", 0.5),
        ("'010'", "010"),
        ("~", None),
        ("a: &x {b: 1}\nc: {<<: *x, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
    ],
)
def test_scalars_are_read_as_people_mean_them(text: str, value: Any) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lr: 010", "line 1, column 5: 010: write 10, or '010' for text"),
        ("lr: -007", "-007: write -7"),
        ("lr: 089", "089: write 89"),
        ("weights: None", "None: write null, or 'None' for text"),
        ("lr: .nan", "should be a finite number"),
        ("lr: 1e400", "1e400: should be a finite number"),
        ("a: 1\na: 2", "the key 'a' is given twice"),
        ("on: 1\n'on': 2", "the key 'on' is given twice"),
        ('name: "a\\0b"', "the control character '\\x00' in a text"),
        ('name: "\\ud800"', "control character"),
        ("a: !!timestamp 2024-01-01", "!!timestamp: a recipe may not contain tags"),
        ("a: &x [*x]", "an alias inside its own content"),
        ("[" * 20_000, f"more than {MAX_DEPTH} nested levels"),
        (
            "\n".join([f"a{i}: &a{i} [*a{i - 1}]" if i else "a0: &a0 [x]" for i in range(60)]),
            "more than",
        ),
        (
            "a0: &a0 [x]\n"
            + "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)),
            "100,000 values",
        ),
    ],
)
def test_what_yaml_would_read_otherwise_is_refused(text: str, says: str) -> None:
    with pytest.raises(TextError) as info:
        parse(text)
    assert says in str(info.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "student.model=no",
            (
                "students.a.model: should be a valid string, not False: YAML reads yes, no, on and"
                " off as true or false"
            ),
        ),
        ("name=1e5", "name: should be a valid string, not 100000.0: put the text in quotes"),
        ("seed=1e3", "seed: should be a valid integer, not 1000.0: write 1000"),
        ("train.batch_size_global=010", "line 1, column 1: 010: write 10"),
        ("train.budget=1.5 iterations", "should be a whole number of iterations"),
        (
            "student.optimizer.lr=1e31",
            "students.a.optimizer.lr: should be at most 1e+30, not 1e+31: weights are float32",
        ),
        ("data.augment.auto_augment=rand-m9-n99", "data.augment.auto_augment: section 'n99'"),
        (
            "student.model_args={depth: 1000000000}",
            "students.a.model_args: depth: should be at most 100,000",
        ),
        (
            "student.model_args={a: [1, {b: [9999999]}]}",
            "students.a.model_args: a.b: should be at most 100,000",
        ),
        ("student.ema.decays=[0.9, 0.9]", "students.a.ema.decays: two decays are the same"),
        ("students." + "x" * 200 + "={}", ": should have at most 100 characters"),
        (
            "data.augment={crop: padded, padding: 17}",
            "data: augment.padding 17 is more than image_size 16",
        ),
    ],
)
def test_a_message_says_what_to_write(override: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as info:
        load_recipe(write(tmp_path, BASE), [override])
    assert says in str(info.value)


def test_what_is_left_out_is_filled_in_and_said(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(
        "data: {train: {kind: fashion_mnist, split: train}}\nteacher: {model: resnet18}\n"
        "student: {model: cifar_resnet8}\ntrain: {budget: 40 epochs}\n"
    )
    recipe, notes = read_recipe(path)
    assert (recipe.name, list(recipe.students), recipe.train.batch_size_global) == (
        "my",
        ["student"],
        256,
    )
    student = recipe.at_stage(0).students["student"]
    assert student.objective == ObjectiveSpec(hard=CESpec(loss="ce"), soft=KLSpec(loss="kl"))
    assert (student.optimizer.name, student.optimizer.lr, student.optimizer.weight_decay) == (
        "adamw",
        5e-4,
        0.05,
    )
    assert str(student.schedule.warmup) == "2 epochs"
    assert [note.split(":")[0] for note in notes] == [
        "students.student.objective",
        "students.student.optimizer",
        "students.student.optimizer.lr",
    ]
    # A rate that is written is the rate; an optimizer that is named stands as it is written.
    assert (
        load_recipe(path, ["student.optimizer.lr=2e-3"])
        .at_stage(0)
        .students["student"]
        .optimizer.lr
        == 2e-3
    )
    named = load_recipe(path, ["student.optimizer={name: sgd, lr: 0.1}", "teacher=null"]).students[
        "student"
    ]
    assert (named.optimizer.weight_decay, str(named.schedule.warmup)) == (0.0, "0 iterations")
    assert named.objective == ObjectiveSpec(hard=CESpec(loss="ce"))
    with pytest.raises(InputError, match=r"students\.student\.optimizer\.lr: missing"):
        load_recipe(path, ["student.optimizer={name: sgd}"])
