"""Hold-out evaluation: training and evaluation sets are disjoint, complete, and the same for every
seed.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from command import Cli
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distill.data import holdout
from distill.data.holdout import held_out, open_eval, open_train
from distill.data.sources import Source, open_source
from distill.errors import InputError
from distill.recipe import load_recipe, schema
from distill.release.evaluate import evaluate_models
from distill.training.inputs import CONTENTS
from distill.training.plan import Plan, make_plan

SIZES = {"ant": 10, "bee": 7, "cow": 2, "dog": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images of one colour each: red says which class, green which image of it."""
    root = tmp_path_factory.mktemp("holdout") / "images"
    for label, (name, size) in enumerate(SIZES.items()):
        (root / name).mkdir(parents=True)
        for number in range(size):
            Image.new("RGB", (16, 16), (20 * label, 20 * number, 0)).save(
                root / name / f"{number}.png"
            )
    return root


def recipe_of(folder: Path, tmp_path: Path, *changes: dict[str, Any]) -> Path:
    base = {
        "data": {
            "train": {"kind": "image_folder", "path": str(folder)},
            "eval": {"kind": "holdout", "fraction": 0.3},
            "fraction": 1.0,
        },
        "train": {"batch_size_global": 4, "micro_batch_size": 4},
    }
    return tiny.write_recipe(tmp_path, base, *changes)


def plan_of(folder: Path, tmp_path: Path, *overrides: str) -> Plan:
    return make_plan(load_recipe(recipe_of(folder, tmp_path), overrides))


def names(source: Any, folder: Path) -> set[str]:
    return {str(Path(source.describe(i)).relative_to(folder)) for i in range(len(source))}


def trained_on(plan: Plan, folder: Path) -> set[str]:
    """What comes in the first 40 steps, which is many epochs."""
    stage = plan.stages[0]
    seen = np.concatenate([stage.order.batch(step).indices for step in range(40)])
    return {str(Path(stage.source.describe(int(i))).relative_to(folder)) for i in seen}


def test_every_image_is_trained_on_or_held_out_and_none_is_both(
    folder: Path, tmp_path: Path
) -> None:
    plan = plan_of(folder, tmp_path)
    evaluated = names(plan.eval_source, folder)
    every = {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
    assert trained_on(plan, folder) == every - evaluated
    counts = np.bincount(
        [sorted(SIZES).index(name.split("/")[0]) for name in evaluated], minlength=4
    )
    assert counts.tolist() == [
        3,
        2,
        1,
        0,
    ]  # round(3.0), round(2.1), at least 1 of two, never the last one
    for index, label in enumerate(plan.eval_source.labels):
        assert plan.eval_source.describe(index).split("/")[-2] == plan.classes[label]


def test_the_seed_moves_no_image_and_a_fraction_takes_of_the_rest(
    folder: Path, tmp_path: Path
) -> None:
    first = plan_of(folder, tmp_path)
    other = plan_of(folder, tmp_path, "seed=7", "data.fraction=0.5")
    assert names(first.eval_source, folder) == names(other.eval_source, folder)
    assert trained_on(other, folder) < trained_on(first, folder)
    assert other.stages[0].order.num_samples == 4 + 3 + 1 + 1  # half of 7, 5, 1 and 1
    contents = f"evaluation {CONTENTS}"
    assert first.inputs()[contents] == other.inputs()[contents]
    less = plan_of(folder, tmp_path, "data.eval.fraction=0.1")
    assert names(less.eval_source, folder) < names(first.eval_source, folder)
    assert first.inputs()[contents] != less.inputs()[contents]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    fraction=st.floats(0.001, 0.999),
    order=st.randoms(use_true_random=False),
)
def test_each_class_gives_its_part(sizes: list[int], fraction: float, order: Any) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    order.shuffle(labels)
    source: Any = SimpleNamespace(
        labels=np.array(labels, np.int64), classes=tuple(map(str, range(len(sizes))))
    )
    chosen = held_out(source, fraction)
    for label, size in enumerate(sizes):
        count = int(chosen[source.labels == label].sum())
        assert count == (0 if size < 2 else min(max(1, int(fraction * size + 0.5)), size - 1))
    # another class list leaves the images of a class where they are
    more: Any = SimpleNamespace(
        labels=np.r_[0, source.labels + 1], classes=("new", *source.classes)
    )
    assert (held_out(more, fraction)[1:] == chosen).all()


@pytest.mark.slow
def test_what_a_run_scores_is_what_evaluate_scores(folder: Path, tmp_path: Path, cli: Cli) -> None:
    recipe = recipe_of(folder, tmp_path, {"teacher": None})
    assert tiny.run(recipe) == 0
    _, record = tiny.best(tmp_path / "run", "alone")
    scored = evaluate_models(tmp_path / "run", num_workers=0)["alone"]
    assert (scored.top1, scored.loss, scored.num_samples) == (
        record["top1"],
        pytest.approx(record["loss"]),
        6,
    )
    shown = cli("data", "inspect", f"{recipe}:data.train", "--json", "--no-sheet", "--workers", 0)
    assert json.loads(shown.out)["num_samples"] == 14
    shown = cli("data", "inspect", f"{recipe}:data.eval", "--json", "--no-sheet", "--workers", 0)
    assert json.loads(shown.out)["num_samples"] == 6
    shown = cli("doctor", recipe, "--json")
    assert json.loads(shown.out)["sections"]["Data"]["data.train"]["value"].startswith("14 images")


def test_a_run_whose_images_changed_is_neither_resumed_nor_evaluated(
    folder: Path, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    recipe = recipe_of(copy, tmp_path, {"teacher": None, "train": {"budget": "4 iterations"}})
    assert tiny.run(recipe) == 0
    (copy / "ant/0.png").rename(
        copy / "ant/zero.png"
    )  # as many of each class, and others are held out
    with pytest.raises(InputError, match="evaluation names, sizes and contents"):
        tiny.run(recipe)
    with pytest.raises(InputError, match=r"data.train has changed since the run"):
        evaluate_models(tmp_path / "run", num_workers=0)
    with pytest.raises(InputError, match=r"data\.eval"):  # another part is another run
        tiny.run(recipe, "data.eval.fraction=0.5")


STREAM = {"data": {"train": {"kind": "stream", "path": "shards"}}}
STAGE = {"name": "one", "budget": "4 iterations"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            STREAM,
            "eval: kind: holdout needs the label of every image of data.train before any is read",
        ),
        ({"data": {"eval": {"fraction": 1.0}}}, "fraction"),
        ({"data": {"train": {"kind": "holdout"}}}, "no 'holdout' here"),
        (
            {
                "train": {"budget": None},
                "stages": [
                    {**STAGE, "data": {"train": {"kind": "fashion_mnist", "split": "train"}}}
                ],
            },
            "no stage trains on data.train",
        ),
    ],
)
def test_what_cannot_be_held_out_is_refused(
    folder: Path, tmp_path: Path, change: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(recipe_of(folder, tmp_path, change))


def test_every_stage_trains_without_the_held_out_images(folder: Path, tmp_path: Path) -> None:
    other = {
        "kind": "fashion_mnist",
        "split": "train",
    }  # labels of another space: soft labels alone
    soft = {"objective": {"hard": None, "soft": {"loss": "kl"}}}
    stages = [
        STAGE,
        {**STAGE, "name": "two", "data": {"train": other}, "student": soft},
        {**STAGE, "name": "three"},
    ]
    plan = make_plan(
        load_recipe(recipe_of(folder, tmp_path, {"train": {"budget": None}, "stages": stages}))
    )
    evaluated = names(plan.eval_source, folder)
    for stage in (plan.stages[0], plan.stages[2]):
        assert len(stage.source) == 14
        assert not names(stage.source, folder) & evaluated
    assert len(plan.stages[1].source) == 6000


def test_a_stage_may_not_read_the_same_images_under_other_settings(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("\n".join(SIZES))
    again = {
        "kind": "image_folder",
        "path": f"{folder}/../images",
        "classes": str(tmp_path / "names.txt"),
    }
    stages = [STAGE, {**STAGE, "name": "two", "data": {"train": again}}]
    recipe = load_recipe(recipe_of(folder, tmp_path, {"train": {"budget": None}, "stages": stages}))
    with pytest.raises(
        InputError,
        match=r"stages.two.data.train: reads .*images with other settings than data.train",
    ):
        make_plan(recipe)


def test_the_data_are_opened_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def opening(spec: Any, root: Path, key: str, *args: Any) -> Source:
        opened.append(key)
        return open_source(spec, root, key, *args)

    monkeypatch.setattr(holdout, "open_source", opening)
    stages = [STAGE, {**STAGE, "name": "two"}]
    plan = make_plan(
        load_recipe(recipe_of(folder, tmp_path, {"train": {"budget": None}, "stages": stages}))
    )
    assert opened == ["data.train"]
    assert plan.eval_source is not None
    assert [len(stage.source) for stage in plan.stages] == [14, 14]
    assert len(plan.eval_source) == 6


def test_two_words_for_one_split_are_the_same_images(folder: Path, tmp_path: Path) -> None:
    data = load_recipe(recipe_of(folder, tmp_path)).data
    saved = schema.SavedDatasetSpec(kind="saved", path="saved", split="validation")
    data = data.model_copy(update={"train": saved})
    with pytest.raises(
        InputError, match=r"stages.two.data.train: reads .*with other settings than data.train"
    ):
        open_train(
            data, saved.model_copy(update={"split": "val"}), tmp_path, "stages.two.data.train"
        )
    with pytest.raises(
        InputError, match="saved does not exist"
    ):  # another split: opened, if it were there
        open_train(
            data, saved.model_copy(update={"split": "test"}), tmp_path, "stages.two.data.train"
        )


def test_single_images_cannot_be_held_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "single").mkdir()
    (tmp_path / "single/dog").symlink_to(folder / "dog")
    recipe = load_recipe(recipe_of(tmp_path / "single", tmp_path))
    with pytest.raises(InputError, match=r"each class of data.train has a single image"):
        open_eval(recipe.data, Path())
