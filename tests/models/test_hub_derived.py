"""What students, checkpoints and means of several weights derive from."""

from pathlib import Path
from typing import Any

from tiny import write_recipe

from distill.models.hub.derived import (
    derived_from_all,
    noted_licences,
    recorded_teachers,
    teachers_of,
    teachers_of_checkpoint,
)
from distill.recipe import load_recipe

LIMITED = "cc-by-nc-4.0"
TEACHER = {"model": "cifar_resnet14", "weights": "random", "image_size": 16}


def teacher(model: str, licence: str | None) -> dict[str, Any]:
    stated = {} if licence is None else {"license": licence}
    return {"teacher": {"model": model, "weights": model, "sha256": "0", **stated}}


def several(**teachers: Any) -> dict[str, Any]:
    return {"teachers": teachers}


def test_one_teacher_of_all_members_stays_the_teacher() -> None:
    one = teacher("a", "mit")
    assert derived_from_all([{}, one, one]) == one
    assert derived_from_all([one, several(other=one["teacher"])]) == one


def test_of_several_teachers_every_one_is_kept() -> None:
    records = [teacher(name, licence) for name, licence in zip("ab", (None, LIMITED), strict=True)]
    found = derived_from_all([{}, *records, records[0]])
    assert found == several(teacher=records[0]["teacher"], **{"teacher-2": records[1]["teacher"]})
    noted = noted_licences(found, teachers_of(found, None, {}).values(), None, ())
    assert [each.licence for each in noted] == [None, LIMITED]


def test_teachers_of_one_name_are_numbered_and_others_keep_theirs() -> None:
    a, b, c = (teacher(name, None)["teacher"] for name in "abc")
    same = several(big=a, wide=b)
    assert derived_from_all([same, same]) == same
    assert derived_from_all([same, several(big=c, wide=b)]) == several(
        **{**same["teachers"], "big-2": c}
    )
    assert derived_from_all([same, {"teacher": c}]) == several(big=a, wide=b, teacher=c)


def test_a_student_has_the_teachers_that_it_reads(tmp_path: Path) -> None:
    """The origins of the run name them all; earlier checkpoints and records name one or none."""
    changes = {
        "teacher": None,
        "teachers": {"big": TEACHER, "wide": TEACHER},
        "students": {
            "both": {"objective": {"soft": {"loss": "kl"}}},
            "one": {"objective": {"soft": {"loss": "kl"}, "soft_teachers": {"wide": 1}}},
            "alone": {},
        },
    }
    recipe = load_recipe(write_recipe(tmp_path, changes))
    inputs = {"teacher/big (SHA-256)": "1", "teacher/wide (SHA-256)": "2"}
    said = teachers_of_checkpoint(recipe, {"inputs": inputs})
    assert {row: each["sha256"] for row, each in said.items()} == {
        "teacher/big": "1",
        "teacher/wide": "2",
    }
    own = {"model": "m", "weights": "w", "sha256": "0"}
    values = {"inputs": inputs, **recorded_teachers({"teacher/big": own})}
    assert values["teachers"] == {"big": own}
    found = teachers_of_checkpoint(recipe, values)
    assert found == {"teacher/big": own, "teacher/wide": said["teacher/wide"]}
    report = {"origins": {**found, "both": {"began_with": "random weights"}}}
    for student, rows in (("both", [*found]), ("one", ["teacher/wide"]), ("alone", [])):
        of_report = teachers_of({"student": student}, recipe, report)
        assert of_report == {row: found[row] for row in rows}
    record = {"student": "one", "teachers": {"wide": own}}
    assert teachers_of(record, recipe, {}) == {"teacher/wide": own}
    assert teachers_of({"teacher": own}, None, {}) == {"teacher": own}


def test_first_weights_stay_with_their_licence() -> None:
    scratch = {"began_with": "random weights"}
    limited = {"began_with": "pretrained x", "began_with_license": "cc-by-nc-4.0"}
    free = {"began_with": "pretrained y", "began_with_license": "mit"}
    unknown = {"began_with": "weights.pth"}
    assert derived_from_all([scratch, free, limited]) == limited
    assert derived_from_all([scratch, unknown]) == unknown
    assert derived_from_all([scratch, scratch]) == scratch
    assert derived_from_all([{}, {}]) == {}
