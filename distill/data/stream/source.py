"""Shards as one `Source`: samples numbered through all of them, read in any order from what lies on
this machine.
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

# A shard that could not be had is not asked for again so soon: its samples come one after the
# other.
_REST_S = 300.0
_MOST_OPEN = 256


class _NoLabels:
    """Of a stream that is read without labels: -1 for each."""

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return np.full(len(indices), -1, dtype=np.int64)


class _StreamLabels:
    """Labels read with the records; those of a shard that is not here bring it here."""

    def __init__(self, source: "StreamSource") -> None:
        self._source = source

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return np.array([self._source.label(int(index)) for index in indices], dtype=np.int64)


class _Process:
    """What a process holds: open shards, the least recently used first, and the shards that it
    cannot have.
    """

    def __init__(self, begin: Callable[[int], None]) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.opened: OrderedDict[int, _Opened] = OrderedDict()
        self.failed: dict[
            int, tuple[float, type[Exception], str]
        ] = {}  # until when, and what to raise
        self.ahead = Prefetcher(begin)
        # A local tar takes two descriptors.
        self.most_open = max(8, min(_MOST_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))

    def close_given_up(self) -> None:
        """Close the shards that the cache has removed, which take their space until then; those
        asked for last are kept.
        """
        wanted = set(self.ahead.wanted)
        with self.lock:
            for number in [
                n
                for n, opened in self.opened.items()
                if n not in wanted and opened.shard.is_evicted
            ]:
                del self.opened[number]


class _Opened:
    """A shard and what its labels mean: label i of the shard is class meaning[i], or i itself
    without.
    """

    def __init__(self, shard: LocalShard, meaning: np.ndarray | None) -> None:
        self.shard, self.meaning = shard, meaning


class StreamSource:
    """N samples over S shards. May be pickled and forked: each process opens shards for itself.

    Args:
        shards: each with its count.
        fetcher: brings them here.
        classes: K names, () without labels.
        stored: the names that the label numbers of the shards count; null where they count
            `classes`.
        labels: [N] int64 where they are known without reading.
        labelled: whether samples have labels.
        key: the recipe key, for messages.
    """

    def __init__(
        self,
        shards: Sequence[ListedShard],
        fetcher: ShardFetcher,
        classes: tuple[str, ...],
        *,
        stored: tuple[str, ...] | None = None,
        labels: np.ndarray | None = None,
        labelled: bool = True,
        key: str = "data.train",
    ) -> None:
        self.shards = tuple(shards)
        self.shard_sizes = np.array([shard.num_samples for shard in shards], dtype=np.int64)
        self.classes = classes
        self._ends: list[int] = np.cumsum(self.shard_sizes).tolist()
        self._fetcher, self._labelled, self._key = fetcher, labelled, key
        self._meaning = (
            None
            if stored is None or stored == classes
            else index_names(stored, classes, f"{key}.classes")
        )
        self._num_stored, self._counts_classes = len(stored or classes), stored is None
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
            InputError: access is refused, or the shard is not what it was said to be.
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
        return label if opened.meaning is None else int(opened.meaning[label])

    def describe(self, index: int) -> str:
        """The shard, and where in it the sample lies; the latter as far as the shard is here."""
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

    def prefetch(self, shards: Sequence[int]) -> None:
        """Bring these shards here in the background, the most urgent first. Neither waits nor
        raises.
        """
        self._here().ahead.want(shards)

    def fingerprint(self) -> str:
        """SHA-256 over what the shards are, in their order: names, counts, and checksums of them or
        of their footers as far as known; and over what their labels mean.

        Not where they lie. Tars without manifest or Hub are names and counts alone: others of the
        same names and counts pass for them, at another place too. A copy of a Hub repository
        without a manifest is another: the Hub's checksums are not read off its files.
        """
        said: list[object] = [
            (shard.name, shard.num_samples, shard.known_checksum) for shard in self.shards
        ]
        # What label numbers stand for, and the labels that a manifest has: the same shards can be
        # told other ones.
        labels = self.labels if isinstance(self.labels, np.ndarray) else None
        said += [
            None if part is None else hashlib.sha256(part.tobytes()).hexdigest()
            for part in (self._meaning, labels)
        ]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

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
            if number in process.opened:  # read from here, although the cache may have given it up
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
        process.close_given_up()
        try:
            opened = self._checked(number, self._fetcher.open(self.shards[number]))
        except InputError as error:
            message = (
                str(error)
                if str(error).startswith(("data.", self._key))
                else f"{self._key}.path: {error}"
            )
            process.failed[number] = (time.monotonic() + _REST_S, InputError, message)
            raise InputError(message) from error
        except OSError as error:
            raise self._given_up(number, error) from error
        with process.lock:
            process.failed.pop(number, None)
            process.opened[number] = opened
            while len(process.opened) > process.most_open:
                process.opened.popitem(last=False)
        process.close_given_up()
        return opened

    def _given_up(self, number: int, error: OSError) -> UnreadableShardError:
        url = self.shards[number].display_url
        reason = first_line(error)
        message = reason if url in reason else f"{url}: {reason}"
        self._here().failed[number] = (time.monotonic() + _REST_S, UnreadableShardError, message)
        return UnreadableShardError(message)

    def _checked(self, number: int, shard: LocalShard) -> _Opened:
        """The opened shard, held to what was said of it."""
        listed = self.shards[number]
        if len(shard) != listed.num_samples:
            raise InputError(
                f"{self._key}.path: {listed.display_url} holds {len(shard)} samples, and"
                f" {listed.num_samples} are promised: fetch it again, mend its manifest or"
                " _info.json, or count anew with distill data inspect --count"
            )
        if not self._checks_labels:
            return _Opened(shard, self._meaning)
        if shard.names is not None:
            return _Opened(
                shard,
                index_names(shard.names, self.classes, f"{self._key}.path: {listed.display_url}"),
            )
        odd = next(
            (i for i, name in enumerate(self.classes) if name.isdecimal() and name != str(i)), None
        )
        if odd is not None and self._counts_classes and self._fetcher.container == "tar":
            raise InputError(
                f"{self._key}.path: {listed.display_url} has labels of digits, and class {odd} is called"
                f" {self.classes[odd]!r}: whether they are numbers or names of classes cannot be"
                " told, so write the names of the list otherwise, or in the order of their numbers"
            )
        if shard.lowest_label < 0 or shard.highest_label >= self._num_stored:
            row, label = shard.first_row_with(0, self._num_stored)
            hint = " (-1 usually marks a test split without labels)" if label == -1 else ""
            raise InputError(
                f"{self._key}.path: {listed.display_url}: sample {row} has label {label}, and labels go"
                f" from 0 to {self._num_stored - 1}{hint}: give the classes that the labels count,"
                " or set labelled: false"
            )
        return _Opened(shard, self._meaning)

    def _read_again(self, number: int, row: int, damaged: LocalShard) -> bytes:
        """The cached shard is damaged: fetch it once more, unless another process has."""
        process = self._here()
        with process.lock:
            opened = process.opened.get(number)
            if opened is not None and opened.shard is damaged:
                del process.opened[number]
        with contextlib.suppress(OSError, InputError):  # met again below
            self._fetcher.drop(self.shards[number], damaged.status)
        try:
            return self._open(number).shard.read(row)
        except DamagedShardError as error:
            with process.lock:
                process.opened.pop(number, None)
            raise self._given_up(number, error) from error
