"""The names of shards: braces, patterns, splits and container formats."""

import glob
import itertools
import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from distill.data.records import first_line, kind_of, literal_start, missing
from distill.data.splits import refuse_several
from distill.data.walk import matching_files
from distill.errors import InputError
from distill.recipe import schema

Container = Literal["tar", "parquet"]

EXTENSIONS: dict[Container, str] = {"tar": ".tar", "parquet": ".parquet"}
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.zstd", ".tar.lz4")
# The most names that braces may stand for: ImageNet-21k has 2,048 shards, LAION-5B 232,000.
_MOST_NAMES = 10_000_000
# Query parameters that sign a URL, of S3 and its likes, Google, CloudFront and Azure. Another
# signature does not make another file.
_SIGNATURE = re.compile(
    r"(X-(Amz|Goog|Ms)-[^=]*|Expires|Signature|Policy|Key-Pair-Id|AWSAccessKeyId|GoogleAccessId|"
    r"sig|se|sp|sv|st|sr|spr|sip|skoid|sktid|skt|ske|sks|skv)(=.*)?",
    re.IGNORECASE,
)


def display_url(url: str) -> str:
    """A path or URL for messages: without passwords and signatures."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    if scheme in ("http", "https") or "=" in rest:  # elsewhere ? may be of a pattern
        rest = rest.partition("?")[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def is_web_page(content: bytes) -> bool:
    """Whether a file begins like HTML or XML, which servers send for a login or an unknown path."""
    return content[:256].removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<"


def unsigned(url: str) -> str:
    """A URL without its signature, which changes from day to day."""
    plain, mark, query = url.partition("?")
    if not mark or "://" not in url:
        return url
    kept = "&".join(part for part in query.split("&") if not _SIGNATURE.fullmatch(part))
    return f"{plain}?{kept}" if kept else plain


def check_url(url: str, key: str) -> None:
    """Refuse what is not a URL.

    Raises:
        InputError: names the recipe's key.
    """
    try:
        urlsplit(url)
    except ValueError as error:
        raise InputError(
            f"{key}.path: {display_url(url)} is no URL ({first_line(error)}): fix it"
        ) from error


def expand_braces(path: str) -> list[str]:
    """Names in braces written out: train-{0000..0127}.tar, {train,extra}.tar, and several of them
    in one path.

    Raises:
        InputError: more names than a data set has files.
    """
    parts: list[Iterable[str]] = []
    count = 1
    for i, part in enumerate(re.split(r"\{([^{}]*)\}", path)):
        numbers = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", part)
        if i % 2 == 0:
            parts.append([part])
        elif numbers:
            first, last = numbers.groups()
            width = len(first) if first.startswith("0") or len(first) == len(last) else 0
            numbered = range(int(first), int(last) + 1)
            count *= len(numbered)
            parts.append(map(f"{{:0{width}d}}".format, numbered))
        else:
            words = part.split(",")
            count *= len(words)
            parts.append(words)
    if count > _MOST_NAMES:
        raise InputError(
            f"{display_url(path)}: its braces stand for more than {_MOST_NAMES:,} files: narrow"
            " them"
        )
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def names_files(place: str) -> bool:
    """Whether a path names files, by a pattern, braces or an extension, and not a folder."""
    if "://" not in place:
        pattern = "{" in place or glob.has_magic(place) or _is_file_name(place)
        return pattern and not Path(place).is_dir()
    # After the host: [::1] is no pattern.
    path = place.partition("?")[0].partition("://")[2].partition("/")[2]
    return any(sign in path for sign in "{*[") or _is_file_name(path)


def _is_file_name(path: str) -> bool:
    return path.lower().endswith((*EXTENSIONS.values(), *COMPRESSED))


def named_files(place: str, key: str) -> list[str]:
    local = "://" not in place
    start, rest = literal_start(place) if local else ("", place)
    # What exists as written is not a pattern: [ ] and { } are part of its name.
    files = [os.path.join(start, file) for file in expand_braces(rest)] if rest else [place]
    if place.startswith(("http://", "https://")):
        if "*" in place.partition("?")[0]:
            raise InputError(
                f"{key}.path: {display_url(place)}: a web server does not list its files: name them"
                " in"
                " braces, as in train-{0000..0127}.tar, or give a folder with the manifest of"
                " distill data shard"
            )
    elif any(map(glob.has_magic, expand_braces(rest))):
        files = [found for pattern in files for found in sorted(matching(pattern, key))]
        refuse_several(
            below_common(files),
            display_url(place),
            f"{key}.path",
            "narrow the pattern to one of them",
        )
    if not files:
        raise InputError(f"{key}.path: no file matches {display_url(place)}: fix the pattern")
    if len(set(files)) != len(files):
        twice = next(name for name, again in itertools.pairwise(sorted(files)) if name == again)
        raise InputError(
            f"{key}.path: {display_url(place)} names {display_url(twice)} twice: each shard is"
            " given once"
        )
    absent = [file for file in files if "://" not in file and not Path(file).is_file()]
    if absent:
        if Path(absent[0]).exists():
            raise InputError(
                f"{key}.path: {absent[0]} is a {kind_of(absent[0])}, not a file: name the shards"
                " themselves"
            )
        if len(files) == 1:
            raise missing(Path(absent[0]), key)
        raise InputError(
            f"{key}.path: {len(absent)} of {len(files)} files do not exist, the first of them"
            f" {absent[0]}: fix the pattern"
        )
    return files


def below_common(files: Sequence[str]) -> list[str]:
    """The paths of the files below the folder that they share."""
    folder = posixpath.commonpath([posixpath.dirname(file) for file in files]) if files else ""
    return [posixpath.relpath(file, folder) if folder else file for file in files]


def matching(pattern: str, key: str) -> list[str]:
    scheme, separator, _ = pattern.partition("://")
    if not separator:
        return matching_files(pattern, key)[0]
    import fsspec  # type: ignore[import-untyped]

    try:
        found = fsspec.filesystem(scheme).glob(pattern)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{key}.path: {display_url(pattern)}: {first_line(error)}:"
            f" install what opens {scheme}://"
        ) from error
    except OSError as error:
        raise InputError(
            f"{key}.path: {display_url(pattern)} cannot be listed ({type(error).__name__}:"
            f" {first_line(error)})"
        ) from error
    return [name if "://" in name else f"{scheme}://{name.lstrip('/')}" for name in found]


def container_of(spec: schema.StreamSpec, names: Sequence[str], key: str) -> Container:
    packed = next((name for name in names if name.lower().endswith(COMPRESSED)), None)
    if packed is not None:
        raise InputError(
            f"{key}.path: {display_url(packed)} is compressed, and a stream reads samples by"
            " offset:"
            " unpack the shards to plain .tar files (images are compressed already), or write them"
            " again with distill data shard"
        )
    if spec.container is not None:
        return spec.container
    kinds = {
        next((kind for kind, end in EXTENSIONS.items() if name.lower().endswith(end)), None)
        for name in names
    }
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        odd = next(
            (name for name in names if not name.lower().endswith(tuple(EXTENSIONS.values()))), None
        )
        what = (
            "there are tar and Parquet files"
            if odd is None
            else f"{display_url(odd)} is neither .tar nor .parquet"
        )
        raise InputError(
            f"{key}.container: {what}: set container to tar or parquet, and path to files of that"
            " form"
        )
    return kind
