"""The model card: what it says, and that nothing in a name is read as Markdown."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from small_facts import facts

from distill.models.hub.card import has_text, model_card
from distill.models.hub.figures import Score, own_score
from distill.models.hub.licences import KNOWN, Noted, licence_text
from distill.models.hub.words import describe_recipe
from distill.recipe import load_recipe, shipped_recipes


def metadata(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_names_from_outside_are_escaped() -> None:
    card = model_card(
        facts(
            classes=("`rm`", "a|b", "<script>", "x\x1b[31m", "two\nlines"),
            record={"began_with": "/data/[click](http://example.org)/n|t.pth"},
            scores=[Score("s", "a|b <b>", 10, 50.0)],
            noted=[Noted("teacher *x*", None)],
        )
    )
    body = card.split("---\n", 2)[2]
    assert "`'rm'`, `a|b`, `<script>`, `x\\x1b[31m`, `two\\nlines`" in body
    assert "a\\|b \\<b\\>" in body
    assert "\x1b" not in body
    assert "\\*x\\*" in body
    assert "click" not in body, "folders of the machine are left out"


def test_a_name_cannot_leave_the_metadata() -> None:
    teacher = {"model": "x\nlicense: mit\n---\n", "weights": "pretrained a: b", "sha256": "0"}
    values = metadata(model_card(facts(record={"teacher": teacher})))
    assert values["teacher"] == "a: b"
    assert "license" not in values


def test_a_backbone_is_no_classifier() -> None:
    teacher = {"model": "vit_small_patch14_dinov2", "weights": "random weights", "sha256": "0"}
    card = model_card(facts(classes=(), num_classes=0, record={"teacher": teacher}))
    assert metadata(card)["pipeline_tag"] == "image-feature-extraction"
    assert "image-classification" not in card
    assert "A backbone for images, without classifier: `resnet18` (11.00 M parameters)" in card
    assert "It names no classes" in card
    assert "one of them" not in card


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_has_words(name: str) -> None:
    recipe = load_recipe(name)
    for student in recipe.students:
        sentences = describe_recipe(recipe, student)
        assert len(sentences) >= 4
        assert all(each.endswith(".") for each in sentences)
        for index in range(recipe.num_stages):
            own = recipe.at_stage(index)
            assert any(str(own.train.batch_size_global) in each for each in sentences)
            lr = f"{own.students[student].optimizer.lr:g}"
            assert any(f"learning rate {lr}" in each for each in sentences)


def test_hours_are_those_of_the_device() -> None:
    report = {"num_processes": 8, "device": "NVIDIA H200", "device_hours": 96.5}
    card = model_card(facts(report=report))
    assert "- GPU hours: 96.50 (8 x NVIDIA H200)." in card
    card = model_card(facts(report={**report, "device": "cpu"}))
    assert "- CPU process hours: 96.50 (8 x cpu)." in card


def test_without_figures_or_licence_the_card_says_so() -> None:
    card = model_card(facts())
    assert "Not evaluated." in card
    assert "No accuracy is known." in card
    assert "No licence has been chosen for these weights yet." in card
    assert "model-index" not in metadata(card)


def test_a_score_of_which_images_were_skipped_is_not_shown() -> None:
    record = {"top1": 50.0, "num_samples": 10}
    assert own_score(record) == Score(
        "own-evaluation-images", "evaluation images of the run", 10, 50.0
    )
    assert own_score({**record, "num_skipped": 1}) is None
    assert own_score({}) is None


@pytest.mark.parametrize("licence", sorted(KNOWN))
def test_every_licence_has_a_file(licence: str) -> None:
    text = licence_text(licence, "alice")
    assert text.endswith("\n")
    assert "HOLDER" not in text
    assert licence in text or licence in ("mit", "apache-2.0") or "creativecommons" in text


def test_the_texts_are_in_the_wheel() -> None:
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    assert '"models/hub/texts/*"' in pyproject.read_text()


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("", False),
        (" \n\n", False),
        ("---\nlicense: mit\n---\n", False),
        ("---\r\nlicense: mit\r\n---\r\n\r\n", False),
        ("# Mine", True),
        ("---\nlicense: mit\n---\n# Mine\n", True),
        ("---\nlicense: mit\n---\n# Mine\n\n---\n", True),
        ("---\nunfinished", True),
    ],
)
def test_a_card_of_metadata_alone_has_no_text(card: str, expected: bool) -> None:
    assert has_text(card) == expected
