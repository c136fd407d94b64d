"""Shards and the manifest of a store."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import distill.data.targets.shards
from distill.data.targets import (
    DamagedShardError,
    RowFormat,
    ShardKey,
    TargetStore,
    open_store,
    steps_per_shard,
    write_manifest,
)
from distill.errors import InputError
from distill.files import WriteError

B, STEPS = 4, 5


def a_store(folder: Path, *, per_shard: int = 2) -> TargetStore:
    rows = RowFormat.chosen("all", 3, "fp32")
    identity = {"batches": {"seed": "0"}, "teacher": {}, "libraries": {}}
    return TargetStore(folder, rows, B, STEPS, per_shard, identity, {})


def written(folder: Path, epochs: int = 2) -> tuple[TargetStore, torch.Tensor]:
    """A store, and its logits by epoch and row."""
    store = a_store(folder)
    write_manifest(store)
    logits = torch.arange(epochs * STEPS * B * 3.0).view(epochs, STEPS * B, 3)
    for epoch in range(epochs):
        for key in store.shards_of(epoch):
            steps = store.steps_of(key)
            own = logits[epoch, steps.start * B : steps.stop * B]
            store.write(key, store.rows.encode(own))
    return store, logits


def test_rows_are_found_by_epoch_step_and_slot(tmp_path: Path) -> None:
    _, logits = written(tmp_path)
    store = open_store(tmp_path)
    assert store is not None
    slots = np.array([1, 3])
    for epoch in (0, 1):
        for step in range(STEPS):
            found = store.decoded(epoch, step, slots, torch.device("cpu"))
            assert torch.equal(found, logits[epoch, step * B + torch.from_numpy(slots)])


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        written(tmp_path / name)
    one, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab"
    )
    assert len(one) == 7  # the manifest, and three shards of each epoch
    assert one == other


@pytest.mark.parametrize("where", [0, 12, 200, -1])
def test_a_changed_byte_is_found(tmp_path: Path, where: int) -> None:
    store, _ = written(tmp_path)
    path = store.path(ShardKey(1, 0))
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedShardError, match=r"part-00000: is damaged.*distill targets"):
        store.decoded(1, 0, np.arange(B), torch.device("cpu"))


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_short_shard_is_refused_before_training(tmp_path: Path, length: int) -> None:
    store, _ = written(tmp_path)
    path = store.path(ShardKey(1, 2))
    path.write_bytes(path.read_bytes()[:length])
    store.refuse_missing(STEPS)  # the first epoch alone
    with pytest.raises(DamagedShardError, match="part-00002: is not complete"):
        store.refuse_missing(2 * STEPS)


def test_missing_epochs_are_named(tmp_path: Path) -> None:
    store, _ = written(tmp_path)
    store.refuse_missing(2 * STEPS)
    with pytest.raises(InputError, match=r"epochs 3-5, and this run reads 5.*--epochs 3-5"):
        store.refuse_missing(5 * STEPS)
    store.path(ShardKey(0, 1)).unlink()
    with pytest.raises(InputError, match=r"epochs 1,3, .*--epochs 1,3"):
        store.refuse_missing(2 * STEPS + 1)
    store.refuse_missing(2)  # the first shard alone


def test_a_shard_of_another_place_or_store_is_refused(tmp_path: Path) -> None:
    store, _ = written(tmp_path)
    content = store.path(ShardKey(0, 0)).read_bytes()
    store.path(ShardKey(0, 1)).write_bytes(content)
    with pytest.raises(DamagedShardError, match="it holds other rows"):
        store.read(ShardKey(0, 1))
    store.identity = {**store.identity, "batches": {"seed": "1"}}
    with pytest.raises(DamagedShardError, match="it holds other rows"):
        store.read(ShardKey(0, 0))


def test_a_full_disk_leaves_earlier_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, logits = written(tmp_path)
    before = store.path(ShardKey(0, 0)).read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(distill.data.targets.shards, "atomic_write", full)
    with pytest.raises(WriteError, match=r"no space left.*earlier shards are complete.*targets="):
        store.write(ShardKey(0, 0), store.rows.encode(logits[1, : 2 * B]))
    assert store.path(ShardKey(0, 0)).read_bytes() == before


def test_the_length_of_shards() -> None:
    small = RowFormat.chosen(14, 1000, "fp32")
    assert steps_per_shard(small, 1024, 1251) == 64  # 65,536 images
    assert steps_per_shard(small, 1024, 10) == 10
    assert steps_per_shard(RowFormat.chosen("all", 1000, "fp16"), 1024, 1251) == 8  # 16 MiB
    assert steps_per_shard(RowFormat.chosen("all", 21841, "fp32"), 2048, 5) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "is of version 2"),
        ({"rows": {"kind": "most"}}, "is no manifest"),
        ({"steps_per_epoch": "5"}, "is no manifest"),
        ({"extra": 1}, "is no manifest"),
        (None, "cannot be read"),
    ],
)
def test_a_damaged_manifest_is_refused(
    tmp_path: Path, change: dict[str, object] | None, message: str
) -> None:
    store, _ = written(tmp_path)
    file = tmp_path / "manifest.json"
    file.write_text("{" if change is None else json.dumps({**store.manifest, **change}))
    with pytest.raises(InputError, match=rf"manifest.json: {message}"):
        open_store(tmp_path)
