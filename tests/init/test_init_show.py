"""From a folder and a teacher to a trained student in two commands, and the teacher's accuracy is
timm's.
"""

import re
from pathlib import Path

import pytest
import timm
from command import Cli
from timm_loop import MODEL, SIZE, timm_accuracy

from distill.data.holdout import open_eval
from distill.recipe import load_recipe


def test_two_commands_from_nothing_to_a_student(
    photos: Path, teacher: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--teacher", teacher, "--teacher-model", MODEL, "--teacher-image-size", SIZE)
    written = cli("init", photos, *flags, "--student", "test_efficientnet", "--epochs", 1, "--yes")
    assert written.code == 0, written.err
    assert "distill train photos.yaml" in written.out
    assert cli("recipe", "check", "photos.yaml").code == 0
    trained = cli("train", "photos.yaml")
    assert trained.code == 0, trained.err

    recipe = load_recipe("photos.yaml")
    evaluated = open_eval(recipe.data, Path(recipe.data.root))
    assert evaluated is not None
    files = [Path(evaluated.describe(index)) for index in range(len(evaluated))]
    assert len(files) == 120
    right = timm_accuracy(teacher, files)
    assert 30 < right < 95  # neither chance nor a set that any view gets right
    printed = re.search(r"^teacher +(\d+\.\d+)", trained.out, re.MULTILINE)
    assert printed
    assert float(printed[1]) == round(right, 2)
    student = re.search(
        r"^student .* (\d+\.\d+) +\d+\.\d+ +(\d+\.\d+) +\d+\.\d+ +\d+\.\d+$",
        trained.out,
        re.MULTILINE,
    )
    assert student
    assert float(student[2]) > 100 / 6 + 10

    exported = cli("export", "runs/photos", "exports/photos")
    assert exported.code == 0, exported.err
    assert (
        timm.create_model(f"local-dir:{tmp_path / 'exports/photos'}", pretrained=True).num_classes
        == 6
    )
