"""Progress for people: on a terminal a bar for the run and a table with a row a student, elsewhere
plain lines. Only the main process prints.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table

from distill import console
from distill.console import hours_minutes
from distill.errors import printable
from distill.evaluation.metric import Metric

_REFRESH_HZ = 4
_BAR_WIDTH = 12  # the minimum, with the blanks around it
_OTHER_LINES = 5  # the bar, up to two lines of status, the heading, and the cursor's own


@dataclass
class Row:
    """What the row of a model shows."""

    loss: float | None = None
    lr: float | None = None
    top1: float | None = None
    best: float | None = None
    agreement: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Progressed:
    """Progress of a run. `left_s` is None before the first step."""

    step: int
    epoch: float
    images_per_s: float | None
    memory_bytes: int
    elapsed_s: float
    left_s: float | None


def _number(value: float | None, pattern: str) -> str:
    return "" if value is None else format(value, pattern)


def _pace(now: Progressed, since_s: float = 0.0) -> str:
    """Speed, memory and times, `since_s` seconds after they were measured."""
    speed = [] if now.images_per_s is None else [f"{now.images_per_s:,.0f} images/s"]
    left = [] if now.left_s is None else [f"{hours_minutes(max(now.left_s - since_s, 0.0))} left"]
    elapsed = f"{hours_minutes(now.elapsed_s + since_s)} elapsed"
    return ", ".join([*speed, f"{now.memory_bytes / 2**30:.1f} GiB", elapsed, *left])


class Screen:
    """The display of a run. Use as a context manager around training.

    Args:
        teachers: the names of the teachers' rows.
        total_epochs: passes over the data that the run makes.
        show: whether this process shows anything.
    """

    def __init__(
        self,
        *,
        title: str,
        students: list[str],
        teachers: list[str],
        total_steps: int,
        total_epochs: float,
        metric: Metric,
        show: bool,
    ) -> None:
        self.console = console.make_console()
        self.rows = {name: Row() for name in students}
        self.teachers = {name: Row() for name in teachers}
        self._metric, self._show = metric, show
        self._total_steps, self._total_epochs = total_steps, total_epochs
        self._doing = "starting"
        self._progressed: Progressed | None = None
        self._progressed_at = time.monotonic()
        steps_width = len(f"{total_steps}/{total_steps} steps")
        title_width = max(self.console.width - steps_width - _BAR_WIDTH, 10)
        self._bar = Progress(
            TextColumn(
                "{task.description}",
                style="bold",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", max_width=title_width),
            ),
            BarColumn(None),
            TextColumn(
                "{task.completed}/{task.total} steps",
                justify="right",
                table_column=Column(no_wrap=True, justify="right", min_width=steps_width),
            ),
            expand=True,
        )
        self._task = self._bar.add_task(printable(title), total=total_steps)
        self._live: Live | None = None

    def __enter__(self) -> "Screen":
        if self._show and self.console.is_terminal and not self.console.is_dumb_terminal:
            # Transient: only the table at the end, or an error message, stays.
            self._live = Live(
                self, console=self.console, refresh_per_second=_REFRESH_HZ, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    @property
    def live(self) -> bool:
        """Whether the display is live."""
        return self._live is not None

    # ---- the display -----------------------------------------------------------------------------

    def __rich__(self) -> Group:
        return Group(self._bar, self.status(), self.table())

    def status(self) -> str:
        """The line below the bar. Its times advance between two calls of `progress`."""
        if (now := self._progressed) is None:
            return self._doing
        total = f"{self._total_epochs:.2f}".rstrip("0").rstrip(".")
        epoch = f"epoch {now.epoch:.2f}/{total}"
        pace = f"{epoch}, {_pace(now, time.monotonic() - self._progressed_at)}"
        return f"{pace}; {self._doing}" if self._doing else pace

    def table(self) -> Table:
        """A row for each teacher and each student, as many as fit on the terminal."""
        with_teacher = bool(self.teachers)
        notes = any(row.note for row in self.rows.values())
        table = Table(box=None, pad_edge=False)
        table.add_column("", overflow="fold")
        headings = (
            "loss",
            "lr",
            "top-1 %",
            self._metric.best_label,
            *(("agrees %",) if with_teacher else ()),
        )
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        if notes:
            table.add_column("", overflow="fold")
        rows = [
            *self.teachers.items(),
            *self.rows.items(),
        ]
        max_rows = max(self.console.height - _OTHER_LINES, 2)
        shown = rows if len(rows) <= max_rows else rows[: max_rows - 1]
        for name, row in shown:
            cells = [
                name,
                _number(row.loss, ".4f"),
                _number(row.lr, ".2e"),
                _number(row.top1, ".2f"),
                _number(row.best, self._metric.pattern),
            ]
            agreement = [_number(row.agreement, ".2f")] if with_teacher else []
            table.add_row(*cells, *agreement, *([row.note] if notes else []))
        if len(shown) < len(rows):
            table.add_row(f"and {len(rows) - len(shown)} more")
        return table

    # ---- what happens ----------------------------------------------------------------------------

    def say(self, message: str) -> None:
        """Print a line above the display."""
        if self._show:
            self.console.print(console.wrapped(self.console, message), markup=False, soft_wrap=True)

    def advance(self, step: int) -> None:
        """Move the bar; cheap enough for every step."""
        self._doing = ""
        if self._live:
            self._bar.update(self._task, completed=step)

    def doing(self, what: str) -> None:
        """Show what happens until the next step."""
        self._doing = what

    def progress(self, now: Progressed) -> None:
        """Show progress."""
        self._progressed, self._progressed_at = now, time.monotonic()

    def trained(self, now: Progressed) -> None:
        """Show the end of a log interval; the rows are up to date."""
        self.progress(now)
        if not self._live:
            losses = self._each(lambda row: _number(row.loss, ".4f"))
            self._line(now, f"loss {losses}; {self._rates()}{_pace(now)}")

    def evaluated(self, now: Progressed) -> None:
        """Show the end of an evaluation; the rows are up to date."""
        self.progress(now)
        if not self._live:
            teacher = "".join(
                f"{name} {row.top1:.2f}, "
                for name, row in self.teachers.items()
                if row.top1 is not None
            )
            top1 = self._each(lambda row: _number(row.top1, ".2f"))
            agreements = self._each(lambda row: _number(row.agreement, ".2f"), notes=False)
            agrees = f"; agrees with teacher % {agreements}" if agreements else ""
            scores = f"top-1 % {teacher}{top1}{agrees}" if top1 else agrees.removeprefix("; ")
            self._line(now, scores)

    def _line(self, now: Progressed, text: str) -> None:
        """Print a line that programs can search: time, step, epoch, then the figures."""
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        self.say(f"{when} step {now.step}/{self._total_steps} epoch {now.epoch:.2f}: {text}")

    def _each(self, figure: Callable[[Row], str], notes: bool = True) -> str:
        """A figure of every student; for a stopped one its note, or nothing."""
        found = {
            name: (row.note if notes else "") if row.note else figure(row)
            for name, row in self.rows.items()
        }
        return ", ".join(f"{name} {text}" for name, text in found.items() if text)

    def _rates(self) -> str:
        """The learning rate: one for all students, or one for each."""
        rates = {
            name: f"{row.lr:.2e}"
            for name, row in self.rows.items()
            if row.lr is not None and not row.note
        }
        if len(set(rates.values())) == 1:
            return f"lr {next(iter(rates.values()))}; "
        return (
            f"lr {', '.join(f'{name} {rate}' for name, rate in rates.items())}; " if rates else ""
        )
