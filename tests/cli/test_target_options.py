"""--epochs and --keep of distill targets."""

import pytest

from distill.cli.targets import parse_epochs, parse_keep
from distill.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", [0]), ("1-3", [0, 1, 2]), ("3,7-9", [2, 6, 7, 8]), ("2,1-2", [0, 1])],
)
def test_epochs(text: str, expected: list[int]) -> None:
    assert parse_epochs(text) == expected


@pytest.mark.parametrize("text", ["", "0", "3-1", "-1", "1.5", "all", "1,,2", "1-9999999", "１"])
def test_wrong_epochs(text: str) -> None:
    with pytest.raises(InputError, match=r"--epochs .* counted from 1"):
        parse_epochs(text)


def test_keep() -> None:
    found = [parse_keep(text) for text in ("all", "pre-logits", "14")]
    assert found == ["all", "pre-logits", 14]
    for text in ("", "-1", "1.5", "most", "²", "9" * 5000):
        with pytest.raises(
            InputError, match=r"--keep .*should be a number such as 14, all or pre-logits"
        ):
            parse_keep(text)
