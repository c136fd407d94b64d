"""A stream as a `Source`: the samples of all shards, numbered through, read in any order from files
on this machine.
"""

import bisect
import contextlib
import hashlib
import json
import os
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from distill.data.labels import index_names
from distill.data.records import LabelsOnRead, UnreadableShardError, first_line
from distill.data.stream.local import DamagedShardError, LocalShard
from distill.data.stream.prefetcher import Prefetcher
from distill.data.stream.shard_fetcher import ListedShard, ShardFetcher
from distill.data.stream.tar import member_name
from distill.errors import InputError

# A shard that could not be read is not tried again for this long: its samples follow one another.
_RETRY_AFTER_S = 300.0
_MOST_OPEN = 256


class _NoLabels:
    """The labels of a stream that is read without labels: all -1."""

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return np.full(len(indices), -1, dtype=np.int64)


class _StreamLabels:
    """Labels that are read with the records; reading one fetches its shard if it is not here."""

    def __init__(self, source: "StreamSource") -> None:
        self._source = source

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return np.array([self._source.label(int(index)) for index in indices], dtype=np.int64)


class _Process:
    """What belongs to one process: its open shards, the least recently used first, and the shards
    that it could not read.
    """

    def __init__(self, begin: Callable[[int], None]) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.opened: OrderedDict[int, _Opened] = OrderedDict()
        # Until when a shard is not tried again, and the error to raise.
        self.failed: dict[int, tuple[float, type[Exception], str]] = {}
        self.prefetcher = Prefetcher(begin)
        # A local tar takes two descriptors.
        self.most_open = max(8, min(_MOST_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))

    def close_evicted(self) -> None:
        """Close the shards that the cache has removed, which use disk space until then; except
        those that are prefetched.
        """
        wanted = set(self.prefetcher.wanted)
        with self.lock:
            for number in [
                n
                for n, opened in self.opened.items()
                if n not in wanted and opened.shard.is_evicted
            ]:
                del self.opened[number]


class _Opened:
    """A shard and how its labels map: label i of the shard is class class_of[i], or i if None."""

    def __init__(self, shard: LocalShard, class_of: np.ndarray | None) -> None:
        self.shard, self.class_of = shard, class_of


class StreamSource:
    """N samples in S shards. May be pickled and forked: each process opens shards for itself.

    Args:
        shards: each with its number of samples.
        fetcher: fetches and opens them.
        classes: K names, () without labels.
        stored_classes: the names that the labels in the shards index; None if these are `classes`.
        labels: [N] int64 if they are known without reading.
        labelled: whether samples have labels.
        key: the recipe key, for messages.
    """

    def __init__(
        self,
        shards: Sequence[ListedShard],
        fetcher: ShardFetcher,
        classes: tuple[str, ...],
        *,
        stored_classes: tuple[str, ...] | None = None,
        labels: np.ndarray | None = None,
        labelled: bool = True,
        key: str = "data.train",
    ) -> None:
        self.shards = tuple(shards)
        self.shard_sizes = np.array([shard.num_samples for shard in shards], dtype=np.int64)
        self.classes = classes
        self._ends: list[int] = np.cumsum(self.shard_sizes).tolist()
        self._fetcher, self._labelled, self._key = fetcher, labelled, key
        self._class_of = (
            None
            if stored_classes is None or stored_classes == classes
            else index_names(stored_classes, classes, f"{key}.classes")
        )
        self._num_stored = len(stored_classes or classes)
        self._labels_index_classes = stored_classes is None
        self.labels: np.ndarray | LabelsOnRead = _NoLabels()
        if labelled:
            self.labels = _StreamLabels(self) if labels is None else labels
        self._checks_labels = labelled and labels is None
        self._process = _Process(self._begin)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_process"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._process = _Process(self._begin)

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, index: int) -> bytes:
        """The image file of a sample.

        Raises:
            UnreadableShardError: its shard cannot be fetched or is damaged.
            OSError: this sample alone cannot be read.
            InputError: access is refused, or the shard is not what the listing says.
        """
        number, row = self._locate(index)
        shard = self._open(number).shard
        try:
            return shard.read(row)
        except DamagedShardError:
            return self._read_again(number, row, shard)

    def label(self, index: int) -> int:
        """The class of a sample. Raises as `read`."""
        number, row = self._locate(index)
        opened = self._open(number)
        label = opened.shard.label(row)
        return label if opened.class_of is None else int(opened.class_of[label])

    def describe(self, index: int) -> str:
        """The shard and the position of the sample in it, in bytes if the shard is open."""
        number, row = self._locate(index)
        url = self.shards[number].display_url
        with self._here().lock:
            opened = self._here().opened.get(number)
        if opened is None or self._fetcher.container != "tar":
            return f"{url}, {'sample' if self._fetcher.container == 'tar' else 'row'} {row}"
        try:
            return (
                f"{url}, {member_name(opened.shard.before(row, 512))} at byte"
                f" {opened.shard.offset(row)}"
            )
        except OSError:
            return f"{url}, sample {row}"

    def name(self, index: int) -> str:
        """The file name in a tar; "" in Parquet files, whose names are not stored here. Raises as
        `read`.
        """
        if self._fetcher.container != "tar":
            return ""
        number, row = self._locate(index)
        return os.path.basename(member_name(self._open(number).shard.before(row, 512)))

    def prefetch(self, shards: Sequence[int]) -> None:
        """Fetch these shards in the background, the most urgent first. Neither waits nor raises."""
        self._here().prefetcher.want(shards)

    def fingerprint(self) -> str:
        """SHA-256 over what the shards are, in their order: names, counts, and checksums of them or
        of their footers if known; and over the classes that their labels stand for.

        It does not depend on where they lie. Tars without a manifest and outside the Hub count by
        name and number of samples only: other images under the same names and counts are not
        noticed. A copy of a Hub repository without a manifest has another fingerprint, since the
        Hub's checksums cannot be read off its files.
        """
        parts: list[object] = [
            (shard.name, shard.num_samples, shard.known_checksum) for shard in self.shards
        ]
        # The same shards may have other labels: in the manifest, or by other class names.
        labels = self.labels if isinstance(self.labels, np.ndarray) else None
        parts += [
            None if part is None else hashlib.sha256(part.tobytes()).hexdigest()
            for part in (self._class_of, labels)
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    # ---- shards of this process ------------------------------------------------------------------

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self._ends[-1]:
            raise IndexError(f"sample {index} of {self._ends[-1]}")
        number = bisect.bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)

    def _here(self) -> _Process:
        if self._process.pid != os.getpid():  # after a fork: locks may be held and threads are gone
            self._process = _Process(self._begin)
        return self._process

    def _begin(self, number: int) -> None:
        process = self._here()
        with process.lock:
            if number in process.opened:  # it is read from here even if the cache has removed it
                return
        self._fetcher.begin(self.shards[number])

    def _open(self, number: int) -> _Opened:
        process = self._here()
        with process.lock:
            opened = process.opened.get(number)
            if opened is not None:
                process.opened.move_to_end(number)
                return opened
            until, kind, reason = process.failed.get(number, (0.0, OSError, ""))
        if time.monotonic() < until:
            raise kind(reason)
        process.close_evicted()
        try:
            opened = self._check(number, self._fetcher.open(self.shards[number]))
        except InputError as error:
            message = (
                str(error)
                if str(error).startswith(("data.", self._key))
                else f"{self._key}.path: {error}"
            )
            process.failed[number] = (time.monotonic() + _RETRY_AFTER_S, InputError, message)
            raise InputError(message) from error
        except OSError as error:
            raise self._unreadable(number, error) from error
        with process.lock:
            process.failed.pop(number, None)
            process.opened[number] = opened
            while len(process.opened) > process.most_open:
                process.opened.popitem(last=False)
        process.close_evicted()
        return opened

    def _unreadable(self, number: int, error: OSError) -> UnreadableShardError:
        url = self.shards[number].display_url
        reason = first_line(error)
        message = reason if url in reason else f"{url}: {reason}"
        until = time.monotonic() + _RETRY_AFTER_S
        self._here().failed[number] = (until, UnreadableShardError, message)
        return UnreadableShardError(message)

    def _check(self, number: int, shard: LocalShard) -> _Opened:
        """Compare an opened shard with its listing."""
        listed = self.shards[number]
        if len(shard) != listed.num_samples:
            raise InputError(
                f"{self._key}.path: {listed.display_url} holds {len(shard)} samples, and"
                f" {listed.num_samples} are promised: fetch it again, fix its manifest or"
                " _info.json, or count again with distill data inspect --count"
            )
        if not self._checks_labels:
            return _Opened(shard, self._class_of)
        if shard.names is not None:
            return _Opened(
                shard,
                index_names(shard.names, self.classes, f"{self._key}.path: {listed.display_url}"),
            )
        odd = next(
            (i for i, name in enumerate(self.classes) if name.isdecimal() and name != str(i)), None
        )
        if odd is not None and self._labels_index_classes and self._fetcher.container == "tar":
            raise InputError(
                f"{self._key}.path: {listed.display_url} has labels of digits, and class {odd} is"
                f" called {self.classes[odd]!r}: whether they are numbers or names of classes"
                " is not known, so write the names of the list otherwise, or in the order of"
                " their numbers"
            )
        if shard.lowest_label < 0 or shard.highest_label >= self._num_stored:
            row, label = shard.first_row_with(0, self._num_stored)
            hint = " (-1 usually marks a test split without labels)" if label == -1 else ""
            raise InputError(
                f"{self._key}.path: {listed.display_url}: sample {row} has label {label}, and"
                f" labels go from 0 to {self._num_stored - 1}{hint}: give the classes that the"
                " labels count, or set labelled: false"
            )
        return _Opened(shard, self._class_of)

    def _read_again(self, number: int, row: int, damaged: LocalShard) -> bytes:
        """Fetch a damaged shard once more, unless another process has, and read the sample."""
        process = self._here()
        with process.lock:
            opened = process.opened.get(number)
            if opened is not None and opened.shard is damaged:
                del process.opened[number]
        with contextlib.suppress(OSError, InputError):  # raised again below
            self._fetcher.drop(self.shards[number], damaged.status)
        try:
            return self._open(number).shard.read(row)
        except DamagedShardError as error:
            with process.lock:
                process.opened.pop(number, None)
            raise self._unreadable(number, error) from error
