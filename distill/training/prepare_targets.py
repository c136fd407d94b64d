"""The folder of a store before rows are written: its manifest, and the shards that are missing."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.checkpoint.lock import FolderLock
from distill.data.targets import (
    DamagedShardError,
    ShardKey,
    TargetStore,
    open_store,
    write_manifest,
)
from distill.errors import InputError
from distill.files import clean_files, write_error
from distill.models.head import Head
from distill.training import header
from distill.training.targets import FORWARD, refuse_other_identity


@dataclass(frozen=True)
class Work:
    """What is left to write.

    Attributes:
        manifest: of the store.
        shards: those that are missing or damaged, in order.
    """

    manifest: Mapping[str, Any]
    shards: Sequence[ShardKey]


def prepare_store(
    store: TargetStore, epochs: Sequence[int], lock: FolderLock, head: Head | None = None
) -> Work:
    """Lock the folder, write the manifest or compare it, and find out which shards are missing. The
    main process alone calls this.

    Args:
        head: of rows of features; written if it is missing or damaged.

    Raises:
        InputError: the folder holds another store, or something else; or the disk is too small.
    """
    folder = store.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(folder, "targets")
        clean_files(folder, ("*",))
    except OSError as error:
        if folder.is_file():
            raise InputError(f"targets: {folder} is a file: name a folder") from error
        raise write_error(folder, error, earlier="shards", key="targets") from error
    there = open_store(folder)
    if there is None:
        if others := sorted(each.name for each in folder.iterdir() if each.name != ".lock"):
            raise InputError(
                f"targets: {folder} holds {others[0]} and no manifest.json of a store: name an"
                " empty or new folder"
            )
        write_manifest(store)
    else:
        _refuse_another(there, store)
        store = there
    if head is not None:
        try:
            store.read_head()
        except DamagedShardError:
            store.write_head(head)
    shards = [key for epoch in epochs for key in store.shards_of(epoch)]
    missing = [key for key in shards if not _is_intact(store, key)]
    _refuse_small_disk(store, missing)
    num_images = len(epochs) * store.rows_per_epoch
    header.show(
        "rows",
        f"{store.rows.describe()}, {store.rows.row_bytes} bytes an image;"
        f" {num_images:,} images in {len(epochs)} epochs, {_size(num_images * _bytes(store))}",
    )
    done = f"{len(shards) - len(missing):,} of {len(shards):,} shards are complete"
    header.show("", done if missing else f"{done}: there is nothing to write")
    return Work(store.manifest, missing)


def _refuse_another(there: TargetStore, store: TargetStore) -> None:
    """Raises InputError if a folder has a store of other rows than those asked for."""
    another = "or name another folder with targets="
    if there.rows != store.rows:
        raise InputError(
            f"targets: {there.folder} has {there.rows.describe()}, and {store.rows.describe()} are"
            f" asked for: give the same --keep and --sampled, {another}"
        )
    refuse_other_identity(there, {name: dict(each) for name, each in store.identity.items()})
    before, now = there.teacher["record"].get("sha256"), store.teacher["record"]["sha256"]
    if before != now:
        raise InputError(
            f"targets: {there.folder} is of a teacher with other weights ({before}, and here"
            f" {now}): put the earlier weights back, {another}"
        )
    if there.teacher.get(FORWARD) != store.teacher[FORWARD]:
        raise InputError(
            f"targets: {there.folder} was computed with {there.teacher.get(FORWARD)} {FORWARD},"
            f" and here are {store.teacher[FORWARD]}, which rounds differently: set"
            f" train.micro_batch_size: {there.teacher.get(FORWARD)}, {another}"
        )


def _is_intact(store: TargetStore, key: ShardKey) -> bool:
    try:
        store.read(key)
    except DamagedShardError as error:
        if store.path(key).exists():
            header.show("note", f"{error}: it is written again")
        return False
    return True


def _refuse_small_disk(store: TargetStore, missing: Sequence[ShardKey]) -> None:
    """Raises InputError if the missing shards do not fit on the disk."""
    images = sum(len(store.steps_of(key)) for key in missing) * store.batch_size_global
    free = shutil.disk_usage(store.folder).free
    if images * _bytes(store) > free:
        raise InputError(
            f"targets: {store.folder} needs {_size(images * _bytes(store))} more and its disk has"
            f" {_size(free)} free: free some space, name a folder on another disk with targets=, or"
            " take fewer --epochs or a smaller --keep"
        )


def _bytes(store: TargetStore) -> int:
    return store.rows.row_bytes


def _size(num_bytes: float) -> str:
    """A size in the unit that suits it."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
