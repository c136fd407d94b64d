"""The figures of a report against report.json, and against a count by hand with timm alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from predicted import predicted
from tables import Page
from timm.data import create_transform, resolve_data_config

from distill.data.decode import read_image
from distill.data.fashion import CLASSES, open_fashion_mnist
from distill.models import cifar as cifar  # registers its models
from distill.report.classes import agreement, class_gains, confusion_matrix, worst_classes
from distill.report.write import write_report


@pytest.fixture(scope="module")
def page(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    html, _ = write_report([tiny_run], tmp_path_factory.mktemp("page"))
    return Page(html)


@pytest.fixture(scope="module")
def answers(tiny_run: Path) -> dict[str, list[tuple[int, int]]]:
    """(label, class named) of each evaluation image, by student: its exported weights through
    timm's own loading and transform.
    """
    source = open_fashion_mnist("test", tiny_run.parent / "eval", "data.eval")
    found = {}
    for name in ("alone", "kd", "vit"):
        folder = tiny_run / "best" / name
        net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        transform = create_transform(**resolve_data_config(model=net))
        pixels = torch.stack([transform(read_image(source, i)) for i in range(len(source))])
        with torch.no_grad():
            named = net(pixels).argmax(1).tolist()
        found[name] = list(zip(source.labels.tolist(), named, strict=True))
    return found


def shown(value: float | None, pattern: str = ".2f") -> str:
    return "–" if value is None else format(value, pattern)


def test_the_final_table_is_that_of_the_run(page: Page, tiny_run: Path) -> None:
    report = json.loads((tiny_run / "report.json").read_text())
    table = page.table("Final results")
    rows = {row[0].split("\n")[0]: row[1:] for row in table}
    words = {row[0].split("\n")[0]: row[0].split("\n")[1:] for row in table}
    teacher = report["teacher"]
    assert words["kd"] == ["cifar_resnet8, 0.08 M", "1 ce + 1 kl"]
    assert rows["teacher"][:2] == [shown(teacher["top1"]), shown(teacher["top5"])]
    for name, student in report["students"].items():
        last, best = student["last"], student["best"]["top1"]
        assert rows[name] == [
            shown(last["top1"]),
            shown(last["top5"]),
            shown(best),
            shown(last["agreement"]),
            shown(last["teacher_kl"], ".4f"),
        ]
    averages = [row for row in page.table("Final results") if row[0] == "ema-0.5"]
    expected = [report["students"][name]["averages"]["ema-0.5"] for name in report["students"]]
    assert [row[1] for row in averages] == [shown(each["top1"]) for each in expected]
    assert len(averages) == 3


def test_confusion_and_gains_equal_a_count_by_hand(
    page: Page, answers: dict[str, list[tuple[int, int]]]
) -> None:
    counts = [[0] * len(CLASSES) for _ in CLASSES]
    for label, named in answers["kd"]:
        counts[label][named] += 1
    detail = page.tables_of("kd ")
    matrix = {row[0]: row[1:] for row in detail["Confusion of the classes"][1:]}
    for index, name in enumerate(CLASSES):
        assert matrix[name] == [str(count) if count else "" for count in counts[index]], name
    worst = detail["The worst classes"][1:]
    for name, images, right, _, taken_for in worst:
        row = counts[CLASSES.index(name)]
        assert int(images) == sum(row)
        assert right == shown(100 * row[CLASSES.index(name)] / sum(row), ".1f")
        others = sorted(
            ((count, name) for count, name in zip(row, CLASSES, strict=True)), reverse=True
        )
        largest = next(count for count, other in others if other != name)
        assert taken_for.split(")")[0].endswith(f"({largest}")
    rights = [float(row[2]) for row in worst]
    assert rights == sorted(rights)

    def accuracy(student: str, label: int) -> float:
        own = [named for each, named in answers[student] if each == label]
        return 100 * sum(named == label for named in own) / len(own)

    gains = {row[0]: row[1:] for row in detail["Every class"][1:]}
    assert len(gains) == len(CLASSES)
    for index, name in enumerate(CLASSES):
        ours, theirs = accuracy("kd", index), accuracy("alone", index)
        expected = [shown(ours, ".1f"), shown(theirs, ".1f"), shown(ours - theirs, "+.1f")]
        assert gains[name] == expected, name


def test_student_and_teacher_are_compared_as_the_run_did(page: Page, tiny_run: Path) -> None:
    for name in ("alone", "kd", "vit"):
        record: dict[str, Any] = json.loads((tiny_run / "best" / name / "distill.json").read_text())
        summary = next(each for each in page.headings if each.startswith(f"{name} "))
        assert f"{record['top1']:.2f} % of 53 images right" in summary
        assert f"agrees with the teacher on {record['agreement']:.2f} %" in summary


def test_the_best_student_comes_first_and_the_one_alone_has_no_gains(
    page: Page, tiny_run: Path
) -> None:
    best = json.loads((tiny_run / "report.json").read_text())["best"]
    summaries = [each for each in page.headings if "images right" in each]
    assert summaries[0].startswith(f"{best} ")
    assert "Every class" in page.tables_of("kd ")
    assert "Every class" not in page.tables_of("alone ")


def test_costs_are_those_of_the_run(page: Page, tiny_run: Path) -> None:
    report = json.loads((tiny_run / "report.json").read_text())
    assert page.fact("energy of the GPUs") == "not measured"
    assert float(page.fact("device hours (CPU processes)")) == pytest.approx(
        report["device_hours"], rel=0.01
    )
    speed = report["throughput"]["images_per_s"]
    assert page.fact("mean speed") == f"{speed:,.0f} images/s"
    assert "Gradient norms were not recorded: log.gradient_norms: true records them." in page.text


LABELS = [0, 0, 0, 1, 1, 2]
STUDENT = predicted(LABELS, [0, 1, 1, 1, 1, 0], [0.9] * 6)
TEACHER = predicted(LABELS, [0, 0, 1, 0, 1, 3], [0.8] * 6)
NAMES = ("a", "b", "c", "d")


def test_agreement_counts_each_case_once() -> None:
    found = agreement(STUDENT, TEACHER)
    assert (found.both_right, found.only_teacher, found.only_student) == (2, 1, 1)
    assert (found.both_wrong_alike, found.both_wrong_apart) == (1, 1)
    assert found.same == 50.0


def test_the_worst_classes_are_those_with_errors_in_order() -> None:
    first, second = worst_classes(STUDENT, TEACHER, NAMES, 5)
    assert (first.name, first.num_images, first.right, first.teacher) == ("c", 1, 0.0, 0.0)
    assert first.taken_for == (("a", 1),)
    assert (second.name, second.num_images, second.taken_for) == ("a", 3, (("b", 2),))
    assert second.right == pytest.approx(100 / 3)


def test_a_matrix_of_some_classes_counts_the_others_together() -> None:
    matrix = confusion_matrix(STUDENT, NAMES, 1)
    assert matrix is not None
    assert matrix.names == ("c",)
    assert matrix.counts.tolist() == [[0, 1]]
    whole = confusion_matrix(STUDENT, NAMES, 4)
    assert whole is not None
    assert whole.names == ("a", "b", "c"), "no row for a class without images"
    assert whole.counts.tolist() == [[1, 2, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0]]
    assert confusion_matrix(predicted([0, 1], [0, 1]), NAMES, 4) is None


def test_gains_leave_out_classes_without_images() -> None:
    gains = class_gains(STUDENT, TEACHER, NAMES)
    assert [each.name for each in gains] == ["b", "c", "a"]
    assert [round(each.gain, 3) for each in gains] == [50.0, 0.0, -33.333]
