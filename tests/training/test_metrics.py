"""metrics.jsonl: its records, a file that is moved while the run writes, and a resume."""

import json
import math
import shutil
from pathlib import Path

import pytest
from forks import kill_at_every_event

from distill.errors import InputError
from distill.training.metrics import MetricsFile, truncate_metrics


def test_metrics_are_json_whatever_the_loss(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", write=True)
    file.write("train", 3, {"loss": math.nan, "students": {"a": {"loss": math.inf, "lr": 0.1}}})
    file.write("train", 4, {"loss": 1.5})
    lines = (
        (tmp_path / "metrics.jsonl").read_text().splitlines()
    )  # before it is closed: a program may watch
    file.close()
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in lines)
    assert (first["event"], first["step"], first["loss"]) == ("train", 3, None)
    assert first["students"] == {"a": {"loss": None, "lr": 0.1}}
    assert second["loss"] == 1.5
    assert not (tmp_path / "other.jsonl").exists()
    MetricsFile(tmp_path / "other.jsonl", write=False).write("train", 1, {})
    assert not (tmp_path / "other.jsonl").exists()


def test_records_after_the_file_was_deleted_or_moved_are_in_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    messages: list[str] = []
    file = MetricsFile(path, write=True, say=messages.append)

    def steps(of: Path) -> list[int]:
        return [json.loads(line)["step"] for line in of.read_text().splitlines()]

    file.write("train", 1, {})
    path.unlink()
    file.write("train", 2, {})
    assert steps(path) == [2]
    path.rename(tmp_path / "rotated")
    file.write("train", 3, {})
    file.write("train", 4, {})
    assert steps(tmp_path / "rotated") == [2]
    assert steps(path) == [3, 4]
    path.rename(tmp_path / "older")
    path.write_text("")  # as logrotate's "create"
    file.write("train", 5, {})
    assert steps(path) == [5]
    path.write_text("")  # as logrotate's "copytruncate"
    file.write("train", 6, {})
    assert steps(path) == [6]
    assert [f"from step {n} on" in line for n, line in zip((2, 3, 5), messages, strict=True)] == [
        True
    ] * 3
    shutil.rmtree(tmp_path)
    with pytest.raises(InputError, match=r"metrics\.jsonl: cannot be written"):
        file.write("train", 7, {})


@pytest.mark.parametrize(
    ("text", "expected", "dropped"),
    [
        ('{"step": 1}\n{"step": 2}\n{"step": 3}\n', '{"step": 1}\n{"step": 2}\n', 1),
        ('{"step": 1}\n{"step": 2, "lo', '{"step": 1}\n', 1),
        (
            '{"event": "start"}\n{"step": 1, "x": 0.10}',
            '{"event": "start"}\n{"step": 1, "x": 0.10}\n',
            0,
        ),
        ('{"step": 1, "lo{"step": 2}\n{"step": 2}\n\n7\n', '{"step": 2}\n', 3),
        ('{"step": 3}\n', "", 1),
        ("", "", 0),
    ],
)
def test_metrics_after_the_resumed_step_and_torn_lines_go(
    tmp_path: Path, text: str, expected: str, dropped: int
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    assert truncate_metrics(path, 2) == dropped
    assert path.read_text() == expected
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_metrics_that_need_no_change_are_not_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert truncate_metrics(path, 2) == 0
    path.write_text('{"step": 1}\n')
    before = path.stat()
    assert truncate_metrics(path, 2) == 0
    assert path.stat().st_ino == before.st_ino


def test_metrics_survive_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    old = "".join(f'{{"step": {step}}}\n' for step in range(5))

    def check(messages: list[str]) -> None:
        assert path.read_text() in (old, '{"step": 0}\n{"step": 1}\n')

    kill_at_every_event(lambda: path.write_text(old), lambda say: truncate_metrics(path, 1), check)
