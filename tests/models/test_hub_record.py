"""What report.json and distill.json must say, so that a card can be made of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.errors import InputError
from distill.models.export_format import read_record
from distill.models.hub.record import check_report

FILE = Path("report.json")


def report() -> dict[str, Any]:
    return {
        "students": {"kd": {"best": {"top1": 1.0}}, "stopped": {"best": None}},
        "origins": {"teacher": {"model": "a", "weights": "b", "sha256": "c"}},
        "data": {"train": [{"images_used": 5, "kind": "parquet"}], "eval": None},
        "device_hours": 1.5,
        "num_processes": 1,
        "device": "cpu",
        "versions": {"torch": "2.9"},
    }


def test_a_report_that_says_all_or_little() -> None:
    check_report(report(), FILE)
    check_report({"students": {"kd": None}}, FILE)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r: r.update(students=[]), "students is"),
        (lambda r: r["students"].update(kd=1), r"students\.kd is 1"),
        (lambda r: r["origins"].update(teacher="me"), r"origins\.teacher is 'me'"),
        (lambda r: r["origins"]["teacher"].pop("weights"), r"origins\.teacher\.weights is"),
        (
            lambda r: r["origins"].update({"teacher/big": {"model": "m"}}),
            r"origins\.teacher/big\.weights is",
        ),
        (lambda r: r.update(origins=[]), "origins is"),
        (lambda r: r["data"].update(train=5), r"data\.train is 5"),
        (lambda r: r["data"].update(train=[{}]), r"data\.train\.0\.images_used is"),
        (lambda r: r.update(device_hours="x"), "device_hours is 'x'"),
        (lambda r: r.update(device_hours=float("nan")), "device_hours is nan"),
        (lambda r: r.pop("device"), "has device_hours, and not of how many devices"),
        (lambda r: r.update(versions={"torch": 2}), r"versions\.torch is 2"),
    ],
)
def test_a_report_that_was_edited_by_hand(
    change: Callable[[dict[str, Any]], object], match: str
) -> None:
    edited = report()
    change(edited)
    with pytest.raises(InputError, match=match) as refused:
        check_report(edited, FILE)
    assert "the same `distill train` command, which writes it again" in str(refused.value)


@pytest.mark.parametrize("content", ["[1]", '[["a", 1]]', '"text"', "{", "[" * 100_000])
def test_a_record_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "distill.json").write_text(content)
    with pytest.raises(InputError, match=r"distill\.json: (cannot be read|is not the record)"):
        read_record(tmp_path)
