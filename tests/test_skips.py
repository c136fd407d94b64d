"""CI fails on a skip that is not in the list of tests/skips.py."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

# Their names are those of no other test file: a run of the whole suite has imported the others
# already, and pytest refuses a second module of one name.
FILES = {
    "test_skips_passes": "def test_passes(): pass",
    "test_skips_gpu": (
        """
        import pytest
        @pytest.mark.skip(reason="needs a CUDA device, and torch sees none")
        def test_gpu(): ...
    """
    ),
    "test_skips_known": (
        """
        import pytest
        @pytest.mark.xfail
        def test_known(): assert False
    """
    ),
    "test_skips_missing": (
        """
        import pytest
        def test_zero(): pytest.importorskip("no_such_package")
    """
    ),
    "test_skips_module": (
        """
        import pytest
        pytest.importorskip("no_such_package")
    """
    ),
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
    assert (
        "SKIPPED IN CI test_skips_missing.py::test_zero: could not import 'no_such_package'"
        in shown
    )
    assert "SKIPPED IN CI test_skips_module.py: could not import 'no_such_package'" in shown
    assert shown.count("SKIPPED IN CI") == 2
    for name in ("test_skips_missing.py", "test_skips_module.py"):
        (pytester.path / name).unlink()
    ran = pytester.runpytest_inprocess(*options)
    assert ran.ret == pytest.ExitCode.OK
    assert "SKIPPED IN CI" not in ran.stdout.str()
