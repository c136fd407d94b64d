"""Which evaluation is the best, by each metric, in values and in a run."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from tiny import EVERYTHING, best, records, report, run, write_recipe

from distill.errors import InputError
from distill.evaluation.accuracy import Accuracy
from distill.evaluation.metric import METRICS
from distill.recipe.schema import EvaluateSpec
from distill.student.student import Best
from distill.training.loop import DONE

LOWER = {"loss", "teacher_kl"}


def test_recipes_name_the_metrics_that_there_are() -> None:
    assert set(get_args(EvaluateSpec.model_fields["metric"].annotation)) == METRICS.keys()


@pytest.mark.parametrize("name", METRICS)
def test_better_is_larger_or_smaller_and_never_equal(name: str) -> None:
    metric = METRICS[name]
    assert metric.better(1.0, None)
    assert metric.better(2.0, 1.0) is (name not in LOWER)
    assert metric.better(1.0, 2.0) is (name in LOWER)
    assert not metric.better(1.0, 1.0)
    values = {"none": None, "a": 1.0, "b": 2.0, "c": 1.0, "d": 2.0}
    assert metric.best_of(values) == ("a" if name in LOWER else "b"), "of equal ones the first"
    assert metric.best_of({"none": None}) is None
    accuracy = Accuracy(1.0, 2.0, 3.0, 10, agreement=4.0, teacher_kl=5.0)
    assert metric.of(accuracy) == accuracy.as_dict()[name]


@pytest.mark.parametrize("name", METRICS)
def test_a_run_keeps_the_weights_that_its_metric_prefers(name: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "students": {key: EVERYTHING["students"][key] for key in ("lamb", "sgd")},
        "train": {"budget": "6 iterations"},
        "evaluate": {"every": "1 iterations", "metric": name},
    }
    assert run(write_recipe(tmp_path, EVERYTHING, changes)) == DONE
    evaluated = [line for line in records(tmp_path / "run") if line["event"] == "evaluate"]
    choose = min if name in LOWER else max
    bests = {}
    for student in ("lamb", "sgd"):
        found = [
            (line["models"][model][name], -line["step"], model)
            for line in evaluated
            for model in line["models"]
            if model.partition("/")[0] == student
        ]
        value = bests[student] = choose(score for score, _, _ in found)
        first = max(step for score, step, _ in found if score == value)
        reported = report(tmp_path / "run")["students"][student]["best"]
        assert (reported["metric"], reported[name], reported["step"]) == (name, value, -first)
        record = best(tmp_path / "run", student)[1]
        assert (record["metric"], record[name], record["step"]) == (name, value, -first)
    assert report(tmp_path / "run")["best"] == choose(bests, key=lambda key: bests[key])


def test_a_record_of_an_earlier_version_is_of_top1() -> None:
    record = {"top1": 61.5, "step": 4, "weights": "raw", "loss": 1.5}
    assert Best.from_dict(record) == Best(61.5, 4, "raw", "top1")
    own = Best(1.5, 4, "raw", "loss")
    assert Best.from_dict(json.loads(json.dumps(own.as_dict()))) == own


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher=null", "evaluate.metric=teacher_kl"], "evaluate.metric: teacher_kl compares"),
        (["teacher=null", "evaluate.metric=agreement"], "evaluate.metric: agreement compares"),
        (["evaluate.metric=top2"], "evaluate.metric"),
    ],
)
def test_a_metric_that_cannot_be_is_refused(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        run(write_recipe(tmp_path), *overrides)
