"""Opening and damaging the files of shards, for tests."""

from pathlib import Path

from distill.data.stream.local import LocalShard


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def open_local(path: Path, data: Path | None = None) -> LocalShard:
    with path.open("rb") as file:
        return LocalShard(file, data)
