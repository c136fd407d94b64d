"""Lists the shards that a path names, in a fixed order, with the promised properties of each."""

import glob
import hashlib
import io
import itertools
import json
import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from distill.data.records import at, missing
from distill.data.splits import choose_split, files_of_split
from distill.data.stream.cache import ShardCache
from distill.data.stream.hub import list_hub_once
from distill.data.stream.manifest import MANIFEST_FILE, Manifest, read_manifest
from distill.data.stream.names import (
    COMPRESSED,
    EXTENSIONS,
    Container,
    check_url,
    container_of,
    display_url,
    is_web_page,
    matching,
    named_files,
    names_files,
)
from distill.data.stream.shard_fetcher import ListedShard
from distill.data.stream.transport import MOST_READ_BYTES, Transport
from distill.data.walk import files_below
from distill.errors import InputError
from distill.recipe import schema

# The samples of a shard that a listing may promise: beyond, the numbers of a stream's samples would
# not fit into 64 bits.
_MOST_SAMPLES = 1 << 40
_INFO_FILES = ("_info.json", "info.json")  # of timm's webdataset repositories
# The bytes of a label file besides the labels, which take 4 or 8 bytes each.
_LABEL_FILE_BYTES = 1 << 16
# How the transport reports a missing file; object stores answer 403 where they do not list files.
_ABSENT = re.compile(r"answers (403|404|410)\b|no such file|does not exist")


@dataclass(frozen=True)
class Listing:
    """The shards of a stream. `classes`: the names that the labels in the shards index, or None if
    unknown. `labels`: [N] int64 from a manifest, or None.
    """

    container: Container
    shards: tuple[ListedShard, ...]
    classes: tuple[str, ...] | None = None
    labels: np.ndarray | None = None
    has_labels: bool = True


def list_shards(
    spec: schema.StreamSpec, root: Path, key: str, transport: Transport, cache: ShardCache
) -> Listing:
    """The shards of a stream.

    Args:
        spec: its `path`, `split` and `container` are used.
        root: what a local path is relative to.
        key: the recipe key of `spec`, for messages.
        cache: the processes of the machine share the Hub's answers through it.

    Raises:
        InputError: nothing there, several splits, unclear or compressed containers.
        TransferError: a server that does not answer.
    """
    path = spec.path.removeprefix("file://")
    if path.startswith("hf://"):
        files = list_hub_once(path, spec.split, spec.label, key, cache)
        shards = tuple(
            ListedShard(f.url, f.name, None, f.size_bytes, f.sha256) for f in files.files
        )
        listing = Listing(container_of(spec, [s.name for s in shards], key), shards, files.classes)
        return _with_info(listing, files.root, transport)
    # Absolute, since the cache keys local shards by path.
    place = path if "://" in path else str(at(root, path, f"{key}.path").absolute())
    check_url(place, key)
    if names_files(place):
        if spec.split is not None:
            raise InputError(
                f"{key}.split: {display_url(spec.path)} names files, which have no splits: set"
                " split to null, or path to their folder"
            )
        return _from_names(spec, named_files(place, key), key, transport)
    return _from_folder(spec, place.removesuffix(MANIFEST_FILE).rstrip("/"), key, transport)


def _from_names(
    spec: schema.StreamSpec, files: Sequence[str], key: str, transport: Transport
) -> Listing:
    plain = [file.partition("?")[0] if "://" in file else file for file in files]
    folder = (
        posixpath.commonpath([posixpath.dirname(file) for file in plain])
        if len({f[:1] for f in plain}) == 1
        else ""
    )
    # commonpath turns the // of a scheme into one slash
    names = [
        posixpath.relpath(posixpath.normpath(file), folder) if folder else file for file in plain
    ]
    listing = Listing(
        container_of(spec, plain, key),
        tuple(ListedShard(url, name) for url, name in zip(files, names, strict=True)),
    )
    folder = re.sub(r"^([a-z0-9+]+):/(?!/)", r"\1://", folder)
    manifest = _manifest_of(folder, transport, of_folder=False) if folder else None
    if manifest is not None and {each.file for each in manifest.shards} >= set(names):
        return _from_manifest(folder, manifest, spec, key, transport, names)
    return _with_info(listing, folder, transport) if folder else listing


# ---- folders -------------------------------------------------------------------------------------


def _from_folder(spec: schema.StreamSpec, folder: str, key: str, transport: Transport) -> Listing:
    local = "://" not in folder
    if local and not Path(folder).is_dir():
        raise missing(Path(folder), key)
    manifest = _manifest_of(folder, transport, of_folder=True)
    if manifest is not None:
        if spec.split is not None:
            raise InputError(
                f"{key}.split: the manifest in {display_url(folder)} knows no splits: set split to"
                " null"
            )
        return _from_manifest(folder, manifest, spec, key, transport)
    splits = _info_of(folder, transport)
    if splits:
        counts = splits[choose_split(spec.split, list(splits), display_url(folder), key)]
        files = [f"{folder}/{name}" for name in counts]
        listing = Listing(
            container_of(spec, files, key),
            tuple(
                ListedShard(file, name, counts[name])
                for file, name in zip(files, counts, strict=True)
            ),
        )
        if local:
            _named_files_exist(listing, key)
        return listing
    if folder.startswith(("http://", "https://")):
        raise InputError(
            f"{key}.path: {display_url(folder)} has neither manifest.json nor _info.json, and a web"
            " server does not list its files: name the shards in braces, as in"
            " train-{0000..0127}.tar"
        )
    found = _shards_below(
        folder,
        tuple(end for kind, end in EXTENSIONS.items() if spec.container in (None, kind)),
        key,
    )
    if not found:
        packed = _shards_below(folder, COMPRESSED, key)
        if packed:
            container_of(spec, packed, key)
        raise InputError(
            f"{key}.path: {display_url(folder)} has no .tar or .parquet files: give the folder of"
            " the shards, or a pattern"
        )
    found = files_of_split(found, folder, spec.split, display_url(folder), key)
    return _from_names(spec, found, key, transport)


def _shards_below(folder: str, endings: tuple[str, ...], key: str) -> list[str]:
    """The files of a folder and below with these endings, in lower or upper case, sorted."""
    if "://" not in folder:
        return [f"{folder}/{os.fsdecode(name)}" for name in files_below(Path(folder), endings, key)]
    return sorted(
        name
        for end in endings
        for each in dict.fromkeys((end, end.upper()))
        for name in matching(f"{glob.escape(folder)}/**/*{each}", key)
    )


def _named_files_exist(listing: Listing, key: str) -> None:
    absent = [shard.url for shard in listing.shards if not Path(shard.url).is_file()]
    if absent:
        raise InputError(
            f"{key}.path: {len(absent)} of {len(listing.shards)} shards do not exist, the first of"
            f" them {absent[0]}: fetch them, or name those that are there by a pattern"
        )


# ---- files next to the shards --------------------------------------------------------------------


def _small_file(folder: str, name: str, transport: Transport) -> bytes | None:
    """A small file in a folder; None if it is not there or a web page is sent in its place.

    Raises:
        InputError: the folder cannot be read: no such host, no access; or the file is too large.
    """
    if "://" not in folder:
        file = Path(folder, name)
        if not file.is_file():
            return None
        if file.stat().st_size > MOST_READ_BYTES:
            raise InputError(
                f"{file}: more than {MOST_READ_BYTES / 1e6:,.0f} MB, which no file of its name has:"
                " remove it"
            )
        return file.read_bytes()
    try:
        content = transport.read(f"{folder}/{name}")
    except InputError as error:
        if _ABSENT.search(str(error)):
            return None
        raise
    return None if is_web_page(content) else content


def _manifest_of(folder: str, transport: Transport, *, of_folder: bool) -> Manifest | None:
    """The manifest of a folder, or None.

    Args:
        of_folder: the path names the folder. If it names files, a manifest.json of another program
            is ignored.
    """
    content = _small_file(folder, MANIFEST_FILE, transport)
    if content is None or not (of_folder or b'"format"' in content):
        return None
    return read_manifest(content, f"{display_url(folder)}/{MANIFEST_FILE}")


def _from_manifest(
    folder: str,
    manifest: Manifest,
    spec: schema.StreamSpec,
    key: str,
    transport: Transport,
    names: Sequence[str] | None = None,
) -> Listing:
    """The shards of a manifest; with `names` those only, in that order."""
    if spec.container not in (None, manifest.container):
        raise InputError(
            f"{key}.container: {display_url(folder)} holds {manifest.container} shards: set it to"
            " null"
        )
    order = {each.file: i for i, each in enumerate(manifest.shards)}
    chosen = list(order.values()) if names is None else [order[name] for name in names]
    shards = [manifest.shards[i] for i in chosen]
    listed = tuple(
        ListedShard(f"{folder}/{s.file}", s.file, s.num_samples, s.size, s.sha256) for s in shards
    )
    labels = None
    if spec.labelled and manifest.labels_file is not None:
        every = _read_labels(f"{folder}/{manifest.labels_file}", manifest, key, transport)
        ends = np.cumsum([each.num_samples for each in manifest.shards])
        labels = np.concatenate(
            [every[ends[i] - manifest.shards[i].num_samples : ends[i]] for i in chosen]
        )
    listing = Listing(
        manifest.container, listed, manifest.classes, labels, manifest.classes is not None
    )
    if "://" not in folder:
        _named_files_exist(listing, key)
    return listing


def _read_labels(url: str, manifest: Manifest, key: str, transport: Transport) -> np.ndarray:
    """The labels that a manifest promises, [N] int64."""
    content = transport.read(url, most_bytes=_LABEL_FILE_BYTES + 8 * manifest.num_samples)
    if hashlib.sha256(content).hexdigest() != manifest.labels_sha256:
        raise InputError(
            f"{key}.path: {display_url(url)} is not what the manifest's sha256 says: fetch it"
            " again, or write the shards again"
        )
    labels = np.load(io.BytesIO(content), allow_pickle=False)
    if labels.shape != (manifest.num_samples,):
        raise InputError(
            f"{key}.path: {display_url(url)} has {labels.shape} labels, and the manifest"
            f" {manifest.num_samples} samples"
        )
    return np.asarray(labels, dtype=np.int64)


def _info_of(folder: str, transport: Transport) -> dict[str, dict[str, int]]:
    """split -> file -> samples, from the _info.json that timm puts next to webdataset shards; empty
    without one.
    """
    for name in _INFO_FILES:
        content = _small_file(folder, name, transport)
        if content is None:
            continue
        try:
            items = json.loads(content)["splits"].items()
            splits = {
                split: dict(
                    zip(map(str, of["filenames"]), map(int, of["shard_lengths"]), strict=True)
                )
                for split, of in items
            }
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            continue  # another file of that name
        for file, count in itertools.chain.from_iterable(
            counts.items() for counts in splits.values()
        ):
            if not 0 < count < _MOST_SAMPLES:
                raise InputError(
                    f"{display_url(folder)}/{name} says that {file} holds {count} samples: write it"
                    " again"
                )
            if posixpath.isabs(file) or "://" in file or ".." in file.split("/"):
                raise InputError(
                    f"{display_url(folder)}/{name} names {file}, which is no file of its folder:"
                    " fix it"
                )
        return splits
    return {}


def _with_info(listing: Listing, folder: str, transport: Transport) -> Listing:
    """Add the counts of an _info.json, if it has all shards of the listing."""
    if listing.container != "tar":
        return listing
    counts = {
        name: count
        for files in _info_of(folder, transport).values()
        for name, count in files.items()
    }
    if not all(shard.name in counts for shard in listing.shards):
        return listing
    return replace(
        listing,
        shards=tuple(replace(shard, num_samples=counts[shard.name]) for shard in listing.shards),
    )
