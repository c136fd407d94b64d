"""Opens the stream that a recipe describes."""

import contextlib
import getpass
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from distill.data.class_names import listed_order
from distill.data.label_sets import class_list, same_space
from distill.data.labels import check_labels, index_names
from distill.data.records import first_line
from distill.data.stream.cache import ShardCache
from distill.data.stream.counts import count_shards, with_counts
from distill.data.stream.listing import Listing, list_shards
from distill.data.stream.names import display_url
from distill.data.stream.shard_fetcher import Fields, ShardFetcher
from distill.data.stream.source import StreamSource
from distill.data.stream.transport import TransferError, Transport
from distill.errors import InputError
from distill.recipe import schema


def cache_folder(shards: schema.ShardsSpec, root: Path) -> Path:
    """The cache folder of shards: `data.shards.cache` relative to `data.root`, or a temporary
    folder of the user.

    Raises:
        InputError: the temporary folder belongs to another user.
    """
    if shards.cache is not None:
        return root / Path(shards.cache).expanduser()
    folder = Path(tempfile.gettempdir()) / f"distill-shards-{_user()}"
    with contextlib.suppress(OSError):  # the cache tries the same and reports it
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid != os.getuid():
            raise InputError(
                f"data.shards.cache: {folder} belongs to another user: give a folder of your own"
            )
    return folder


def _user() -> str:
    try:
        return getpass.getuser()
    except (
        KeyError,
        OSError,
        ImportError,
    ):  # a number without a name, as in containers; which error, each Python decides again
        return str(os.getuid())


def open_stream(
    spec: schema.StreamSpec,
    root: Path,
    key: str = "data.train",
    shards: schema.ShardsSpec | None = None,
) -> StreamSource:
    """Open a stream: list its shards and read what says how many samples they hold, but no shard.

    Raises:
        InputError: nothing there, no access, counts or classes that nothing says, labels outside
            the class list.
    """
    listing, fetcher, counts_folder = _list(spec, root, key, shards or schema.ShardsSpec())
    with _input_errors(key):
        listing = with_counts(listing, fetcher, counts_folder, display_url(spec.path), key)
    if not spec.labelled:
        return StreamSource(listing.shards, fetcher, (), labelled=False, key=key)
    stored = listing.classes
    if not listing.has_labels:
        raise InputError(
            f"{key}.path: the shards of {display_url(spec.path)} were made without labels: set"
            " labelled: false"
        )
    if spec.classes is None and stored is None:
        raise InputError(
            f"{key}.classes: nothing in {display_url(spec.path)} names its classes: give a file, a"
            " class a line, or a label set such as imagenet-1k, or set labelled: false"
        )
    in_order = (
        None if stored is None else listed_order(stored, f"{key}.path: {display_url(spec.path)}")
    )
    classes = in_order if spec.classes is None else class_list(spec.classes, root, key)
    assert classes is not None
    if stored is not None and same_space(stored, classes):
        stored = classes
    labels = listing.labels
    if labels is not None:
        check_labels(labels, len(stored or classes), key)
        if stored is not None and stored != classes:
            labels = index_names(stored, classes, f"{key}.classes")[labels]
    return StreamSource(
        listing.shards, fetcher, classes, stored_classes=stored, labels=labels, key=key
    )


def count_samples(
    spec: schema.StreamSpec,
    root: Path,
    key: str = "data.train",
    shards: schema.ShardsSpec | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Count the samples of each shard by reading it once; `open_stream` finds the counts later.

    Args:
        progress: called with (shards done, shards).

    Returns:
        [S] int64 samples of each shard, in the stream's order.

    Raises:
        InputError: as `open_stream`; a shard that cannot be read.
    """
    listing, fetcher, counts_folder = _list(spec, root, key, shards or schema.ShardsSpec())
    with _input_errors(key):
        if listing.container == "parquet":  # which are kept under what their footers say
            listing = with_counts(listing, fetcher, counts_folder, display_url(spec.path), key)
        listing = count_shards(listing, fetcher, counts_folder, progress)
    return np.array([shard.num_samples for shard in listing.shards], dtype=np.int64)


def _list(
    spec: schema.StreamSpec, root: Path, key: str, shards: schema.ShardsSpec
) -> tuple[Listing, ShardFetcher, Path]:
    folder = cache_folder(shards, root)
    cache = ShardCache(folder, int(shards.cache_gb * 1e9))
    transport = Transport(retries=shards.retries, timeout_s=shards.timeout_s)
    with _input_errors(key):
        listing = list_shards(spec, root, key, transport, cache)
    fields = Fields(spec.image, spec.label, spec.labelled and listing.labels is None)
    return listing, ShardFetcher(cache, transport, listing.container, fields), folder / "counts"


@contextmanager
def _input_errors(key: str) -> Iterator[None]:
    """Turn an error before the run begins into an InputError that names the recipe's key."""
    try:
        yield
    except InputError as error:
        raise (
            error if str(error).startswith(("data.", key)) else InputError(f"{key}.path: {error}")
        ) from error
    except TransferError as error:
        raise InputError(
            f"{key}.path: {first_line(error)}: fix the server or the way to it, or try again later"
        ) from error
    except OSError as error:
        raise InputError(
            f"{key}.path: {first_line(error)}: fix the shard, or its permissions"
        ) from error
