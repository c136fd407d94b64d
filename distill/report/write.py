"""Write the report of runs: report.html, report.md, and curves.png for a model card."""

import os
from collections.abc import Sequence
from pathlib import Path

from distill.checkpoint.layout import CURVES_FILE, PAGE_FILE, PAGE_TEXT_FILE
from distill.errors import InputError
from distill.files import atomic_write, os_errno, replace_text
from distill.report.content import Options, make_content
from distill.report.picture import SOFTWARE, draw_picture
from distill.report.render import render_html, render_markdown
from distill.report.studies import expand_studies

_DEFAULT_FOLDER = Path("report")  # of several runs
# What marks a file of ours, so that no other is overwritten.
_MARKS = {
    PAGE_FILE: '<meta name="generator" content="distill report">',
    PAGE_TEXT_FILE: "Written by distill",
    CURVES_FILE: SOFTWARE,
}


def write_report(
    runs: Sequence[str | Path], output: str | Path | None = None, options: Options | None = None
) -> tuple[Path, Path]:
    """Writes a report about one run, or one that compares several, or about a study.

    Args:
        runs: the folders of runs, which may still be training, and of studies, each for all of its
            runs that have recorded something.
        output: the folder to write into; None: the folder of the run or study, and ./report for
            several.
        options: what the report contains.

    Returns:
        The HTML file and the Markdown file; curves.png is beside them if there are curves.

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
    records, tables = expand_studies(folders)
    _refuse_foreign(target)
    content = make_content(records, options or Options(), tables)
    if (picture := draw_picture(content.panels)) is not None:
        _write(target / CURVES_FILE, picture)
    return (
        _write(target / PAGE_FILE, render_html(content)),
        _write(target / PAGE_TEXT_FILE, render_markdown(content)),
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


def _write(file: Path, content: str | bytes) -> Path:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            replace_text(file, content)
        else:
            atomic_write(file, lambda opened: opened.write(content))
    except OSError as error:
        raise InputError(
            f"{file}: cannot be written: {os.strerror(os_errno(error) or 0)}: choose another folder"
            " with --output"
        ) from error
    return file
