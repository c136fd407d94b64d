"""What is drawn: points as recorded, means of long curves, the share of waiting, styles."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.report.curves import CurveSource, Panel, legend, panels
from distill.report.records import RunRecords, read_run

STUDENTS = ("alone", "kd", "vit")


@pytest.fixture
def run(tiny_run: Path) -> RunRecords:
    return read_run(tiny_run)


def by_title(found: list[Panel]) -> dict[str, Panel]:
    return {panel.title: panel for panel in found}


def test_curves_are_the_records(run: RunRecords) -> None:
    found = by_title(panels([CurveSource(run, STUDENTS)]))
    soft = found["Loss, soft term"]
    assert [curve.label for curve in soft.curves] == ["kd"]
    assert soft.curves[0].xs == (1, 2, 3, 4, 5, 6)
    assert soft.curves[0].ys == tuple(each["students"]["kd"]["loss_soft"] for each in run.trained)
    top1 = {curve.label: curve for curve in found["Top-1"].curves}
    assert set(top1) == {"teacher", *STUDENTS, *(f"{name}/ema-0.5" for name in STUDENTS)}
    assert top1["vit/ema-0.5"].ys == tuple(
        each["models"]["vit/ema-0.5"]["top1"] for each in run.evaluated
    )
    assert top1["vit"].style.colour == top1["vit/ema-0.5"].style.colour
    assert top1["vit"].style.dash != top1["vit/ema-0.5"].style.dash
    assert len(set(legend(list(found.values())).values())) == 7
    assert not [title for title in found if title.startswith("Gradient norm")]
    assert "Loss, hint term" not in found


def test_waiting_is_a_share_of_the_interval(run: RunRecords) -> None:
    batch = run.recipe.train.batch_size_global
    records: list[dict[str, Any]] = [
        {"event": "train", "step": step, "images_per_s": 4 * batch, "data_wait_s": wait}
        | {"students": {}}
        for step, wait in ((10, 0.5), (20, 2.5), (21, 9.0))
    ]
    changed = replace(run, trained=tuple(records))
    (waiting,) = by_title(panels([CurveSource(changed, STUDENTS)]))["Time waiting for data"].curves
    # Ten steps take 2.5 s at four batches a second; one takes less than its wait.
    assert waiting.ys == (20.0, 100.0, 100.0)


def test_a_long_curve_shows_means_and_keeps_its_end(run: RunRecords) -> None:
    records = [
        {"event": "train", "step": step, "students": {"kd": {"lr": float(step % 2)}}}
        for step in range(1, 3001)
    ]
    panel = by_title(panels([CurveSource(replace(run, trained=tuple(records)), STUDENTS)]))[
        "Learning rate"
    ]
    (curve,) = panel.curves
    assert panel.averaged
    assert len(curve.xs) == 300
    assert curve.xs[-1] == 3000
    assert set(curve.ys) == {0.5}


def test_runs_with_other_batches_are_drawn_over_images(run: RunRecords) -> None:
    train = run.recipe.train.model_copy(update={"batch_size_global": 32})
    other = replace(run, recipe=run.recipe.model_copy(update={"train": train}))
    sources = [CurveSource(run, STUDENTS, "a: ", 0), CurveSource(other, STUDENTS, "b: ", 1)]
    panel = by_title(panels(sources))["Loss, soft term"]
    assert panel.x_label == "training images"
    assert [(curve.label, curve.xs[-1]) for curve in panel.curves] == [
        ("a: kd", 96),
        ("b: kd", 192),
    ]
    same = [CurveSource(run, STUDENTS, "a: ", 0), CurveSource(run, STUDENTS, "b: ", 1)]
    assert by_title(panels(same))["Loss, soft term"].x_label == "step"


def test_values_that_are_no_numbers_are_left_out(run: RunRecords) -> None:
    values = [1.0, None, "x", True, float("inf"), 2.0]
    records = [
        {"event": "train", "step": step, "students": {"kd": {"loss_total": value}, "vit": {}}}
        for step, value in enumerate(values)
    ]
    found = by_title(panels([CurveSource(replace(run, trained=tuple(records)), STUDENTS)]))
    (curve,) = found["Loss, total"].curves
    assert (curve.xs, curve.ys) == ((0, 5), (1.0, 2.0))


def test_stages_are_marked_where_they_begin(run: RunRecords) -> None:
    records = [
        {"event": "train", "step": step, "stage": stage, "students": {"kd": {"lr": 0.1}}}
        for step, stage in ((1, "a"), (2, "a"), (3, "b"), (4, "c"))
    ]
    found = panels([CurveSource(replace(run, trained=tuple(records)), STUDENTS)])
    assert by_title(found)["Learning rate"].marks == (2.0, 3.0)


def test_nothing_is_drawn_of_a_run_without_entries(tiny_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (copy / "metrics.jsonl").unlink()
    assert panels([CurveSource(read_run(copy), STUDENTS)]) == []
