"""`distill publish` and the files of `distill report`."""

import os
import shutil
from pathlib import Path

from command import Cli
from fake_hub import FakeHub

from distill.checkpoint.layout import REPORT_FILE

PAGE = ("report.html", "report.md", "curves.png")


def test_the_report_of_a_run_is_published_without_images(
    hub: FakeHub, tiny_run: Path, tmp_path: Path, cli: Cli
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run, symlinks=True)
    publish = ("publish", run, "alice/net", "--student", "kd", "--license", "mit")
    assert cli("report", run, "--no-predictions").code == 0
    page = (run / "report.html").read_text()
    (run / "report.html").write_text(page + '<img src="data:image/jpeg;base64,AAAA">')
    done = cli(*publish)
    assert done.code == 0, done.err
    assert "report.html is left out: it shows images of the evaluation set" in done.out
    assert f"`distill report {run} --no-images`" in done.out
    files = hub["alice/net"].files()
    assert "report.html" not in files
    assert files["report.md"] == (run / "report.md").read_bytes()
    (run / "report.html").write_text(page)
    done = cli(*publish)
    assert "left out" not in done.out
    files = hub["alice/net"].files()
    for name in PAGE:
        assert files[name] == (run / name).read_bytes()
    assert "![Training curves](curves.png)" in files["README.md"].decode()


def test_a_report_that_is_older_than_the_run_is_left_out(
    hub: FakeHub, tiny_run: Path, tmp_path: Path, cli: Cli
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run, symlinks=True)
    before = (run / REPORT_FILE).stat().st_mtime - 10
    for name in PAGE:
        (run / name).write_bytes(b"old")
        os.utime(run / name, (before, before))
    done = cli("publish", run, "alice/net", "--student", "kd", "--license", "mit", "--dry-run")
    assert done.code == 0, done.err
    for name in PAGE:
        assert f"{name} is left out: it is older than report.json" in done.out
        assert f"  {name} " not in done.out
    assert "![Training curves]" not in done.out
