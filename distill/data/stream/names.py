"""The names of shards: written in braces, matched by patterns, of a split, of a container."""

import glob
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from distill.data.records import first_line, kind_of, missing
from distill.errors import InputError, nearest
from distill.recipe import schema

Container = Literal["tar", "parquet"]

EXTENSIONS: dict[Container, str] = {"tar": ".tar", "parquet": ".parquet"}
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.zstd", ".tar.lz4")
_SPLIT_NAMES = ("train", "validation", "valid", "val", "test")
# What signs a URL: of S3 and what speaks like it, Google, CloudFront, Azure. Another signature is no other file.
_SIGNATURE = re.compile(
    r"(X-(Amz|Goog|Ms)-[^=]*|Expires|Signature|Policy|Key-Pair-Id|AWSAccessKeyId|GoogleAccessId|"
    r"sig|se|sp|sv|st|sr|spr|sip|skoid|sktid|skt|ske|sks|skv)(=.*)?",
    re.IGNORECASE,
)


def shown(url: str) -> str:
    """A path or URL for messages: without passwords and signatures."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    if scheme in ("http", "https") or "=" in rest:  # elsewhere ? may be of a pattern
        rest = rest.partition("?")[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def is_web_page(content: bytes) -> bool:
    """Whether a file begins as HTML or XML do, which servers send for a login, or for any path that they do not know."""
    return content[:256].removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<"


def unsigned(url: str) -> str:
    """A URL without what signs it, which another day is another."""
    plain, mark, query = url.partition("?")
    if not mark or "://" not in url:
        return url
    kept = "&".join(part for part in query.split("&") if not _SIGNATURE.fullmatch(part))
    return f"{plain}?{kept}" if kept else plain


def check_url(url: str, key: str) -> None:
    """Refuses what is no URL.

    Raises:
        InputError: names the recipe's key.
    """
    try:
        urlsplit(url)
    except ValueError as error:
        raise InputError(f"{key}.path: {shown(url)} is no URL ({first_line(error)}): mend it") from error


def expand_braces(path: str) -> list[str]:
    """Names in braces written out: train-{0000..0127}.tar, {train,extra}.tar, and several of them in one path."""
    parts: list[list[str]] = []
    for i, part in enumerate(re.split(r"\{([^{}]*)\}", path)):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", part)
        if i % 2 == 0:
            parts.append([part])
        elif numbers:
            first, last = numbers.groups()
            width = len(first) if first.startswith("0") or len(first) == len(last) else 0
            parts.append([f"{n:0{width}d}" for n in range(int(first), int(last) + 1)])
        else:
            parts.append(part.split(","))
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def names_files(place: str) -> bool:
    """Whether a path says files, by a pattern, braces or an extension, rather than a folder."""
    if "://" not in place:
        pattern = "{" in place or glob.has_magic(place) or _is_file_name(place)
        return pattern and not Path(place).is_dir()
    # After the host: [::1] is no pattern.
    path = place.partition("?")[0].partition("://")[2].partition("/")[2]
    return any(sign in path for sign in "{*[") or _is_file_name(path)


def _is_file_name(path: str) -> bool:
    return path.lower().endswith((*EXTENSIONS.values(), *COMPRESSED))


def named_files(place: str, key: str) -> list[str]:
    files = expand_braces(place)
    if place.startswith(("http://", "https://")):
        if "*" in place.partition("?")[0]:
            raise InputError(
                f"{key}.path: {shown(place)}: a web server does not list its files: name them in braces, as in train-{{0000..0127}}.tar, "
                "or give a folder with the manifest of distill data shard"
            )
    elif any(glob.has_magic(file) for file in files):
        files = [found for pattern in files for found in sorted(matching(pattern, key))]
    if not files:
        raise InputError(f"{key}.path: no file matches {shown(place)}: mend the pattern")
    if len(set(files)) != len(files):
        twice = next(name for name, again in itertools.pairwise(sorted(files)) if name == again)
        raise InputError(f"{key}.path: {shown(place)} names {shown(twice)} twice: each shard is given once")
    absent = [file for file in files if "://" not in file and not Path(file).is_file()]
    if absent:
        if Path(absent[0]).exists():
            raise InputError(
                f"{key}.path: {absent[0]} is a {kind_of(absent[0])}, not a file: name the shards themselves"
            )
        if len(files) == 1:
            raise missing(Path(absent[0]), key)
        raise InputError(
            f"{key}.path: {len(absent)} of {len(files)} files do not exist, the first of them {absent[0]}: mend the pattern"
        )
    return files


def matching(pattern: str, key: str) -> list[str]:
    scheme, separator, _ = pattern.partition("://")
    if not separator:
        return [name for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]
    import fsspec  # type: ignore[import-untyped]

    try:
        found = fsspec.filesystem(scheme).glob(pattern)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{key}.path: {shown(pattern)}: {first_line(error)}: install what opens {scheme}://"
        ) from error
    except OSError as error:
        raise InputError(
            f"{key}.path: {shown(pattern)} cannot be listed ({type(error).__name__}: {first_line(error)})"
        ) from error
    return [name if "://" in name else f"{scheme}://{name.lstrip('/')}" for name in found]


def container_of(spec: schema.Stream, names: Sequence[str], key: str) -> Container:
    packed = next((name for name in names if name.lower().endswith(COMPRESSED)), None)
    if packed is not None:
        raise InputError(
            f"{key}.path: {shown(packed)} is compressed, and a stream reads samples by offset: unpack the shards to plain .tar files "
            "(images are compressed already), or write them again with distill data shard"
        )
    if spec.container is not None:
        return spec.container
    kinds = {next((kind for kind, end in EXTENSIONS.items() if name.lower().endswith(end)), None) for name in names}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        odd = next((name for name in names if not name.lower().endswith(tuple(EXTENSIONS.values()))), None)
        what = "there are tar and Parquet files" if odd is None else f"{shown(odd)} is neither .tar nor .parquet"
        raise InputError(f"{key}.container: {what}: set container to tar or parquet, and path to files of that form")
    return kind


def of_split(files: list[str], folder: str, split: str | None, key: str) -> list[str]:
    """The files of a split, told by the first word of a file's or folder's name."""

    def words(file: str) -> set[str]:
        return {re.split(r"[-_.]", part)[0] for part in file.removeprefix(folder).strip("/").split("/")}

    if split is None:
        here = [name for name in _SPLIT_NAMES if any(name in words(file) for file in files)]
        if len(here) > 1:
            raise InputError(f"{key}.split: {shown(folder)} has files of {', '.join(here)}: choose one")
        return files
    chosen = [file for file in files if split in words(file)]
    if not chosen:
        known = sorted(set().union(*map(words, files)))[:20]
        raise InputError(
            f"{key}.split: no file in {shown(folder)} begins with {split!r}{nearest(split, known)}: set split to null, or path to a pattern"
        )
    return chosen


def choose_split(split: str | None, known: Sequence[str], where: str, key: str) -> str:
    """The split asked for, or the only one.

    Raises:
        InputError: there is no such split, or there are several and none is asked for.
    """
    if split is None and len(known) == 1:
        return known[0]
    if split is None or split not in known:
        have = ", ".join(map(repr, known))
        asked = (
            f"{where} has several splits" if split is None else f"{where} has no split {split!r}{nearest(split, known)}"
        )
        raise InputError(f"{key}.split: {asked}: choose one of {have}")
    return split
