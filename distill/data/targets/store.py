"""The folder of a store: a manifest, and shards of consecutive steps of an epoch.

manifest.json                 what the rows are, and for which batches, teacher and libraries
epoch-00000-part-00000 ...    shards: numbered from 0 within their epoch
head                          of rows of features: the weights that turn them into logits
.lock                         held by the process that writes here

A row has the number step x B + slot within its epoch, where B is the global batch size. Steps are
never divided between shards, and the manifest gives the length of shards, so that a store is the
same bytes on any number of processes.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from distill.data.targets.rows import RowFormat
from distill.data.targets.shards import DamagedShardError, is_complete, read_shard, write_shard
from distill.errors import InputError
from distill.files import replace_text, write_error

MANIFEST_FILE = "manifest.json"
HEAD_FILE = "head"
_VERSION = 1
# A shard is what a killed writer loses, and what a reader holds.
_SHARD_BYTES, _SHARD_ROWS = 16 * 2**20, 65536


class ShardKey(NamedTuple):
    """A shard: epoch and number within the epoch, both from 0."""

    epoch: int
    part: int


@dataclass
class TargetStore:
    """The rows of a teacher's outputs in a folder.

    Attributes:
        rows: how a row is stored.
        batch_size_global: B.
        steps_per_epoch: of the order of the samples.
        steps_per_shard: of each shard but the last of an epoch.
        identity: of what the rows are, by section and key: the batches, the teacher, the versions
            of libraries. Another run must have the same.
        teacher: what records say of it: `record` and `view`.
    """

    folder: Path
    rows: RowFormat
    batch_size_global: int
    steps_per_epoch: int
    steps_per_shard: int
    identity: Mapping[str, Mapping[str, Any]]
    teacher: Mapping[str, Any]
    _open: tuple[ShardKey, dict[str, Tensor]] | None = field(default=None, repr=False)

    @property
    def rows_per_epoch(self) -> int:
        """Images of an epoch."""
        return self.steps_per_epoch * self.batch_size_global

    @property
    def manifest(self) -> dict[str, Any]:
        """What manifest.json holds."""
        return {
            "version": _VERSION,
            "rows": self.rows.to_dict(),
            "batch_size_global": self.batch_size_global,
            "steps_per_epoch": self.steps_per_epoch,
            "steps_per_shard": self.steps_per_shard,
            "identity": {name: dict(values) for name, values in self.identity.items()},
            "teacher": dict(self.teacher),
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the rows are."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_manifest(cls, folder: Path, values: Mapping[str, Any]) -> Self:
        """Return the store that a manifest describes."""
        sizes = [values[key] for key in ("batch_size_global", "steps_per_epoch", "steps_per_shard")]
        assert all(type(size) is int and size > 0 for size in sizes), sizes
        return cls(
            folder,
            RowFormat.from_dict(values["rows"]),
            values["batch_size_global"],
            values["steps_per_epoch"],
            values["steps_per_shard"],
            values["identity"],
            values["teacher"],
        )

    # ---- shards ----------------------------------------------------------------------------------

    def shards_of(self, epoch: int) -> list[ShardKey]:
        """Return the shards of an epoch."""
        count = -(-self.steps_per_epoch // self.steps_per_shard)
        return [ShardKey(epoch, part) for part in range(count)]

    def next_shard(self, key: ShardKey) -> ShardKey:
        """Return the shard after another one, in the next epoch after the last."""
        if key == self.shards_of(key.epoch)[-1]:
            return ShardKey(key.epoch + 1, 0)
        return ShardKey(key.epoch, key.part + 1)

    def steps_of(self, key: ShardKey) -> range:
        """Return the steps of a shard, within its epoch."""
        first = key.part * self.steps_per_shard
        return range(first, min(first + self.steps_per_shard, self.steps_per_epoch))

    def path(self, key: ShardKey) -> Path:
        """Return the file of a shard."""
        return self.folder / f"epoch-{key.epoch:05d}-part-{key.part:05d}"

    def is_complete(self, key: ShardKey) -> bool:
        """Return whether a shard is there in its full length."""
        return is_complete(self.path(key))

    def write(self, key: ShardKey, rows: Mapping[str, Tensor]) -> None:
        """Write a shard in one step.

        Raises:
            WriteError: the disk is full or cannot be written.
        """
        write_shard(self.path(key), rows, self._about(key))

    def read(self, key: ShardKey) -> dict[str, Tensor]:
        """Read and verify a shard.

        Raises:
            DamagedShardError: it is absent, damaged or of another store.
        """
        return read_shard(self.path(key), self._about(key))

    def _about(self, key: ShardKey) -> dict[str, Any]:
        steps = self.steps_of(key)
        return {
            "store": self.fingerprint,
            "epoch": key.epoch,
            "first_step": steps.start,
            "rows": len(steps) * self.batch_size_global,
        }

    def decoded(self, epoch: int, step: int, slots: np.ndarray, device: torch.device) -> Tensor:
        """Return what the rows of some slots of a batch decode to, on the device. Arguments and
        errors as of `rows_at`.
        """
        return self.rows.decode(self.rows_at(epoch, step, slots), device)

    def rows_at(self, epoch: int, step: int, slots: np.ndarray) -> dict[str, Tensor]:
        """Return the rows of some slots of a batch.

        Args:
            step: within the epoch.
            slots: [b] int64, of the global batch.

        Raises:
            DamagedShardError: names the shard and the fix.
        """
        key = ShardKey(epoch, step // self.steps_per_shard)
        if self._open is None or self._open[0] != key:
            try:
                self._open = key, self.read(key)
            except DamagedShardError as error:
                raise DamagedShardError(f"{error}: {REPAIR}") from error
        places = torch.from_numpy(
            (step - self.steps_of(key).start) * self.batch_size_global + slots
        )
        return {name: tensor[places] for name, tensor in self._open[1].items()}

    @property
    def complete_epochs(self) -> list[int]:
        """The epochs of which all shards are here in their full length, ascending, from 0."""
        firsts = sorted(self.folder.glob("epoch-*-part-00000"))
        epochs = [int(path.name.split("-")[1]) for path in firsts]
        return [each for each in epochs if all(map(self.is_complete, self.shards_of(each)))]

    def refuse_missing(self, num_steps: int) -> None:
        """Check that the shards of a run are here in their full length.

        Args:
            num_steps: of the run, without those that repeat earlier ones.

        Raises:
            InputError: names the epochs that are missing, or the first damaged shard.
        """
        missing: list[int] = []
        epochs = -(-num_steps // self.steps_per_epoch)
        for epoch in range(epochs):
            last = min(num_steps - epoch * self.steps_per_epoch, self.steps_per_epoch) - 1
            for key in self.shards_of(epoch)[: last // self.steps_per_shard + 1]:
                if not self.path(key).exists():
                    missing.append(epoch + 1)
                elif not self.is_complete(key):
                    raise DamagedShardError(f"{self.path(key)}: is not complete: {REPAIR}")
        if missing:
            shown = ",".join(_ranges(sorted(set(missing))))
            first = min(missing) - 1  # all before it are here
            repeat = (
                f", or set data.distinct_epochs: {first} to repeat the first {first} in turn"
                if first
                else ""
            )
            raise InputError(
                f"targets: {self.folder} lacks rows of epochs {shown}, and this run reads"
                f" {epochs}: write them with distill targets RECIPE --epochs {shown}{repeat}"
            )

    # ---- the head --------------------------------------------------------------------------------

    def write_head(self, head: Mapping[str, Tensor]) -> None:
        """Write the head of rows of features. Errors as of `write`."""
        write_shard(self.folder / HEAD_FILE, head, self._about_head)

    def read_head(self) -> dict[str, Tensor]:
        """Read and verify the head.

        Raises:
            DamagedShardError: names the file and the fix.
        """
        try:
            return read_shard(self.folder / HEAD_FILE, self._about_head)
        except DamagedShardError as error:
            raise DamagedShardError(f"{error}: {REPAIR}") from error

    @property
    def _about_head(self) -> dict[str, Any]:
        return {"store": self.fingerprint, "head of": self.teacher["record"]["sha256"]}


REPAIR = "distill targets with the same recipe writes damaged and missing shards again"


def _ranges(numbers: list[int]) -> Iterator[str]:
    """Yield ascending numbers as "3" and "5-9"."""
    first = last = numbers[0]
    for number in [*numbers[1:], -1]:
        if number == last + 1:
            last = number
            continue
        yield str(first) if first == last else f"{first}-{last}"
        first = last = number


def steps_per_shard(rows: RowFormat, batch_size_global: int, steps_per_epoch: int) -> int:
    """Return how many steps a shard of a new store has."""
    most = min(_SHARD_BYTES // rows.row_bytes, _SHARD_ROWS)
    return min(max(1, most // batch_size_global), steps_per_epoch)


def open_store(folder: Path) -> TargetStore | None:
    """Return the store in a folder; None if there is no manifest.

    Raises:
        InputError: the manifest is damaged, or of another version.
    """
    file = folder / MANIFEST_FILE
    try:
        values = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read ({error}): {_ANOTHER}") from error
    if isinstance(values, dict) and values.get("version") not in (None, _VERSION):
        raise InputError(
            f"{file}: is of version {values['version']}, and this version of distill reads"
            f" {_VERSION}: {_ANOTHER}"
        )
    try:
        store = TargetStore.from_manifest(folder, values)
        sound = store.manifest == values
    except (KeyError, TypeError, AssertionError, ZeroDivisionError):
        sound = False
    if not sound:
        raise InputError(f"{file}: is no manifest of a store of targets: {_ANOTHER}")
    return store


_ANOTHER = "put the file back, or write a store in another folder with distill targets"


def write_manifest(store: TargetStore) -> None:
    """Write the manifest of a new store.

    Raises:
        WriteError: the folder cannot be written.
    """
    file = store.folder / MANIFEST_FILE
    try:
        replace_text(file, json.dumps(store.manifest, indent=1) + "\n")
    except OSError as error:
        raise write_error(file, error, earlier="shards", key="targets") from error


_FIXES = {
    "batches": "set these keys and data back, or write a store for them",
    "teacher": "name the teacher of the store, or write a store of this one",
    "libraries": "install these versions, or write the store again with those that are here",
}


def difference_lines(
    store: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Return the differences of two identities, a line each with the fix of each section.

    Args:
        now: sections and keys that it lacks are not compared.
    """
    lines = []
    for section, values in now.items():
        had = store.get(section, {})
        changed = [
            f"  {key}: {had.get(key, '(absent)')} in the store, {value} here"
            for key, value in values.items()
            if key not in had or had[key] != value
        ]
        if changed:
            lines += [*changed, f"  {section}: {_FIXES[section]}"]
    return lines
