"""CI fails on a skip that is not in the list of tests/skips.py."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

FILES = {
    "test_passes": "def test_passes(): pass",
    "test_gpu": """
        import pytest
        @pytest.mark.skip(reason="needs a CUDA device, and torch sees none")
        def test_gpu(): ...
    """,
    "test_known": """
        import pytest
        @pytest.mark.xfail
        def test_known(): assert False
    """,
    "test_zero": """
        import pytest
        def test_zero(): pytest.importorskip("no_such_package")
    """,
    "test_whole": """
        import pytest
        pytest.importorskip("no_such_package")
    """,
}


CONFTEST = f"""
    import sys
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    import skips
    def pytest_configure(config):
        config.pluginmanager.register(skips)
"""


@pytest.mark.parametrize("options", [[], ["-n", "1"]], ids=["one process", "xdist"])
def test_a_skip_that_is_not_expected_fails(options: list[str], pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(**FILES)
    ran = pytester.runpytest_inprocess(*options)
    assert ran.ret == pytest.ExitCode.TESTS_FAILED
    shown = ran.stdout.str()
    assert "SKIPPED IN CI test_zero.py::test_zero: could not import 'no_such_package'" in shown
    assert "SKIPPED IN CI test_whole.py: could not import 'no_such_package'" in shown
    assert shown.count("SKIPPED IN CI") == 2
    for name in ("test_zero.py", "test_whole.py"):
        (pytester.path / name).unlink()
    ran = pytester.runpytest_inprocess(*options)
    assert ran.ret == pytest.ExitCode.OK
    assert "SKIPPED IN CI" not in ran.stdout.str()
