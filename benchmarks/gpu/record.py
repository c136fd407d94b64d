"""The file of a check, complete after each figure, and the time that a part may take."""

import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Figures = dict[str, Any]


class Record:
    """A JSON file with the figures of each part. One process writes it at a time: the check before
    and after a part, the part itself in between.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Figures:
        """Return all figures; none if the file does not exist."""
        found: Figures = json.loads(self.path.read_text()) if self.path.exists() else {}
        return found

    def write(self, figures: Figures) -> None:
        """Replace the file in one step, so that it is complete whenever a run is cut."""
        temporary = self.path.with_name(f".{self.path.name}-{os.getpid()}")
        temporary.write_text(json.dumps(figures, indent=1) + "\n")
        temporary.replace(self.path)

    def put(self, value: object, *keys: str) -> None:
        """Set one figure: `put(3, "parts", "tests", "passed")`."""
        figures = self.read()
        inner = figures
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = value
        self.write(figures)


class PartRecord:
    """A part's own figures in the file, and its time.

    Args:
        until: of `time.time()`: the end of the part's time.
    """

    def __init__(self, record: Record, part: str, until: float) -> None:
        self.record = record
        self._part, self._until = part, until
        self.num_failed = 0

    def put(self, value: object, *keys: str) -> None:
        """Set a figure of this part."""
        self.record.put(value, "parts", self._part, *keys)

    def of(self, part: str) -> Figures:
        """Return the figures of an earlier part; none if it did not run."""
        found: Figures = self.record.read().get("parts", {}).get(part, {})
        return found

    def item(self, needed_s: float, measure: Callable[[], Figures], *keys: str) -> None:
        """Measure an item of the part and record it. An item that would not fit in the time, or
        fails, is recorded by name, and the next one follows.
        """
        name = ", ".join(keys)
        left = self._until - time.time()
        if needed_s > left:
            reason = f"not enough time: needs about {needed_s:.0f} s, {max(left, 0):.0f} s are left"
            print(f"{name}: skipped, {reason}", flush=True)
            self.put({"skipped": reason}, *keys)
            return
        started = time.time()
        try:
            found = measure()
        except (Exception, SystemExit) as error:  # a model that fails must not cost the others
            self.num_failed += 1
            reason = f"{type(error).__name__}: {str(error).strip()[:2000]}"
            print(f"{name}: FAILED, {reason}", flush=True)
            self.put({"failed": reason, "traceback": traceback.format_exc()[-4000:]}, *keys)
            return
        self.put({**found, "seconds": round(time.time() - started, 1)}, *keys)
