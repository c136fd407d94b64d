"""`distill report` as it is typed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import Cli
from PIL import Image

from distill.report import command


def test_it_writes_into_the_folder_of_the_run(cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    before = {path.name for path in run.iterdir()}
    ended = cli("report", run)
    assert ended.code == 0, ended.err
    written = {path.name for path in run.iterdir()} - before
    assert written == {"report.html", "report.md", "curves.png"}
    with Image.open(run / "curves.png") as picture:
        assert picture.info["Software"] == "distill report"
        assert picture.size[0] > 600
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 10, "something is drawn"
    assert f"{run}/report.html: " in ended.out
    size = (run / "report.html").stat().st_size
    assert 50_000 < size < 500_000
    first = (run / "report.html").read_text()
    assert cli("report", run, "--no-images").code == 0
    second = (run / "report.html").read_text()
    assert "data:image/png" in first
    assert "data:image/png" not in second
    assert "images right" in second


def test_several_runs_are_written_into_report(
    cli: Cli, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = shutil.copytree(tiny_run, tmp_path / "twin")
    monkeypatch.chdir(tmp_path)
    assert cli("report", tiny_run, twin).code == 0
    assert (tmp_path / "report" / "report.html").is_file()


def test_bad_input_is_one_message_and_changes_nothing(
    cli: Cli, tiny_run: Path, tmp_path: Path
) -> None:
    empty = Path(shutil.copytree(tiny_run, tmp_path / "empty"))
    (empty / "report.json").unlink()
    (empty / "metrics.jsonl").write_text("")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "report.html").write_text("<p>mine</p>")
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    Image.new("RGB", (8, 8)).save(drawn / "curves.png")
    (tmp_path / "file").write_text("a file")
    before = sorted(tmp_path.rglob("*"))
    for arguments, says in (
        ((empty,), "this run has recorded nothing yet"),
        ((tiny_run, empty), "this run has recorded nothing yet"),
        ((tmp_path / "absent",), "there is no such folder"),
        ((tiny_run, tiny_run), "a run is named twice"),
        ((tiny_run, "--student", "nobody"), "--student nobody: there is no such student"),
        ((tiny_run, "--output", foreign), "was not written by distill report"),
        ((tiny_run, "--output", drawn), "curves.png: was not written by distill report"),
        ((tiny_run, "--output", tmp_path / "file"), "is a file: name a folder with --output"),
        ((tiny_run, "--output", tmp_path / "file" / "below"), "is a file"),
        ((tiny_run, "--output", "/proc/none"), "cannot be written"),
    ):
        ended = cli("report", *arguments, "--no-predictions")
        assert ended.code == 2, (arguments, ended.err)
        assert says in ended.err
        assert "Traceback" not in ended.err
    assert sorted(tmp_path.rglob("*")) == before
    assert (foreign / "report.html").read_text() == "<p>mine</p>"
    assert not (tiny_run / "report.html").exists()


def test_missing_libraries_are_named(
    cli: Cli, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_NEEDED", ("jinja2", "a_library_that_nobody_has"))
    ended = cli("report", tiny_run)
    assert ended.code == 2
    assert "distill report needs a_library_that_nobody_has: pip install" in ended.err
    assert "'vanillakd[report]'" in ended.err
    assert not (tiny_run / "report.html").exists()


def test_a_launcher_is_refused(cli: Cli, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    ended = cli("report", tiny_run)
    assert ended.code == 2
    assert "start it without a launcher" in ended.err


def test_help_imports_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys; from distill.__main__ import main\n"
        "sys.argv = ['distill', 'report', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'matplotlib', 'jinja2', 'numpy'} & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "RUN..." in ended.stdout
