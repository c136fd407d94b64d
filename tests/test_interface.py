"""The Python interface: `import distill` in a notebook."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm

import distill


def test_the_import_is_fast_and_lists_its_functions() -> None:
    code = (
        "import sys, distill\n"
        "assert not {'torch', 'timm', 'pydantic', 'rich'} & sys.modules.keys()\n"
        "assert set(distill.__all__) <= set(dir(distill))\n"
        "distill.load_recipe('quickstart/students')\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_each_function_is_documented() -> None:
    for name in distill.__all__:
        function = getattr(distill, name)
        assert {"Args:", "Raises:"} <= set((function.__doc__ or "").split()), name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        distill.trian  # noqa: B018


def test_train_evaluate_and_export(tiny_recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = tiny_recipe()
    run = distill.train(path, {"train.budget": "2 iterations", "evaluate.every": "1 iterations"})
    assert run.done
    assert run.best == "alone"
    assert run.report["steps"] == 2
    scores = distill.evaluate(run.output, num_workers=0)
    assert set(scores) == {"teacher", "alone"}
    assert 0 <= scores["alone"].top1 <= scores["alone"].top5 <= 100
    assert scores["alone"].top1 == run.report["students"]["alone"]["best"]["top1"]
    assert run.best_weights() == run.output / "best/alone"
    loaded = distill.load_recipe(path, ["train.budget=2 iterations", "evaluate.every=1 iterations"])
    assert distill.train(loaded).report == run.report, "the run is complete"
    with pytest.raises(ValueError, match="overrides belong to the call of load_recipe"):
        distill.train(loaded, {"seed": 1})
    distill.export(run.output, str(tmp_path / "export"))
    model = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True)
    assert model.num_classes == 10
    assert "Conv2d" not in repr(scores), "a notebook shows the scores, not every layer"


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"unreadable": "ignore"}, "--unreadable ignore: should be one of error, skip"),
        ({"batch_size": "7"}, "--batch-size 7: give a number from 1 to 65536"),
        ({"batch_size": 0}, "--batch-size 0: give a number from 1 to 65536"),
        ({"num_workers": -1}, "--num-workers -1: give a number of processes, 0 or more"),
    ],
)
def test_values_that_the_command_line_would_refuse(
    tiny_run: Path, wrong: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        distill.evaluate(tiny_run, **wrong)


def test_an_unknown_format_writes_nothing(tiny_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "export"
    with pytest.raises(ValueError, match="--format onnxx: should be one of timm, onnx, torch-exp"):
        distill.export(tiny_run, output, student="kd", format="onnxx")  # type: ignore[arg-type]
    assert not output.exists()
