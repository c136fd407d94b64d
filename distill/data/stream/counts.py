"""The number of samples in each shard, where neither manifest nor _info.json states it: from
footers, indexes, or an earlier count.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from distill.data.stream.failures import FailedElsewhereError
from distill.data.stream.listing import Listing
from distill.data.stream.local import DamagedShardError
from distill.data.stream.parquet import Footer, read_footer, tail_size
from distill.data.stream.shard_fetcher import Fields, ListedShard, ShardFetcher
from distill.data.stream.transport import Transport
from distill.errors import InputError

# Footers are waited for, not computed.
_FOOTER_THREADS = 16
_COUNT_THREADS = 4
# A footer of ImageNet's Parquet files is 10 to 60 KB, so that one request is enough.
_TAIL_BYTES = 1 << 16
_MOST_FOOTER_BYTES = 1 << 29
_TOGETHER_S = 60.0


def with_counts(
    listing: Listing, fetcher: ShardFetcher, counts_folder: Path, path: str, key: str
) -> Listing:
    """Add a count for every shard.

    Args:
        counts_folder: where `count_shards` stores counts.
        path: as the user wrote it, for messages.
        key: the recipe key, for messages.

    Raises:
        InputError: nothing says, and only reading every shard would tell; a shard without samples,
            or that is damaged.
        TransferError: a server that does not answer.
    """
    shards = listing.shards
    unknown = any(shard.num_samples is None for shard in shards)
    unsure = any(shard.sha256 is None for shard in shards) or (
        fetcher.fields.labelled and listing.classes is None
    )
    if listing.container == "parquet" and (unknown or unsure):
        listing = _from_footers(listing, fetcher, key)
    elif unknown:
        local = all(shard.is_local for shard in shards)
        known = {} if local else _read_counts(counts_folder, listing, fetcher.fields)
        counts = (
            _by_index(shards, fetcher, key)
            if local
            else [known.get(shard.fingerprint, -1) for shard in shards]
        )
        if -1 in counts:
            raise InputError(
                f"{key}.path: nothing says how many samples the {len(shards)} shards of {path} hold"
                " (no manifest.json, no _info.json), and the order of a run rests on it: run"
                f" distill data inspect '{path}' --count, which reads each shard once and keeps the"
                " counts"
            )
        listing = _counted(listing, counts)
    empty = next((shard.display_url for shard in listing.shards if shard.num_samples == 0), None)
    if empty is not None:
        raise InputError(f"{key}.path: {empty} holds no samples: remove it")
    return listing


def count_shards(
    listing: Listing,
    fetcher: ShardFetcher,
    counts_folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Listing:
    """Read every shard in threads, and store each count at once for later runs of this machine.

    An interrupted count resumes; a finished one is made again. The cache keeps as many shards as
    fit. `progress` is called with (shards done, shards).

    Raises:
        InputError, DamagedShardError, TransferError: a shard cannot be read; the counts so far are
            stored.
    """
    known = _read_counts(counts_folder, listing, fetcher.fields)
    if len(known) == len(listing.shards):
        known = {}

    def count(shard: ListedShard) -> int:
        fingerprint = shard.fingerprint
        if fingerprint not in known:
            known[fingerprint] = _count(shard, fetcher)
            _keep_count(counts_folder, listing, fetcher.fields, fingerprint, known[fingerprint])
        return known[fingerprint]

    counts: list[int] = []
    with ThreadPoolExecutor(_COUNT_THREADS) as pool:
        waiting = [pool.submit(count, shard) for shard in listing.shards]
        try:
            for each in waiting:
                counts.append(each.result())
                if progress is not None:
                    progress(len(counts), len(waiting))
        except BaseException:  # do not read the rest before the error is raised
            pool.shutdown(cancel_futures=True)
            raise
    return _counted(listing, counts)


def _count(shard: ListedShard, fetcher: ShardFetcher) -> int:
    try:
        return len(fetcher.open(shard))
    except (
        DamagedShardError,
        FailedElsewhereError,
    ) as error:  # the latter says what another process met
        named = str(error) if shard.display_url in str(error) else f"{shard.display_url}: {error}"
        raise DamagedShardError(named) from error


def _counted(listing: Listing, counts: Iterable[int]) -> Listing:
    shards = tuple(replace(s, num_samples=n) for s, n in zip(listing.shards, counts, strict=True))
    return replace(listing, shards=shards)


def _by_index(shards: tuple[ListedShard, ...], fetcher: ShardFetcher, key: str) -> list[int]:
    """Counts of local tars, from their headers; the indexes stay in the cache."""
    if len(shards) > 1:
        # Processes that start together share the work: each begins with another shard and skips
        # those that another is indexing.
        first = os.getpid() * 7919 % len(shards)
        for shard in shards[first:] + shards[:first]:
            with contextlib.suppress(OSError):  # reported below, of the first such shard in order
                fetcher.begin(shard)
    try:
        return [_count(shard, fetcher) for shard in shards]
    except DamagedShardError as error:
        raise InputError(f"{key}.path: {error}: fix or remove the shard") from error


# ---- stored counts -------------------------------------------------------------------------------


def _counts_file(counts_folder: Path, listing: Listing, fields: Fields) -> Path:
    """The counts file of a container format: a line [SHA-256 of a fingerprint, samples] a shard."""
    image = "" if fields.image is None else "-" + _sha256(fields.image)[:8]
    return counts_folder / f"{listing.container}{image}.jsonl"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _keep_count(
    counts_folder: Path, listing: Listing, fields: Fields, fingerprint: str, count: int
) -> None:
    place = _counts_file(counts_folder, listing, fields)
    place.parent.mkdir(parents=True, exist_ok=True)
    # One write at the end of the file, so that processes may write at the same time; a line of its
    # own even after a torn one.
    with place.open("ab", buffering=0) as file:
        file.write(f"\n{json.dumps([_sha256(fingerprint), count])}\n".encode())


def _read_counts(counts_folder: Path, listing: Listing, fields: Fields) -> dict[str, int]:
    """fingerprint -> samples of the listed shards that were counted; the last count of each."""
    try:
        lines = _counts_file(counts_folder, listing, fields).read_bytes().splitlines()
    except OSError:
        return {}
    counts: dict[str, int] = {}
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):  # torn
            fingerprint, count = json.loads(line)
            counts[str(fingerprint)] = int(count)
    sums = {shard.fingerprint: _sha256(shard.fingerprint) for shard in listing.shards}
    return {fingerprint: counts[sha256] for fingerprint, sha256 in sums.items() if sha256 in counts}


# ---- footers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Footers:
    """`classes`: of all shards. `shards`: (rows, bytes of the file, SHA-256 of the footer) each."""

    classes: tuple[str, ...] | None
    shards: tuple[tuple[int, int, str], ...]


def _from_footers(listing: Listing, fetcher: ShardFetcher, key: str) -> Listing:
    """Counts and class names from the last bytes of Parquet files, read once a machine: the other
    processes wait and take what is kept.
    """
    fields, shards = fetcher.fields, listing.shards
    parts: list[object] = [
        fields.image,
        fields.label,
        fields.labelled,
        *(shard.fingerprint for shard in shards),
    ]
    if not all(
        shard.is_local or shard.sha256 is not None or shard.url.startswith("hf://")
        for shard in shards
    ):
        # Only the footer shows that a URL holds another file: it is cached for the processes that
        # start together.
        parts.append(int(time.time() / _TOGETHER_S))
    read: list[_Footers] = []

    def make(path: Path) -> None:
        read.append(_read_footers(listing, fetcher, key))
        path.write_text(json.dumps(asdict(read[0])))

    file = fetcher.cache.file(f"footers-{_sha256(json.dumps(parts))[:24]}", make)
    footers = read[0] if read else _cached_footers(file) or _read_footers(listing, fetcher, key)
    for shard, (num_rows, _, _) in zip(shards, footers.shards, strict=True):
        if shard.num_samples not in (None, num_rows):
            raise InputError(
                f"{key}.path: {shard.display_url} holds {num_rows} rows, and {shard.num_samples}"
                " are promised"
            )
    listed = tuple(
        replace(shard, num_samples=num_rows, size_bytes=size_bytes, footer_sha256=sha256)
        for shard, (num_rows, size_bytes, sha256) in zip(shards, footers.shards, strict=True)
    )
    return replace(listing, shards=listed, classes=listing.classes or footers.classes)


def _cached_footers(file: Path) -> _Footers | None:
    """The cached footers; None if the cache has removed the file or it is damaged."""
    try:
        record = json.loads(file.read_text())
        classes = None if record["classes"] is None else tuple(map(str, record["classes"]))
        return _Footers(
            classes,
            tuple((int(rows), int(size), str(sha256)) for rows, size, sha256 in record["shards"]),
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _read_footers(listing: Listing, fetcher: ShardFetcher, key: str) -> _Footers:
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        footers = list(
            pool.map(
                lambda shard: _footer(shard, fetcher.fields, fetcher.transport, key),
                listing.shards,
            )
        )
    classes = footers[0][0].classes
    for shard, (footer, _) in zip(listing.shards, footers, strict=True):
        if footer.classes != classes:
            raise InputError(
                f"{key}.path: {shard.display_url} and {listing.shards[0].display_url} name other"
                " classes in their schemas: give one data set, or one split of it"
            )
    return _Footers(
        classes,
        tuple((footer.num_rows, size_bytes, footer.sha256) for footer, size_bytes in footers),
    )


def _footer(
    shard: ListedShard, fields: Fields, transport: Transport, key: str
) -> tuple[Footer, int]:
    """A footer and the size of its file. Takes one request, and another for an unknown size or a
    very large footer.
    """
    try:
        size = shard.size_bytes if shard.size_bytes is not None else transport.size(shard.url)
        if size is None:
            raise InputError(
                f"{shard.display_url}: the server does not tell its size, which a Parquet file's"
                " footer is found by"
            )
        tail = transport.read(shard.url, max(0, size - _TAIL_BYTES), size)
        if b"</html" in tail[-256:].lower():
            raise DamagedShardError(
                "a web page (HTML) in place of a Parquet file: see what the server sends for"
                " its URL"
            )
        needed = tail_size(tail[-8:])
        if needed > len(tail):
            tail = transport.read(
                shard.url, max(0, size - needed), size, most_bytes=_MOST_FOOTER_BYTES
            )
        footer = read_footer(
            tail[-needed:], image=fields.image, label=fields.label, labelled=fields.labelled
        )
        return footer, size
    except DamagedShardError as error:
        raise InputError(
            f"{key}.path: {shard.display_url}: {error}: fetch it again, or remove it"
        ) from error
    except InputError as error:
        named = str(error) if shard.display_url in str(error) else f"{shard.display_url}: {error}"
        raise InputError(named if named.startswith(key) else f"{key}.path: {named}") from error
