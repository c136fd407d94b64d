"""The licence that is stated with weights: it reaches what is distilled from them."""

import json
from pathlib import Path

import pytest

from distill.models.hub.download import licence_in
from distill.models.hub.licences import Noted
from distill.models.origin import origin_of_folder
from distill.models.student import first_weights
from distill.recipe.schema import StudentSpec


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ("license: mit", "mit"),
        ("license: [mit, cc-by-nc-4.0, gpl-3.0]", "cc-by-nc-4.0"),
        ("license: [apache-2.0, mit]", "apache-2.0"),
        ("license: other\nlicense_name: ask-first", "ask-first"),
        ("tags: [timm]", None),
        ("license: []", None),
        ("", None),
    ],
)
def test_the_licence_of_a_card(tmp_path: Path, metadata: str, licence: str | None) -> None:
    assert licence_in(tmp_path) is None
    for start in (b"", b"\xef\xbb\xbf"):
        card = start + f"---\n{metadata}\n---\n# A net of ".encode() + b"Andr\xe9"
        (tmp_path / "README.md").write_bytes(card)
        assert licence_in(tmp_path) == licence


@pytest.mark.parametrize(
    "card",
    ["---\nlicense: [mit\n---\n", "---\n- mit\n---\n", "---\nlicense: {a: mit}\n---\n"],
)
def test_a_licence_that_cannot_be_read_demands_a_choice(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_text(card)
    assert Noted("teacher", licence_in(tmp_path)).needs_choice


def test_a_card_without_metadata_states_no_licence(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# A net\n---\nlicense: mit\n---\n")
    assert licence_in(tmp_path) is None


@pytest.mark.parametrize(
    ("record", "licence"),
    [
        ({"teacher": {"model": "big", "license": "cc-by-nc-4.0"}}, "cc-by-nc-4.0"),
        ({"teacher": {"license": "mit"}, "began_with_license": "gpl-3.0"}, "gpl-3.0"),
        ({"teacher": {"model": "big"}}, None),
        ({}, None),
        ({"teacher": "me"}, "not readable"),
    ],
)
def test_an_export_as_a_teacher_has_the_licence_of_its_own(
    tmp_path: Path, record: dict[str, object], licence: str | None
) -> None:
    config = {"architecture": "resnet18", "num_classes": 10, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert origin_of_folder(tmp_path, None, "teacher.model").licence is None
    (tmp_path / "distill.json").write_text(json.dumps(record))
    assert origin_of_folder(tmp_path, None, "teacher.model").licence == licence


def test_a_student_that_begins_with_an_export_has_its_licence(tmp_path: Path) -> None:
    config = {"architecture": "resnet18", "num_classes": 10, "pretrained_cfg": {}}
    file = tmp_path / "model.safetensors"
    spec = StudentSpec.model_construct(model="resnet18", weights=str(file))
    began_with = {"began_with": str(file)}
    assert first_weights(spec) == {**began_with, "began_with_license": "not readable"}
    file.write_bytes(b"")
    assert first_weights(spec) == began_with, "a file of weights alone states nothing"
    (tmp_path / "config.json").write_text(json.dumps(config))
    record = {"teacher": {"license": "cc-by-nc-4.0"}, "began_with_license": "mit"}
    (tmp_path / "distill.json").write_text(json.dumps(record))
    assert first_weights(spec) == {**began_with, "began_with_license": "cc-by-nc-4.0"}
