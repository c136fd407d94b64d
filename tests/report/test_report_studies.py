"""The report of a study: its table as a section of its own, above its runs."""

import re
from pathlib import Path

import pytest
import tiny
import yaml
from command import Cli

from distill.study.stored import plan_study, read_plan, write_plan
from distill.study.work import run_job


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two runs, one of which has ended."""
    folder = tmp_path_factory.mktemp("grid")
    tiny.write_recipe(folder, {"train": {"budget": "4 iterations"}}, name="base")
    study = {
        "name": "grid",
        "recipe": "base.yaml",
        "output": str(folder / "out"),
        "axes": {
            "optimizer.lr": [0.05, 0.1],
            "seed": {"<b>one</b>": {"seed": 0}, "b_2": {"seed": 1}},
        },
        "table": {"title": "Rates", "rows": ["optimizer.lr"], "columns": ["seed"]},
        "paper": {"0.05": [70.0, 71.0]},
    }
    (folder / "grid.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    plan = plan_study(str(folder / "grid.yaml"))
    write_plan(plan)
    return folder / "out"


def test_a_study_without_records(grid: Path, cli: Cli) -> None:
    done = cli("report", grid)
    assert done.code == 2
    assert "no run of this study has recorded anything yet" in done.err


def test_a_study_has_its_table(grid: Path, cli: Cli) -> None:
    assert run_job(read_plan(grid), 0) == 0
    done = cli("report", grid, "--no-predictions")
    assert done.code == 0, done.err
    page, text = (grid / "report.html").read_text(), (grid / "report.md").read_text()
    assert '<h2 id="study">Rates</h2>' in page
    assert "&lt;b&gt;one&lt;/b&gt;" in page
    assert "<b>one" not in page
    rows = re.findall(r"<tr><th scope=\"row\" class=\"text\">(0\.\d+)</th>(.*?)</tr>", page)
    assert [label for label, _ in rows] == ["0.05", "0.1"]
    assert re.search(r"<td>\d+\.\d\d \(70\.00\)</td><td>not run \(71\.00\)</td>", rows[0][1])
    assert "## Rates" in text
    assert re.search(r"^\| 0\.05 \| \d+\.\d\d \(70\.00\) \| not run \(71\.00\) \|$", text, re.M)
    assert "b\\_2" in text
    assert (grid / "report.html").read_text().count("<h2") >= 4
