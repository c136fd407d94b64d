"""What a mean of several weights derives from."""

import pytest

from distill.models.hub.derived import derived_from_all


def teacher(model: str, licence: str | None) -> dict[str, object]:
    stated = {} if licence is None else {"license": licence}
    return {"teacher": {"model": model, "weights": model, "sha256": "0", **stated}}


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (("mit", "cc-by-nc-4.0", "mit"), "b"),
        ((None, "mit", "gpl-3.0"), "c"),
        ((None, None, "mit"), "a"),
        (("mit", None, "apache-2.0"), "a"),
        ((None, None, None), "a"),
    ],
)
def test_of_several_teachers_the_one_that_limits_most(
    licences: tuple[str | None, ...], expected: str
) -> None:
    records = [teacher(name, licence) for name, licence in zip("abc", licences, strict=True)]
    found = derived_from_all([{}, *records])
    assert found["teacher"]["model"] == expected


def test_first_weights_stay_with_their_licence() -> None:
    scratch = {"began_with": "random weights"}
    limited = {"began_with": "pretrained x", "began_with_license": "cc-by-nc-4.0"}
    free = {"began_with": "pretrained y", "began_with_license": "mit"}
    unknown = {"began_with": "weights.pth"}
    assert derived_from_all([scratch, free, limited]) == limited
    assert derived_from_all([scratch, unknown]) == unknown
    assert derived_from_all([scratch, scratch]) == scratch
    assert derived_from_all([{}, {}]) == {}
