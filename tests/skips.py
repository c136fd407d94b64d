"""In CI a test may be skipped for a reason of this list alone: an unexpected skip would hide what
is no longer tested.

A pytest plugin, registered by conftest.py where the variable CI is set. Elsewhere a machine may
lack what tests need.
"""

import re
from typing import Any

import pytest

# A pattern of the whole reason -> why CI cannot have what the test needs.
ALLOWED = {
    r"needs a CUDA device.*": "CI has no GPU; these tests run by hand with -m gpu",
    r"root reads every folder": "containers run as root, which no permission stops",
    r"a small disk wants the right to mount one": "a container may not mount a disk, even as root",
}


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(
        config, "workerinput"
    ):  # of xdist, whose main process sees the reports of all workers
        config.pluginmanager.register(_Skips())


class _Skips:
    def __init__(self) -> None:
        self._unexpected: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._look_at(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._look_at(report)

    def _look_at(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        assert isinstance(report.longrepr, tuple)
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not any(re.fullmatch(pattern, reason, re.DOTALL) for pattern in ALLOWED):
            self._unexpected.append(f"{report.nodeid}: {reason}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self._unexpected and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for skip in self._unexpected:
            terminalreporter.write_line(f"SKIPPED IN CI {skip}", red=True)
        if self._unexpected:
            terminalreporter.write_line(
                "CI fails on these skips: install what the tests need in .ci/run, or enter the"
                " reason in tests/skips.py"
            )
