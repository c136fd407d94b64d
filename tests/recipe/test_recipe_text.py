"""How text in a recipe is read, and the messages about values of a wrong type or size."""

from pathlib import Path
from typing import Any

import pytest
from small_recipe import BASE, write

from distill.errors import InputError
from distill.recipe import load_recipe, read_recipe
from distill.recipe.objective import CESpec, KLSpec, ObjectiveSpec
from distill.recipe.text import MAX_DEPTH, TextError, parse


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


def test_what_is_left_out_is_filled_in_and_reported(tmp_path: Path) -> None:
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
