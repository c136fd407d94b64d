"""The progress of this process's shards: a bar on a terminal, else a line now and then."""

import time

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from distill.console import hours_minutes, make_console
from distill.errors import printable

_EVERY_S = 30.0


class Progress:
    """Use as a context manager around the work."""

    def __init__(self, name: str, num_images: int, num_shards: int, *, show: bool) -> None:
        self._console = make_console()
        self._num_images, self._num_shards = num_images, num_shards
        self._show = show
        self._images = self._shards = self._new = 0
        self._began = self._printed_s = time.monotonic()
        self._bar = Bar(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(None),
            TextColumn("{task.fields[says]}", markup=False),
            console=self._console,
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task(printable(name), total=num_images, says="")
        self._live = show and self._console.is_terminal and not self._console.is_dumb_terminal

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bar.stop()

    def advance(self, num_images: int, *, was_there: bool) -> None:
        """Count a shard. The bar starts here, since worker processes should start before its
        thread.
        """
        self._images += num_images
        self._shards += 1
        self._new += 0 if was_there else num_images
        now = time.monotonic()
        rate = self._new / max(now - self._began, 1e-9)
        left = f", {hours_minutes((self._num_images - self._images) / rate)} left" if rate else ""
        says = f"{self._shards:,}/{self._num_shards:,} shards, {rate:,.0f} images/s{left}"
        if self._live:
            self._bar.start()
            self._bar.update(self._task, completed=self._images, says=says)
        elif self._show and now - self._printed_s > _EVERY_S:
            self._printed_s = now
            self._console.print(says, markup=False, soft_wrap=True)

    def finish(self, line: str, always: bool) -> None:
        """Print the last line, if this process shows progress or `always`."""
        if self._show or always:
            self._console.print(line, markup=False, soft_wrap=True)
