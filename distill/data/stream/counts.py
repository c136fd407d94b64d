"""How many samples each shard holds, where neither manifest nor _info.json says: footers, indexes, a list kept from an earlier count."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from distill.data.stream.listing import Listing
from distill.data.stream.local import DamagedShard
from distill.data.stream.localise import Fields, ListedShard, Localiser
from distill.data.stream.parquet import Footer, read_footer, tail_size
from distill.data.stream.transport import Transport
from distill.errors import InputError

# Footers are waited for, not computed.
_FOOTER_THREADS = 16
_COUNT_THREADS = 4
# Of ImageNet's Parquet files a footer is 10 to 60 KB, so that one request has it.
_TAIL_BYTES = 1 << 16


def with_counts(listing: Listing, localiser: Localiser, kept: Path, path: str, key: str) -> Listing:
    """The listing with a count for every shard.

    Args:
        kept: the folder of the lists that `count_shards` writes.
        path: as the user wrote it, for messages.
        key: the recipe key, for messages.

    Raises:
        InputError: nobody says, and only reading every shard would tell; a shard without samples, or that is damaged.
        TransferFailed: a server that does not answer.
    """
    shards = listing.shards
    unknown = any(shard.num_samples is None for shard in shards)
    if listing.container == "parquet" and (unknown or (localiser.fields.labelled and listing.classes is None)):
        listing = _from_footers(listing, localiser.fields, localiser.transport, key)
    elif unknown:
        local = all(shard.is_local for shard in shards)
        counts = _by_index(shards, localiser, key) if local else _read_list(kept, listing, localiser.fields)
        if counts is None:
            raise InputError(
                f"{key}.path: nothing says how many samples the {len(shards)} shards of {path} hold (no manifest.json, no _info.json), and "
                f"the order of a run rests on it: run distill data inspect '{path}' --count, which reads each shard once and keeps the counts"
            )
        listing = _counted(listing, counts)
    empty = next((shard.shown for shard in listing.shards if shard.num_samples == 0), None)
    if empty is not None:
        raise InputError(f"{key}.path: {empty} holds no samples: remove it")
    return listing


def count_shards(
    listing: Listing, localiser: Localiser, kept: Path, progress: Callable[[int, int], None] | None = None
) -> Listing:
    """Read every shard whose count nobody says, in threads, and keep the list for the runs of this machine.

    What fits of the shards stays in the cache. `progress` is called with (shards done, shards) as they come.

    Raises:
        InputError, DamagedShard, TransferFailed: of a shard that cannot be read; the shards read so far stay in the cache.
    """
    done, counts = 0, []
    with ThreadPoolExecutor(_COUNT_THREADS) as pool:
        opened = pool.map(lambda shard: _count(shard, localiser), listing.shards)
        for count in opened:
            counts.append(count)
            done += 1
            if progress is not None:
                progress(done, len(listing.shards))
    place = _list_file(kept, listing, localiser.fields)
    place.parent.mkdir(parents=True, exist_ok=True)
    tmp = place.with_name(f".{place.name}-{os.getpid()}")
    tmp.write_text(json.dumps({"counts": counts}))
    tmp.replace(place)
    return _counted(listing, counts)


def _count(shard: ListedShard, localiser: Localiser) -> int:
    try:
        return len(localiser.open(shard))
    except DamagedShard as error:
        raise DamagedShard(f"{shard.shown}: {error}") from error


def _counted(listing: Listing, counts: Iterable[int]) -> Listing:
    shards = tuple(replace(s, num_samples=n) for s, n in zip(listing.shards, counts, strict=True))
    return replace(listing, shards=shards)


def _by_index(shards: tuple[ListedShard, ...], localiser: Localiser, key: str) -> list[int]:
    """Of local tars, by their headers; the indexes stay in the cache."""
    if len(shards) > 1:
        # Processes of the machine that start together share the work: each begins elsewhere, and passes over what another is at.
        first = os.getpid() * 7919 % len(shards)
        for shard in shards[first:] + shards[:first]:
            with contextlib.suppress(OSError):  # told below, of the first such shard in order
                localiser.begin(shard)
    try:
        return [_count(shard, localiser) for shard in shards]
    except DamagedShard as error:
        raise InputError(f"{key}.path: {error}: mend or remove the shard") from error


def _list_file(kept: Path, listing: Listing, fields: Fields) -> Path:
    said = [listing.container, fields.image, *(shard.identity for shard in listing.shards)]
    return kept / f"counts-{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]}.json"


def _read_list(kept: Path, listing: Listing, fields: Fields) -> list[int] | None:
    try:
        counts = json.loads(_list_file(kept, listing, fields).read_text())["counts"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return list(map(int, counts)) if len(counts) == len(listing.shards) else None


def _from_footers(listing: Listing, fields: Fields, transport: Transport, key: str) -> Listing:
    """Counts and class names from the last bytes of Parquet files."""
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        footers = list(pool.map(lambda shard: _footer(shard, fields, transport, key), listing.shards))
    classes = footers[0].classes
    for shard, footer in zip(listing.shards, footers, strict=True):
        if footer.classes != classes:
            raise InputError(
                f"{key}.path: {shard.shown} and {listing.shards[0].shown} name other classes in their schemas: give one data set, or one split of it"
            )
        if shard.num_samples not in (None, footer.num_rows):
            raise InputError(
                f"{key}.path: {shard.shown} holds {footer.num_rows} rows, and {shard.num_samples} are promised"
            )
    listing = _counted(listing, (footer.num_rows for footer in footers))
    return replace(listing, classes=listing.classes or classes)


def _footer(shard: ListedShard, fields: Fields, transport: Transport, key: str) -> Footer:
    try:
        size = shard.size_bytes if shard.size_bytes is not None else transport.size(shard.url)
        if size is None:
            raise InputError(
                f"{shard.shown}: the server does not tell its size, which a Parquet file's footer is found by"
            )
        tail = transport.read(shard.url, max(0, size - _TAIL_BYTES), size)
        needed = tail_size(tail[-8:])
        if needed > len(tail):
            tail = transport.read(shard.url, max(0, size - needed), size)
        return read_footer(tail[-needed:], image=fields.image, label=fields.label, labelled=fields.labelled)
    except DamagedShard as error:
        raise InputError(f"{key}.path: {shard.shown}: {error}: fetch it again, or remove it") from error
    except InputError as error:
        named = str(error) if shard.shown in str(error) else f"{shard.shown}: {error}"
        raise InputError(named if named.startswith(key) else f"{key}.path: {named}") from error
