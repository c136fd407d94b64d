"""Stores of features before the head, and of drawn classes: who can learn from them."""

import re
from pathlib import Path
from typing import Any

import pytest
from command import Cli
from tiny import assert_equal_tensors, run, tensors, write_recipe

from distill.data.targets import PRE_LOGITS
from distill.errors import InputError
from distill.models.teacher import Teacher
from distill.recipe import load_recipe
from distill.training.check import check_recipe
from distill.training.loop import DONE
from distill.training.verify_targets import verify_targets
from distill.training.write_targets import write_targets

HARD = {"loss": "ce"}
HINTS: dict[str, Any] = {
    "train": {"budget": "6 iterations"},
    "data": {"mixing": {"mixup": 0.2, "cutmix": 1.0, "group_size": 8}},
    "students": {
        "kd": {"objective": {"hard": HARD, "soft": {"loss": "kl", "temperature": 4.0}}},
        "dist": {"objective": {"hard": HARD, "soft": {"loss": "dist"}, "hint": {"loss": "cc"}}},
        "rkd": {"objective": {"hard": HARD, "hint": {"loss": "rkd"}}},
        "crd": {"objective": {"hard": HARD, "hint": {"loss": "crd", "negatives": 32}}},
        "feature": {"objective": {"soft": None, "hard": HARD, "hint": {"loss": "feature"}}},
    },
}
ONE: dict[str, Any] = {
    "students": {"kd": {"objective": {"soft": {"loss": "kl"}}}},
    "train": {"budget": "4 iterations"},
}


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def features(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose students read logits and pooled features, with its store of features."""
    folder = tmp_path_factory.mktemp("features")
    path = write_recipe(
        folder, HINTS, {"targets": str(folder / "store"), "teacher": {"dtype": request.param}}
    )
    assert write_targets(load_recipe(path), keep=PRE_LOGITS) == 0
    return path


@pytest.mark.slow
def test_a_run_from_features_is_the_run_behind_the_teacher(features: Path, tmp_path: Path) -> None:
    live, stored = tmp_path / "live", tmp_path / "stored"
    assert run(features, f"output={live}", "targets=null") == DONE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teacher, "__init__", None)
        check_recipe(load_recipe(features))
        assert run(features, f"output={stored}") == DONE
    assert_equal_tensors(tensors(live), tensors(stored))


@pytest.mark.parametrize("features", ["fp32"], indirect=True)
def test_the_store_of_features(
    features: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], cli: Cli
) -> None:
    verify_targets(load_recipe(features), 16)
    assert "16 images of the store against the teacher: all bit" in capfd.readouterr().out
    store = features.parent / "store"
    head = store / "head"
    intact = head.read_bytes()
    for content in (intact[:-1] + bytes([intact[-1] ^ 1]), None):
        head.unlink() if content is None else head.write_bytes(content)
        with pytest.raises(InputError, match=r"store/head: is (damaged|missing).* writes damaged"):
            run(features, f"output={tmp_path / 'run'}")
        with pytest.raises(InputError, match=r"store/head: is (damaged|missing).* writes damaged"):
            verify_targets(load_recipe(features), 16)
        outcome = cli("targets", features, "--keep", "pre-logits")
        assert outcome.code == 0, outcome.err
        out = re.sub(r"\s+", " ", outcome.out)
        assert "the 64 features before the head in fp32, 256 bytes an image" in out
        assert head.read_bytes() == intact
    without_hints = [f"students.{name}=null" for name in ("dist", "rkd", "crd", "feature")]
    with pytest.raises(InputError, match="has the 64 features before the head in fp32, and all 10"):
        write_targets(load_recipe(features, without_hints))
    assert cli("targets", features, "--keep", "pre-logits", "--sampled", "2").code == 2


def test_hints_need_features(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, ONE, {"targets": str(tmp_path / "store")})
    assert write_targets(load_recipe(path), keep=3) == 0
    for hint in ("cc", "rkd", "crd", "feature"):
        message = rf"students.kd.objective.hint: {hint} reads features of the teacher, and \S+ has"
        with pytest.raises(InputError, match=message):
            run(path, f"students.kd.objective.hint.loss={hint}")
    recipe = load_recipe(path, ["students.kd.objective.hint.loss=rkd", f"targets={tmp_path}/new"])
    with pytest.raises(InputError, match=r"and --keep 3 has logits alone: .*--keep pre-logits"):
        write_targets(recipe, keep=3)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "hint", ["{loss: fitnet}", "{loss: reviewkd}", "{loss: feature, level: dense}"]
)
def test_feature_maps_are_not_stored(tmp_path: Path, hint: str) -> None:
    path = write_recipe(tmp_path, ONE, {"targets": "store"})
    with pytest.raises(InputError, match=r"objective.hint: \w+ reads feature maps of the teacher"):
        load_recipe(path, [f"students.kd.objective.hint={hint}"])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with a store of drawn classes."""
    folder = tmp_path_factory.mktemp("drawn")
    path = write_recipe(folder, ONE, {"targets": str(folder / "store")})
    assert write_targets(load_recipe(path), keep=3, num_draws=2) == 0
    return path


def test_drawn_classes_are_for_linear_losses(drawn: Path, cli: Cli) -> None:
    verify_targets(load_recipe(drawn), 16)
    for loss, name in (
        ("{loss: kl, temperature: 2}", "kl at temperature 2"),
        ("{loss: dkd}", "dkd at temperature 1"),
        ("{loss: dist}", "dist at temperature 1"),
        ("{loss: bkl, min_confidence: 0.2}", "bkl at temperature 1 with min_confidence 0.2"),
    ):
        with pytest.raises(InputError, match=f"and for bce_teacher, and this is {name}"):
            run(drawn, f"students.kd.objective.soft={loss}")
        changed = load_recipe(drawn, [f"students.kd.objective.soft={loss}", "targets=new"])
        with pytest.raises(InputError, match="--keep 3 --sampled has classes drawn"):
            write_targets(changed, keep=3, num_draws=2)
    outcome = cli("targets", drawn, "--keep", "3", "--sampled", "2")
    out = " ".join(outcome.out.split())
    assert "3 largest of 10 logits, the sum of the rest and 2 classes drawn" in out
    assert "there is nothing to write" in out
    outcome = cli("targets", drawn, "--keep", "3")
    assert (outcome.code, "same --keep and --sampled" in " ".join(outcome.err.split())) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kl", "bkl", "bce_teacher"])
def test_a_run_from_drawn_classes(drawn: Path, tmp_path: Path, loss: str) -> None:
    """Its losses are those of the rows; no seed of its own is in them."""
    outputs = [tmp_path / "one", tmp_path / "two"]
    for output in outputs:
        assert (
            run(drawn, f"output={output}", f"students.kd.objective.soft={{loss: {loss}}}") == DONE
        )
    assert_equal_tensors(*map(tensors, outputs))
