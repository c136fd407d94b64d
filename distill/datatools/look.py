"""Reads some images of a source: their sizes and formats, which cannot be read, and how fast this
machine reads and decodes them.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from distill.data.decode import PixelFormatError, decode, open_image, pixel_format
from distill.data.depth import hidden_bits, is_deep
from distill.data.records import Source, UnreadableShardError, first_line
from distill.datatools.processes import in_processes
from distill.errors import InputError
from distill.rng import hash64, permute

# The most shards that are fetched.
_SHARDS = 4
_SPEED_S = 2.0


class SeenImage(NamedTuple):
    """One image. `number`: its index. `fault`: why it cannot be read; then only `pixels` is set.

    `kind`: its format, or "pixels". `pixels`: how it stores them, as "L" or "RGB of 16 bits".
    `brightest`: the greatest value after decoding if it has more than 8 bits a channel, else None.
    `refused`: the file is complete, but the meaning of its values is not known.
    """

    number: int
    num_bytes: int
    width: int
    height: int
    kind: str
    pixels: str
    fault: str | None
    refused: bool = False
    brightest: int | None = None


@dataclass(frozen=True)
class Speed:
    """`processes`: the number that read and decoded at the same time."""

    images_per_s: float
    bytes_per_s: float
    processes: int


@dataclass(frozen=True)
class Choice:
    """Which images are read: `candidates` in random order, from `shards` only if the source has
    any.
    """

    candidates: np.ndarray
    shards: tuple[int, ...]


def choose(source: Source, count: int, seed: int) -> Choice:
    """Choose random images as a function of the seed; of a source with shards from at most four of
    them.
    """
    if not source.shards:
        order = permute(np.arange(min(len(source), 1 << 17)), len(source), hash64(seed, "look"))
        return Choice(order, ())
    sizes = source.shard_sizes
    shards = permute(
        np.arange(min(_SHARDS, len(sizes))), len(sizes), hash64(seed, "look at shards")
    )
    starts = np.cumsum(sizes) - sizes
    members = np.concatenate([np.arange(starts[s], starts[s] + sizes[s]) for s in shards])
    return Choice(
        members[permute(np.arange(len(members)), len(members), hash64(seed, "look"))],
        tuple(shards.tolist()),
    )


def bring(source: Source, choice: Choice) -> float:
    """Fetch the chosen shards. Returns the seconds that it took.

    Raises:
        InputError: one of them cannot be read.
    """
    began = time.monotonic()
    if source.shards:
        source.prefetch(choice.shards)
        for shard in choice.shards:
            try:
                source.read(int(source.shard_sizes[:shard].sum()))
            except UnreadableShardError as error:
                raise InputError(str(error)) from error
            except OSError:  # of this image alone: counted when it is looked at
                pass
    return time.monotonic() - began


def look(source: Source, indices: Sequence[int], num_workers: int) -> list[SeenImage]:
    """Read each image, in the given order.

    Raises:
        InputError: a whole shard cannot be read.
    """
    found = {seen.number: seen for seen in in_processes(_seen, source, list(indices), num_workers)}
    return [found[index] for index in indices]


def _seen(source: Source, index: int) -> SeenImage:
    kind = pixels = ""
    deep = False
    try:
        record = source.read(index)
        if isinstance(record, np.ndarray):
            kind, pixels = "pixels", "RGB" if record.ndim == 3 else "L"
        else:
            with open_image(record) as header:
                kind, pixels = header.format or "unknown", pixel_format(header)
                deep = is_deep(header) or hidden_bits(header) is not None
        image = decode(record)
        brightest = np.asarray(image).max().item() if deep else None
        size = record.nbytes if isinstance(record, np.ndarray) else len(record)
        return SeenImage(index, size, *image.size, kind, pixels, None, brightest=brightest)
    except InputError:
        raise
    except UnreadableShardError as error:
        raise InputError(str(error)) from error
    except Exception as error:  # decoders raise whatever a broken file drives them into
        return SeenImage(
            index, 0, 0, 0, "", pixels, first_line(error), isinstance(error, PixelFormatError)
        )


def measure_speed(source: Source, indices: Sequence[int], num_workers: int) -> Speed | None:
    """Read and decode for two seconds in each process; None if nothing can be read.

    When a process has read all images it starts over, and then reads from memory rather than from
    disk.
    """
    num_processes = max(1, min(num_workers, len(indices)))
    parts = [list(indices[i::num_processes]) for i in range(num_processes)]
    rates = list(in_processes(_rate, source, parts, num_workers))
    images, size = sum(rate[0] for rate in rates), sum(rate[1] for rate in rates)
    return Speed(images, size, num_processes) if images else None


def _rate(source: Source, indices: list[int]) -> tuple[float, float]:
    """(images/s, bytes/s) of one process."""
    images = size = 0
    began = time.monotonic()
    while time.monotonic() - began < _SPEED_S:
        before = images
        for index in indices:
            try:
                record = source.read(index)
                decode(record)
            except Exception:  # counted by `look`
                continue
            images += 1
            size += record.nbytes if isinstance(record, np.ndarray) else len(record)
            if time.monotonic() - began >= _SPEED_S:
                break
        if images == before:
            break
    elapsed = time.monotonic() - began
    return images / elapsed, size / elapsed


def kinds_of(seen: Sequence[SeenImage]) -> dict[str, int]:
    """The number of images of each format, the most frequent first."""
    return dict(Counter(each.kind for each in seen if each.fault is None).most_common())


def pixels_of(seen: Sequence[SeenImage]) -> dict[str, int]:
    """The number of images of each pixel format, the most frequent first; of unreadable images if
    it is known.
    """
    return dict(Counter(each.pixels for each in seen if each.pixels).most_common())
