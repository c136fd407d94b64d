"""`distill data inspect` of a recipe in stages: whose augmentation the sheet shows, and what is
said of it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Cli

from distill.datatools import look
from distill.datatools.sheet import view_of
from distill.errors import InputError
from distill.recipe import load_recipe

STAGES = [
    {
        "name": name,
        "budget": "1 iterations",
        "data": {"augment": {"crop": "padded", "padding": padding}},
    }
    for name, padding in (("early", 3), ("late", 5))
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(look, "_SPEED_S", 0.05)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def staged(tiny_recipe: Callable[..., Path], photos: Path) -> Path:
    data: dict[str, Any] = {"train": {"kind": "image_folder", "path": str(photos)}, "eval": None}
    return tiny_recipe({"train": {"budget": None}, "data": data, "stages": STAGES})


def test_the_view_is_a_stage_s_and_says_which(staged: Path) -> None:
    recipe = load_recipe(staged)
    for stage, padding, said in ((None, 3, "early"), ("early", 3, "early"), ("late", 5, "late")):
        view = view_of(recipe, "mine", None, stage)
        assert (view.augment.padding, view.augment_of) == (padding, f"mine, stage {said}")
    with pytest.raises(
        InputError,
        match=(
            r"--stage lat: the recipe has no stage 'lat' \(did you mean 'late'\?\); it has early,"
            r" late"
        ),
    ):
        view_of(recipe, "mine", None, "lat")


def test_the_command_takes_a_stage(
    staged: Path, photos: Path, cli: Cli, tiny_recipe: Callable[..., Path]
) -> None:
    def inspect(*arguments: object) -> tuple[int, str, str]:
        return cli("data", "inspect", photos, "--images", 4, "--workers", 0, *arguments)

    for chosen, said in (((), "early"), (("--stage", "late"), "late")):
        code, out, err = inspect("--recipe", staged, *chosen)
        assert (code, err) == (0, "")
        assert (
            out.replace("\n            ", "").splitlines()[-1].endswith(f"{staged}, stage {said}")
        )
    plain = tiny_recipe({}, name="plain")
    for arguments, said in (
        (("--stage", "late"), "--stage: is of --recipe; give both, or neither"),
        (
            ("--recipe", plain, "--stage", "late"),
            "--stage late: the recipe has no stage 'late'; it has none",
        ),
    ):
        code, out, err = inspect(*arguments)
        assert (code, out, said in err) == (2, "", True)


def test_data_of_a_stage_is_seen_as_in_that_stage(staged: Path, cli: Cli) -> None:
    for name, said in (
        ("data.train", "data.train, stage early"),
        ("stages.late.data.train", "stages.late.data.train"),
    ):
        code, out, err = cli("data", "inspect", f"{staged}:{name}", "--images", 4, "--workers", 0)
        assert (code, err) == (0, "")
        assert out.splitlines()[-1].endswith(said)
