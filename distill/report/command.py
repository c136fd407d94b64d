"""`distill report`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from distill.console import make_console
from distill.errors import InputError
from distill.processes import several_processes

_NEEDED = ("matplotlib", "jinja2")


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN", help="The folders of runs, which may still be training, or of studies."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="The folder to write into. Default: that of the run; ./report for several runs."
        ),
    ] = None,
    student: Annotated[
        list[str] | None,
        typer.Option(help="Show only this student; may be given several times."),
    ] = None,
    no_predictions: Annotated[
        bool,
        typer.Option(
            "--no-predictions",
            help="Do not evaluate the best weights: no classes and no images are shown.",
        ),
    ] = False,
    no_images: Annotated[bool, typer.Option("--no-images", help="Show no images.")] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images in a batch of the evaluation.")
    ] = 256,
    num_workers: Annotated[
        int | None,
        typer.Option(min=0, help="Number of decoding processes. Default: the CPU cores."),
    ] = None,
) -> None:
    """Write a page about a run or a study: results, curves, classes, cost.

    It writes report.html, one file that needs no network, and report.md. For
    one run it evaluates the best weights of the students and the teacher once
    more, to show what they confuse and where they differ. Several runs share
    their curves and a table of what differs between their recipes. The page
    of a study has its table, too.

    Examples:
      distill report runs/quickstart/students
      distill report runs/quickstart/students --student kd --no-images
      distill report runs/first runs/second --output comparison
      distill report runs/studies/quickstart
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(
            f"distill report needs {' and '.join(missing)}: pip install 'vanillakd[report]'"
        )
    if several_processes():
        raise InputError("distill report runs in one process: start it without a launcher")
    from distill.report.content import Options
    from distill.report.write import write_report

    console = make_console()

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    options = Options(
        tuple(student or ()), not no_predictions, not no_images, batch_size, num_workers, say
    )
    html, markdown = write_report(runs, output, options)
    say(f"{html}: {html.stat().st_size / 1000:,.0f} kB")
    say(f"{markdown}: the same as Markdown")
