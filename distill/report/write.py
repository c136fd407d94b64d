"""Write the report of runs: report.html and report.md."""

import os
from collections.abc import Sequence
from pathlib import Path

from distill.errors import InputError
from distill.files import os_errno, replace_text
from distill.report.content import Options, make_content
from distill.report.records import read_run
from distill.report.render import render_html, render_markdown

HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"
_DEFAULT_FOLDER = Path("report")  # of several runs
# What marks a file of ours, so that no other is overwritten.
_MARKS = {
    HTML_FILE: '<meta name="generator" content="distill report">',
    MARKDOWN_FILE: "Written by distill",
}


def write_report(
    runs: Sequence[str | Path], output: str | Path | None = None, options: Options | None = None
) -> tuple[Path, Path]:
    """Writes a report about one run, or one that compares several.

    Args:
        runs: the folders of runs, which may still be training.
        output: the folder to write into; None: the folder of the run, and ./report for several.
        options: what the report contains.

    Returns:
        The HTML file and the Markdown file.

    Raises:
        InputError: a folder is no run, or one that recorded nothing; or the report cannot be
            written, or would replace a file that is no report.
    """
    folders = [Path(run) for run in runs]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("a run is named twice: name each run once")
    target = Path(output) if output is not None else _DEFAULT_FOLDER
    if output is None and len(folders) == 1:
        target = folders[0]
    records = [read_run(folder) for folder in folders]
    _refuse_foreign(target)
    content = make_content(records, options or Options())
    return (
        _write(target / HTML_FILE, render_html(content)),
        _write(target / MARKDOWN_FILE, render_markdown(content)),
    )


def _refuse_foreign(folder: Path) -> None:
    """Raises InputError where the report has no place, or would replace another file."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise InputError(f"{place}: is a file: name a folder with --output")
    for name, mark in _MARKS.items():
        file = folder / name
        if file.is_dir() or (file.exists() and mark not in file.read_text("utf-8", "replace")):
            raise InputError(
                f"{file}: was not written by distill report and would be lost: choose another"
                " folder with --output, or move it away"
            )


def _write(file: Path, text: str) -> Path:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, text)
    except OSError as error:
        raise InputError(
            f"{file}: cannot be written: {os.strerror(os_errno(error) or 0)}: choose another folder"
            " with --output"
        ) from error
    return file
