"""The tables in docs/scaling.md are current."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_of_the_document_are_those_that_the_benchmark_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    scaling = import_module("benchmarks.scaling")
    assert scaling.main([]) == 0
    printed = capsys.readouterr().out
    document = (ROOT / "docs" / "scaling.md").read_text()
    names = [line.split()[2] for line in document.splitlines() if line.startswith("<!-- table ")]
    assert names == ["counted", "assumed", "weak", "crossover", "runs", "paper"]
    for name in names:
        table = (
            document.split(f"<!-- table {name} -->\n")[1].split(f"<!-- end {name} -->")[0].strip()
        )
        assert len(table.splitlines()) > 3
        assert f"{name}\n\n{table}\n" in printed, (
            f"{name}: python -m benchmarks.scaling --write docs/scaling.md"
        )


def test_a_document_without_a_place_for_a_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    filled: Callable[..., str] = import_module("benchmarks.scaling").filled
    assert (
        filled("<!-- table a -->\nold\n<!-- end a -->", {"a": "new"})
        == "<!-- table a -->\nnew\n<!-- end a -->"
    )
    with pytest.raises(AssertionError):
        filled("", {"a": "new"})
