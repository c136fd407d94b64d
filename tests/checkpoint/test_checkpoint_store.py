"""A checkpoint on disk: what it holds, damage, other recipes, and how many stay."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from stored import DIGEST, RECIPE, flip, names, newest, shorten, write
from torch import nn

from distill.checkpoint.store import CheckpointError, TrainState, latest, load, prune, storable

# ---- round trip ----------------------------------------------------------------------------------


def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path) -> None:
    matrix = torch.randn(6, 4)
    convolution = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last).weight
    tensors = {
        "a": {
            "plain": matrix,
            "tied": matrix,
            "slice": matrix[2:4],
            "transposed": matrix.T,
            "channels_last": convolution,
            "scalar": torch.tensor(3.5),
            "count": torch.tensor(7),
            "bf16": torch.randn(3).bfloat16(),
            "flag": torch.tensor([True, False]),
            "empty": torch.zeros(0, 3),
        },
        "b.c": {"x": torch.arange(3)},
    }
    values = {"float": 0.1 + 0.2, "nested": {"list": [1, None, "ü"]}}
    path = write(tmp_path / "checkpoints", 1234, tensors=tensors, values=values)
    assert path.name == "step-00001234"
    checkpoint = latest(path.parent, DIGEST, RECIPE)
    assert checkpoint.state == TrainState(1234, 9872)
    assert checkpoint.values == values
    assert (checkpoint.recipe_text, checkpoint.recipe_digest, checkpoint.world_size) == (
        RECIPE,
        DIGEST,
        2,
    )
    assert checkpoint.tensor_names == ["a", "b.c"]
    for name, group in tensors.items():
        loaded = checkpoint.tensors(name)
        assert loaded.keys() == group.keys()
        for key, tensor in group.items():
            assert loaded[key].dtype == tensor.dtype
            assert torch.equal(loaded[key], tensor), key
    with pytest.raises(CheckpointError, match=r"holds no tensors 'model', only a, b\.c"):
        checkpoint.tensors("model")


def test_the_manifest_names_versions_and_every_file(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    manifest = json.loads((path / "manifest.json").read_text())
    assert {p.name for p in path.iterdir()} == {*manifest["files"], "manifest.json"}
    assert not [p for p in path.rglob("*") if p.suffix in (".pt", ".pkl", ".bin")]
    assert manifest["versions"].keys() >= {
        "torch",
        "timm",
        "accelerate",
        "safetensors",
        "vanillakd",
        "python",
    }
    assert manifest["time"].endswith("+00:00")


def test_storable_copies_only_what_it_must() -> None:
    matrix = torch.randn(4)
    ready = storable({"a": matrix, "b": matrix})
    assert ready["a"].data_ptr() == matrix.data_ptr() != ready["b"].data_ptr()


def test_no_checkpoint_is_none_and_a_wrong_path_is_an_error(tmp_path: Path) -> None:
    assert latest(tmp_path / "checkpoints", DIGEST, RECIPE) is None
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        load(tmp_path / "step-00000001")


# ---- damage --------------------------------------------------------------------------------------

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "recipe.yaml", "manifest.json")


@pytest.mark.parametrize("damage", [flip, shorten, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_passed_over_and_named(
    tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    damage(tmp_path / "step-00000003" / name)
    messages = []
    assert newest(tmp_path, messages.append) == 2
    assert len(messages) == 1
    assert (
        f"step-00000003/{name}: {'missing' if damage is Path.unlink else 'damaged'}" in messages[0]
    )
    with pytest.raises(CheckpointError, match=name):
        load(tmp_path / "step-00000003")


def test_every_byte_of_a_manifest_counts(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    file = path / "manifest.json"
    original = file.read_bytes()
    expected = load(path)
    for index in range(0, len(original), 7):
        file.write_bytes(original[:index] + bytes([original[index] ^ 0x01]) + original[index + 1 :])
        try:
            checkpoint = load(path)
        except CheckpointError:
            continue
        assert checkpoint == expected  # a blank between tokens


def test_when_all_are_damaged_nothing_starts_again_in_silence(tmp_path: Path) -> None:
    for step in (1, 2):
        flip(write(tmp_path, step) / "state.json")
    with pytest.raises(
        CheckpointError,
        match=r"(?s)all checkpoints are damaged.*step-00000002.*step-00000001.*resume=never",
    ):
        latest(tmp_path, DIGEST, RECIPE)


def test_another_format_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.checkpoint.store.FORMAT", 2)
    write(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="written in format 2 by version"):
        latest(tmp_path, DIGEST, RECIPE)


# ---- another recipe ------------------------------------------------------------------------------


def test_another_recipe_names_the_keys(tmp_path: Path) -> None:
    write(tmp_path, 1)
    other = (
        "name: b\noutput: elsewhere\ntrain:\n  budget: 5 epochs\n  compile: true\n  seed: [1, 2]\n"
    )
    with pytest.raises(CheckpointError) as caught:
        latest(tmp_path, "e" * 64, other)
    message = str(caught.value)
    assert '  train.budget: "3 epochs" -> "5 epochs"\n' in message
    assert "  train.seed: (absent) -> [1, 2]\n" in message
    assert message.count("->") == 2  # name, output and compile are no part of what a run is
    assert "output=" in message
    assert "resume=never" in message


def test_many_differences_are_counted(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with pytest.raises(CheckpointError, match="and 13 more") as caught:
        latest(tmp_path, "e" * 64, RECIPE + "".join(f"key{i}: {i}\n" for i in range(21)))
    assert str(caught.value).count("->") == 8


def test_another_digest_without_another_key_points_at_the_version(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with pytest.raises(CheckpointError, match="no key differs by name; version"):
        latest(tmp_path, "e" * 64, RECIPE)


# ---- retention -----------------------------------------------------------------------------------


def test_the_last_are_kept_and_other_names_stay(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    for step in (5, 90_000_000, 100_000_000, 20):
        path = write(tmp_path, step)
    path = write(tmp_path, 200_000_000)
    removed = prune(tmp_path, 2, newest=path)
    assert names(tmp_path) == ["notes", "step-100000000", "step-200000000"]
    assert {p.name for p in removed} == {"step-00000005", "step-00000020", "step-90000000"}


def test_a_damaged_later_checkpoint_does_not_push_out_the_good_ones(tmp_path: Path) -> None:
    for step in (1, 3):
        write(tmp_path, step)
    flip(tmp_path / "step-00000003" / "state.json")
    assert newest(tmp_path) == 1
    prune(tmp_path, 1, newest=write(tmp_path, 2))
    assert names(tmp_path) == ["step-00000002"]


def test_what_a_killed_writer_left_goes_at_the_next_save_and_resume(tmp_path: Path) -> None:
    for act in (lambda: write(tmp_path, 2), lambda: latest(tmp_path, DIGEST, RECIPE)):
        (tmp_path / ".tmp-step-00000009-1").mkdir()
        (tmp_path / ".tmp-step-00000009-1" / "model.safetensors").write_text("half")
        act()
        assert names(tmp_path) == ["step-00000002"]
