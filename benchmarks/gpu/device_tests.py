"""The tests that are marked `gpu`; in a rehearsal those of the same files that run on the CPU."""

import os
from pathlib import Path
from typing import Any

from benchmarks.gpu.record import PartRecord

ROOT = Path(__file__).resolve().parents[2]


def marked_files() -> list[str]:
    """Return where tests for a GPU are. Without it pytest would import the whole suite, for
    packages that a GPU machine may lack.
    """
    tests = ROOT / "tests"
    files = (path for path in tests.rglob("test_*.py") if "@pytest.mark.gpu" in path.read_text())
    return ["tests/gpu", *sorted(str(path.relative_to(ROOT)) for path in files)]


class Outcomes:
    """A plugin of pytest: how each test ended, recorded at its end."""

    def __init__(self, part: PartRecord) -> None:
        self._part = part
        self.names: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._add(report)

    def pytest_collectreport(self, report: Any) -> None:
        if report.outcome != "passed":
            self._add(report)

    def _add(self, report: Any) -> None:
        self.names[report.outcome].append(report.nodeid)
        if report.outcome == "failed":
            self._part.put(str(report.longrepr)[-3000:], "errors", report.nodeid)
        self._part.put(self.names, "outcomes")


def run(part: PartRecord, rehearsal: bool) -> None:
    """Run them in this process, and record how each ended. What pytest prints is printed.

    Raises:
        SystemExit: a test failed, or none passed.
    """
    import pytest

    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        del os.environ[name]  # of another pytest around this
    outcomes = Outcomes(part)
    # In a rehearsal the slow ones, which `make test-slow` runs, are left out.
    chosen = ["tests/gpu", "-m", "not gpu and not slow"]
    if not rehearsal:
        chosen = [*marked_files(), "-m", "gpu"]
    options = ["-v", "-p", "no:cacheprovider", "--durations=8", f"--rootdir={ROOT}"]
    code = pytest.main([*options, *chosen], plugins=[outcomes])
    counts = {outcome: len(names) for outcome, names in outcomes.names.items()}
    part.put(counts, "counts")
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()), flush=True)
    if code or not counts["passed"]:
        raise SystemExit(1)
