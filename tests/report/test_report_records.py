"""Reading what a run records: unfinished, half-written, damaged, empty."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from distill.errors import InputError
from distill.report.records import read_run


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to change."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def metrics(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines(keepends=True)


def test_a_finished_run_is_read_whole(tiny_run: Path) -> None:
    found = read_run(tiny_run)
    assert found.finished
    assert [record["step"] for record in found.trained] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in found.evaluated] == [3, 6]
    assert found.step == 6
    assert found.checkpoint is not None
    assert found.checkpoint.state.step == 6
    assert found.recipe_text == (tiny_run / "recipe.yaml").read_text()


def test_an_unfinished_run_is_read_up_to_its_last_whole_line(run: Path) -> None:
    (run / "report.json").unlink()
    lines = metrics(run)
    kept = next(i for i, line in enumerate(lines) if json.loads(line)["step"] == 5)
    (run / "metrics.jsonl").write_text("".join(lines[:kept]) + lines[kept][:40])
    found = read_run(run)
    assert not found.finished
    assert found.step == 4
    assert found.num_damaged == 0
    assert [record["step"] for record in found.evaluated] == [3]


def test_damaged_lines_are_counted_and_left_out(run: Path) -> None:
    lines = metrics(run)
    bad = [
        "{]\n",
        "3\n",
        '{"event": "train", "step": "3"}\n',
        '{"event": "train", "step": 3, "students": {"kd": 5}}\n',
        '{"step": 3}\n',
    ]
    (run / "metrics.jsonl").write_bytes("".join([*lines[:2], *bad, *lines[2:]]).encode() + b"\xff")
    found = read_run(run)
    assert found.num_damaged == len(bad)
    assert len(found.trained) == 6


def test_a_run_without_metrics_has_its_report(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    assert read_run(run).finished


def test_a_run_without_checkpoints_is_read(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    assert read_run(run).checkpoint is None


def no_folder(run: Path) -> Path:
    return run / "absent"


def no_run(run: Path) -> Path:
    (run / "recipe.yaml").unlink()
    return run


def nothing_recorded(run: Path) -> Path:
    (run / "report.json").unlink()
    (run / "metrics.jsonl").write_text('{"event": "train", "st')
    return run


def not_started(run: Path) -> Path:
    (run / "report.json").unlink()
    (run / "metrics.jsonl").unlink()
    return run


def damaged_report(run: Path) -> Path:
    (run / "report.json").write_text('{"steps": 6')
    return run


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (no_folder, "there is no such folder"),
        (no_run, "is not the folder of a run"),
        (nothing_recorded, "has recorded nothing yet"),
        (not_started, "has recorded nothing yet"),
        (damaged_report, r"report\.json: damaged .*delete it"),
    ],
)
def test_what_cannot_be_reported_is_refused(
    run: Path, change: Callable[[Path], Path], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        read_run(change(run))
