"""A listed shard -> an open one: fetched, indexed, checked, and cached on this machine."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from distill.data.stream.cache import ShardCache
from distill.data.stream.exiting import delay_exit
from distill.data.stream.local import DamagedShardError, LocalShard, add_checksums, append_index
from distill.data.stream.names import Container, display_url, unsigned
from distill.data.stream.parquet import footer_sha256, unpack_parquet
from distill.data.stream.tar import index_tar
from distill.data.stream.transport import Transport
from distill.errors import InputError
from distill.files import sha256_of

_FORMAT = 2  # of the cached files; with another number the old files are removed in time


@dataclass(frozen=True)
class ListedShard:
    """A shard as a listing describes it.

    url: where it is; an absolute path if local. name: its path below the folder that all shards
    share. num_samples, size_bytes, sha256: as a manifest or the Hub promises, else None.
    footer_sha256: of the footer of a Parquet file, once read.
    """

    url: str
    name: str
    num_samples: int | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    footer_sha256: str | None = None

    @property
    def is_local(self) -> bool:
        return "://" not in self.url

    @property
    def display_url(self) -> str:
        """The URL for messages, without passwords and signatures."""
        return display_url(self.url)

    @property
    def fingerprint(self) -> str:
        """Changes with the content, as far as it is known without reading the shard. For a URL
        without a checksum the content is not known.
        """
        if self.sha256 is not None:
            return self.sha256
        return (
            self.stamp
            if self.is_local
            else f"{unsigned(self.url)} {self.size_bytes} {self.footer_sha256}"
        )

    @property
    def stamp(self) -> str:
        """Changes when the local file changes. Times alone do not show it: archives and container
        images set them.
        """
        status = os.stat(self.url)
        return (
            f"{self.url} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_dev}"
            f" {status.st_ino}"
        )

    @property
    def known_checksum(self) -> str | None:
        """The checksum of the content, wherever it lies; None for a tar without one."""
        footer = None if self.footer_sha256 is None else f"{self.size_bytes} {self.footer_sha256}"
        return self.sha256 or footer


@dataclass(frozen=True)
class Fields:
    """Which parts of a sample are read, as in the recipe's StreamSpec."""

    image: str | None
    label: str | None
    labelled: bool


@dataclass(frozen=True)
class ShardFetcher:
    """Fetches shards of one container format. Holds plain values, so it may be sent to workers."""

    cache: ShardCache
    transport: Transport
    container: Container
    fields: Fields

    def open(self, shard: ListedShard) -> LocalShard:
        """Open the shard; it is made or fetched if the cache does not have it.

        Raises:
            DamagedShardError: it is corrupt, here or where it lies.
            OSError: it cannot be read; TransferError: it cannot be fetched.
            InputError: its members are not samples; the server refuses it. Names the shard.
        """
        data = self._data_of(shard)
        spoilt = False
        while True:
            path = self.cache.file(self._key(shard), lambda tmp: self._make(shard, tmp))
            try:
                with path.open("rb") as file:
                    status = os.fstat(file.fileno())
                    return LocalShard(file, data)
            except FileNotFoundError:
                if not path.exists() and (data is None or data.exists()):
                    # The cache, too small for what is in use, has removed it just now.
                    continue
                raise
            # Damaged in the cache: damage in the shard itself is raised while the file is made.
            except DamagedShardError:
                if spoilt:
                    raise
                spoilt = True
                self.drop(shard, status)

    def begin(self, shard: ListedShard) -> None:
        """Fetch the shard unless it is here or another process is fetching it."""
        self.cache.begin(self._key(shard), lambda tmp: self._make(shard, tmp))

    def drop(self, shard: ListedShard, damaged: os.stat_result) -> None:
        """Remove a damaged file from the cache unless another process has replaced it. Raises as
        `open`.
        """
        key = self._key(shard)
        try:
            there = os.stat(self.cache.file(key, lambda tmp: self._make(shard, tmp)))
        except FileNotFoundError:
            return
        if os.path.samestat(there, damaged):
            self.cache.drop(key)

    def _data_of(self, shard: ListedShard) -> Path | None:
        return Path(shard.url) if shard.is_local and self.container == "tar" else None

    def _key(self, shard: ListedShard) -> str:
        fields = self.fields
        described = (
            f"{_FORMAT} {self.container} {fields.image} {fields.label} {fields.labelled}"
            f" {shard.fingerprint}"
        )
        if self._data_of(shard) is not None:  # an index alone, which a copy in the cache has within
            described += f" {shard.stamp}"
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", shard.name)[-60:].lstrip(".-")
        return f"{name}-{hashlib.sha256(described.encode()).hexdigest()[:24]}"

    def _make(self, shard: ListedShard, path: Path) -> None:
        make = self._make_tar if self.container == "tar" else self._make_parquet
        try:
            try:
                make(shard, path)
            except DamagedShardError:
                if shard.is_local or shard.sha256 is not None:
                    raise
                make(
                    shard, path
                )  # only its form showed the damage, which the transfer may have caused
        except InputError as error:
            raise (
                error
                if shard.display_url in str(error)
                else InputError(f"{shard.display_url}: {error}")
            ) from error

    def _make_tar(self, shard: ListedShard, path: Path) -> None:
        fields = self.fields
        local = self._data_of(shard)
        if local is None:
            self.transport.fetch(shard.url, path, size=shard.size_bytes, sha256=shard.sha256)
        else:
            _check_promised(shard)
        fd = os.open(local or path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            entries, names = index_tar(
                fd, image=fields.image, label=fields.label, labelled=fields.labelled
            )
            if local is None:
                add_checksums(fd, entries)
        finally:
            os.close(fd)
        append_index(path, entries, names, has_checksums=local is None)

    def _make_parquet(self, shard: ListedShard, path: Path) -> None:
        fields = self.fields
        if shard.is_local:
            _check_promised(shard)
        else:
            self.transport.fetch(shard.url, path, size=shard.size_bytes, sha256=shard.sha256)
        file = Path(shard.url) if shard.is_local else path
        if shard.footer_sha256 is not None and footer_sha256(file) != shard.footer_sha256:
            raise InputError(
                "it is another file than when its footer was read: it was written again,"
                " so start again"
            )
        with delay_exit():
            import pyarrow as pa

            with pa.OSFile(str(file)) as source:
                if not shard.is_local:
                    # read to its end through `source`, and gone with it, even after kill -9
                    path.unlink()
                unpack_parquet(
                    source, path, image=fields.image, label=fields.label, labelled=fields.labelled
                )


def _check_promised(shard: ListedShard) -> None:
    """Compare a local shard with its promised size and checksum, once, when its index is made."""
    size = os.path.getsize(shard.url)
    if shard.size_bytes is not None and size != shard.size_bytes:
        raise DamagedShardError(
            f"it has {size} bytes, and {shard.size_bytes} are promised: cut at byte {size}, or"
            " another file"
        )
    if shard.sha256 is not None and sha256_of(Path(shard.url)) != shard.sha256:
        raise DamagedShardError("its SHA-256 is not the promised one: damaged, or another file")
