"""A run begins in an empty folder or in one of a run; any other is refused by name and
not touched.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from distill.errors import InputError
from distill.recipe import Recipe, dump_recipe, load_recipe
from distill.training.output_folder import is_run, refuse_foreign_output

Make = Callable[[Path], object]


def recipe_into(folder: Path, output: Path, *changes: dict[str, Any]) -> Recipe:
    return load_recipe(
        tiny.write_recipe(folder, *changes, {"students": {"alone": {}, "kd": {}}}),
        [f"output='{output}'"],
    )


def write(path: Path, text: str = "mine") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def begun(output: Path, recipe: Recipe) -> None:
    """What a run leaves that was stopped at once."""
    write(output / "recipe.yaml", dump_recipe(recipe))
    write(output / "metrics.jsonl", "")
    write(output / ".lock", "process 1 on host")


def snapshot(folder: Path) -> dict[str, str | None]:
    return {
        str(p.relative_to(folder)): p.read_text() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


FOREIGN: dict[str, Make] = {
    "a file of notes": lambda out: write(out / "thesis.txt"),
    "a recipe of the user's own": lambda out: write(
        out / "recipe.yaml", "extends: strategies/a2\nname: mine\n"
    ),
    "another program's checkpoints": lambda out: write(
        out / "checkpoints" / "step-00000001" / "weights.bin"
    ),
    "another program's best": lambda out: write(out / "best" / "kd" / "thesis.txt"),
    "another program's metrics": lambda out: write(out / "metrics.jsonl", '{"step": 900}\n'),
    "a recipe that cannot be read": (
        lambda out: write(out / "recipe.yaml", "a: [") and write(out / ".lock")
    ),
    "a hidden folder": lambda out: write(out / ".git" / "HEAD"),
}


@pytest.mark.parametrize("case", FOREIGN)
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_folder_that_is_no_run_is_refused_and_untouched(
    case: str, resume: str, tmp_path: Path
) -> None:
    output = tmp_path / "mine"
    output.mkdir()
    FOREIGN[case](output)
    before = snapshot(output)
    recipe = recipe_into(tmp_path, output, {"resume": resume})
    with pytest.raises(
        InputError, match=rf"{output}: is not the folder of a run: it holds .*output="
    ):
        tiny.train(recipe)
    assert snapshot(output) == before
    assert [p.name for p in tmp_path.glob("mine*")] == ["mine"]


def test_a_resolved_recipe_alone_makes_no_run(tmp_path: Path) -> None:
    """`distill recipe show X > recipe.yaml` writes one into a project's folder."""
    output = tmp_path / "project"
    recipe = recipe_into(tmp_path, output)
    write(output / "recipe.yaml", dump_recipe(recipe))
    with pytest.raises(InputError, match="is not the folder of a run"):
        refuse_foreign_output(recipe)


def test_a_user_without_a_home_has_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that is started with a number for its user."""

    def unknown(uid: int) -> object:
        raise KeyError(uid)

    recipe = recipe_into(tmp_path, tmp_path / "run")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.delenv("HOME")
    refuse_foreign_output(recipe)


@pytest.mark.parametrize(
    "names", [(), (".lock",), ("job-17.log", "job-17.err"), (".tmp-recipe.yaml-12",)]
)
def test_an_empty_folder_and_the_log_of_a_job_are_fine(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    output = tmp_path / "new"
    output.mkdir()
    for name in names:
        write(output / name)
    refuse_foreign_output(recipe_into(tmp_path, output))
    refuse_foreign_output(recipe_into(tmp_path, tmp_path / "not" / "yet" / "there"))


def test_a_run_continues_with_the_notes_that_its_user_left_there(tmp_path: Path) -> None:
    output = tmp_path / "run"
    recipe = recipe_into(tmp_path, output)
    begun(output, recipe)
    write(output / "notes.txt")
    write(output / "checkpoints" / "step-00000004" / "manifest.json")
    write(output / "best" / "kd" / "config.json")
    assert is_run(output)
    refuse_foreign_output(recipe)
    (output / ".lock").unlink()  # a copy that left hidden files behind
    (output / "metrics.jsonl").unlink()
    refuse_foreign_output(recipe)


INSIDE: dict[str, tuple[Make, str]] = {
    "a step": (
        lambda out: write(out / "checkpoints" / "step-00000009" / "x.bin"),
        "step-00000009: is no checkpoint",
    ),
    "a best": (
        lambda out: write(out / "best" / "kd" / "thesis.txt"),
        "best/kd: holds 'thesis.txt'",
    ),
    "a file": (lambda out: write(out / "checkpoints"), "checkpoints: is a file"),
}


@pytest.mark.parametrize("case", INSIDE)
def test_what_a_run_would_delete_within_its_folder_is_named(case: str, tmp_path: Path) -> None:
    output = tmp_path / "run"
    recipe = recipe_into(tmp_path, output)
    begun(output, recipe)
    make, message = INSIDE[case]
    make(output)
    before = snapshot(output)
    with pytest.raises(InputError, match=message):
        refuse_foreign_output(recipe)
    assert snapshot(output) == before


def test_places_that_are_never_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for output, message in (
        (home, "is your home folder"),
        (Path("/"), "is the root of the file system"),
    ):
        with pytest.raises(InputError, match=message):
            refuse_foreign_output(recipe_into(tmp_path, output))
    with pytest.raises(InputError, match="is your home folder"):
        refuse_foreign_output(recipe_into(tmp_path, Path("~")))
    gone = tmp_path / "link"
    gone.symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="link: is a link to a folder that does not exist"):
        refuse_foreign_output(recipe_into(tmp_path, gone))
    to_home = tmp_path / "to_home"
    to_home.symlink_to(home)
    with pytest.raises(InputError, match="is your home folder"):
        refuse_foreign_output(recipe_into(tmp_path, to_home))
    monkeypatch.chdir(tmp_path)  # holds files by now
    with pytest.raises(InputError, match="is not the folder of a run"):
        refuse_foreign_output(recipe_into(tmp_path, Path(".")))


def test_an_output_within_the_images_is_refused(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write(images / "train" / "cat" / "1.png")
    data = {"train": {"kind": "image_folder", "path": "train"}, "root": str(images)}
    for output in (images / "train" / "run", images / "train"):
        with pytest.raises(
            InputError,
            match=r"is inside data\.train\.path .*images/train, where each folder is a class",
        ):
            refuse_foreign_output(recipe_into(tmp_path, output, {"data": data}))
    refuse_foreign_output(recipe_into(tmp_path, images / "run", {"data": data}))


def test_class_folders_where_the_command_runs_are_refused_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "cat" / "1.png")
    monkeypatch.chdir(tmp_path)
    data = {"train": {"kind": "image_folder", "path": "."}, "root": "."}
    with pytest.raises(InputError) as refused:
        refuse_foreign_output(recipe_into(tmp_path, Path("runs/mine"), {"data": data}))
    assert "runs/mine: is inside data.train.path" in str(refused.value)
    assert "choose another folder with output=" in str(refused.value)
    assert "move the images into a folder of their own and name it in data.train.path" in str(
        refused.value
    )


@pytest.mark.parametrize("kind", ["parquet", "arrow", "saved", "stream"])
def test_beside_files_that_are_read_by_their_endings_a_run_is_fine(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run leaves no tables or shards, and none of these kinds takes a folder for a class."""
    monkeypatch.chdir(tmp_path)
    data = {"train": {"kind": kind, "path": "."}, "root": "."}
    refuse_foreign_output(recipe_into(tmp_path, Path("runs/mine"), {"data": data}))
    write(tmp_path / "train-0.parquet")
    with pytest.raises(InputError, match="is not the folder of a run: it holds"):
        refuse_foreign_output(recipe_into(tmp_path, Path("."), {"data": data}))


def test_resume_never_does_not_move_away_what_the_run_reads(tmp_path: Path) -> None:
    output = tmp_path / "run"
    weights = write(output / "best" / "teacher.pth")
    recipe = recipe_into(
        tmp_path, output, {"teacher": {"weights": str(weights)}, "resume": "never"}
    )
    begun(output, recipe)
    with pytest.raises(InputError, match=r"holds teacher\.weights .*resume: never"):
        refuse_foreign_output(recipe)


def test_resume_never_moves_what_a_link_names_and_keeps_the_link(tmp_path: Path) -> None:
    large_disk = tmp_path / "disk" / "run"
    large_disk.mkdir(parents=True)
    output = tmp_path / "run"
    output.symlink_to(large_disk)
    recipe = recipe_into(tmp_path, output, {"train": {"budget": "1 iterations"}, "resume": "never"})
    begun(output, recipe)
    assert tiny.train(recipe) == 0
    assert output.is_symlink()
    assert (large_disk / "report.json").is_file()
    assert len(os.listdir(tmp_path / "disk")) == 2
